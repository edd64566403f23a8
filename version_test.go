package ota_test

import (
	"strings"
	"testing"

	"github.com/interlock-energy/ota"
)

func TestCompareVersions(t *testing.T) {
	rising := []string{"0", "0.0.1", "0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
		"1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2", "1.10.0", "1.10.0.1", "2024.11.3", "99999999999999999999999.0.0",
		"100000000000000000000000.0.0"}
	for i, a := range rising {
		for j, b := range rising {
			want := min(max(i-j, -1), 1)
			if got := ota.CompareVersions(a, b); got != want {
				t.Errorf("CompareVersions(%s, %s) = %d, want %d", a, b, got, want)
			}
		}
	}
	for _, same := range [][2]string{{"1", "1.0.0"}, {"1.0.0+a", "1.0.0+b"}, {"01.2", "1.02.0"}, {"1.0.0-rc.1+x-y", "1.0.0-rc.1"}} {
		if got := ota.CompareVersions(same[0], same[1]); got != 0 {
			t.Errorf("CompareVersions(%s, %s) = %d, want 0", same[0], same[1], got)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for _, v := range []string{"1", "1.0.1", "1.4.2-rc.1", "1.0.0+build.5", "1.0.0+a-b", "2024.11.3.4", strings.Repeat("9", 64)} {
		if err := ota.CheckVersion(v); err != nil {
			t.Errorf("CheckVersion(%q) = %v, want nil", v, err)
		}
	}
	for _, v := range []string{"", "v1.0.0", "1.", ".1", "1..2", "1.0.0-", "1.0.0+", "1.0.0-a..b", "1.0.0-é", "1 .0", "1.0\n",
		"-1", "1.2.3.4.5.6.7.8.9", strings.Repeat("9", 65), "latest", "1.0.0-a+", "1.0/../2"} {
		if err := ota.CheckVersion(v); err == nil {
			t.Errorf("CheckVersion(%q) = nil, want an error", v)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1.0.0", "1.0.1-rc.1+b")
	f.Add("0.0", "00")
	f.Fuzz(func(t *testing.T, a, b string) {
		if ota.CheckVersion(a) != nil || ota.CheckVersion(b) != nil {
			return
		}
		if x, y := ota.CompareVersions(a, b), ota.CompareVersions(b, a); x != -y {
			t.Errorf("CompareVersions(%q, %q) = %d, and the other way round %d", a, b, x, y)
		}
		if ota.CompareVersions(a, a) != 0 {
			t.Errorf("%q differs from itself", a)
		}
	})
}
