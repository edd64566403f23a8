package store

// Encode lets tests write what later software would.
func Encode(serial uint64, body []byte) []byte { return encode(serial, body) }
