package awscred

import (
	"strings"
	"testing"
)

// FuzzParse reads any bytes as a credentials file: it finds nothing that is not
// there, and no key that has a blank at an end.
func FuzzParse(f *testing.F) {
	f.Add([]byte("[default]\naws_access_key_id=a\naws_secret_access_key = b\n"), "default")
	f.Add([]byte("[profile x]\r\naws_access_key_id=a=b\r\n"), "x")
	f.Add([]byte("[\n=\n]\n[default"), "")
	f.Fuzz(func(t *testing.T, data []byte, profile string) {
		c := parse(data, profile)
		for _, key := range []string{c.AccessKeyID, c.SecretAccessKey, c.SessionToken} {
			if !strings.Contains(string(data), key) || key != strings.TrimSpace(key) || strings.Contains(key, "\n") {
				t.Fatalf("got %q", key)
			}
		}
	})
}
