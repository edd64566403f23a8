// Command zipone writes a zip archive with one program in it, which is executable
// whoever made it, and always the same bytes for the same program. It is there
// because a bare Debian has no zip(1).
//
//	go run ./scripts/zipone PROGRAM FILE.zip
package main

import (
	"archive/zip"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "zipone: want PROGRAM FILE.zip")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "zipone:", err)
		os.Exit(1)
	}
}

// write makes the archive beside its place and moves it there, so that nobody
// uploads half of one.
func write(program, name string) (err error) {
	tmp := name + ".tmp"
	out, err := os.Create(tmp)
	if err != nil {
		return err
	}
	err = errors.Join(archive(out, program), out.Sync(), out.Close())
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	info, err := os.Stat(tmp)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	fmt.Printf("%s: %.2f MB\n", name, float64(info.Size())/1e6)
	return nil
}

func archive(out io.Writer, program string) error {
	in, err := os.Open(program)
	if err != nil {
		return err
	}
	defer in.Close()
	z := zip.NewWriter(out)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	h := &zip.FileHeader{Name: filepath.Base(program), Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)} // the least that zip knows
	h.SetMode(0o755)
	w, err := z.CreateHeader(h)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	return z.Close()
}
