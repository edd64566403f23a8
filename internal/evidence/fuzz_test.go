package evidence

import (
	"bytes"
	"testing"
)

// FuzzVerify makes lines of the pieces of text, with sums and padding that are right,
// or not: what a forger can write, and what a broken medium gives back.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time":"2026-03-01T12:00:00Z","kind":"opened","prev":"`+zeroHash+`","format":1`), true)
	f.Add([]byte(`{"seq":1,"time":"2026-03-01T12:00:00Z","kind":"end","prev":"`+zeroHash+`"`+"\n"+
		`{"seq":9000000000000000000,"time":"2026-03-01T12:00:00Z","kind":"end","prev":"`+zeroHash+`","how":1`), true)
	f.Add([]byte("{}\n\n"), false)
	f.Fuzz(func(t *testing.T, text []byte, sealed bool) {
		data := text
		if sealed {
			data = nil
			for _, line := range bytes.Split(text, []byte("\n")) {
				line = append(bytes.Clone(line), sumMark+sum(line)+sumEnd...)
				data = append(append(append(data, line...), bytes.Repeat([]byte(" "), padding(len(line)))...), '\n')
			}
		}
		v := Verify("x", data)
		_, err := Parse(data)
		if v.OK() && (err != nil || !v.Ended) {
			t.Errorf("it verifies, and %v, ended %v", err, v.Ended)
		}
		if s := scan(data); s.good+s.rest != int64(len(data)) || s.good%Page != 0 {
			t.Errorf("of %d bytes %d are good, and %d are not", len(data), s.good, s.rest)
		}
		if twice := Verify("x", append(bytes.Clone(data), data...)); v.OK() && twice.OK() {
			t.Errorf("twice the same verifies: %q", data)
		}
	})
}
