package bundle

import (
	"bufio"
	"crypto"
	"crypto/md5" //nolint:gosec // for old clients; SHA-256 decides
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/interlock-energy/ota"
)

// DefaultChunkSize is the chunk size of [DescribeImage] and [Build] in bytes.
const DefaultChunkSize = 64 << 10

// DescribeImage reads an image once, to its end, and returns what a manifest
// says of it. The chunk size is a power of two from [ota.MinChunkSize] to
// [ota.MaxChunkSize] bytes; 0 is [DefaultChunkSize]. An image has 1 to
// [ota.MaxImageSize] bytes. It needs memory for one chunk and 32 bytes per chunk.
func DescribeImage(component string, r io.Reader, chunkSize int64, withMD5 bool) (ota.Image, error) {
	fail := func(err error) (ota.Image, error) {
		return ota.Image{}, fmt.Errorf("describe image %s: %w", abridge(component), err)
	}
	if chunkSize == 0 {
		chunkSize = DefaultChunkSize
	}
	if err := ota.CheckName(component); err != nil {
		return ota.Image{}, refuse("describe image: component: %w", err)
	}
	if chunkSize < ota.MinChunkSize || chunkSize > ota.MaxChunkSize || chunkSize&(chunkSize-1) != 0 {
		return fail(refuse("chunk size %d, want a power of two from %d to %d", chunkSize, ota.MinChunkSize, ota.MaxChunkSize))
	}
	im := ota.Image{Component: component, ChunkSize: chunkSize}
	whole, old := sha256.New(), md5.New()
	for buf := make([]byte, chunkSize); ; {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			whole.Write(buf[:n])
			if withMD5 {
				old.Write(buf[:n])
			}
			im.Chunks = append(im.Chunks, sha256.Sum256(buf[:n]))
			im.Size += int64(n)
		}
		if im.Size > ota.MaxImageSize {
			return fail(refuse("more than %d bytes", int64(ota.MaxImageSize)))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fail(fmt.Errorf("read at %d: %w", im.Size, err))
		}
	}
	if im.Size == 0 {
		return fail(refuse("the image is empty"))
	}
	whole.Sum(im.SHA256[:0])
	if withMD5 {
		im.MD5 = hex.EncodeToString(old.Sum(nil))
	}
	return im, nil
}

// copyImage copies an image of exactly im.Size bytes. Every chunk is verified
// before it is written, and the whole at the end. Copied, which may be nil, gets
// the size of each chunk.
func copyImage(w io.Writer, r io.Reader, im *ota.Image, copied func(n int64)) error {
	whole := sha256.New()
	var old hash.Hash
	all := io.Writer(whole)
	if im.MD5 != "" {
		old = md5.New()
		all = io.MultiWriter(whole, old)
	}
	buf := make([]byte, min(im.ChunkSize, im.Size))
	var at int64
	for i := range im.Chunks {
		chunk := buf[:min(im.ChunkSize, im.Size-at)]
		n, err := io.ReadFull(r, chunk)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return refuse("image %s: got %d bytes, want %d", im.Component, at+int64(n), im.Size)
		}
		if err != nil {
			return fmt.Errorf("image %s: read at %d: %w", im.Component, at+int64(n), err)
		}
		if got := ota.Hash(sha256.Sum256(chunk)); got != im.Chunks[i] {
			return refuse("image %s: chunk %d of %d (bytes %d to %d) has SHA-256 %s, want %s",
				im.Component, i+1, len(im.Chunks), at, at+int64(len(chunk))-1, got, im.Chunks[i])
		}
		all.Write(chunk) // hashes return no errors
		if _, err := w.Write(chunk); err != nil {
			return fmt.Errorf("image %s: write at %d: %w", im.Component, at, err)
		}
		at += int64(len(chunk))
		if copied != nil {
			copied(int64(len(chunk)))
		}
	}
	// Not implied by the chunks: a signer's tool may have computed these wrongly,
	// and other clients go by them.
	if got := ota.Hash(whole.Sum(nil)); got != im.SHA256 {
		return refuse("image %s: has SHA-256 %s, want %s", im.Component, got, im.SHA256)
	}
	if old != nil {
		if got := hex.EncodeToString(old.Sum(nil)); got != im.MD5 {
			return refuse("image %s: has MD5 %s, want %s", im.Component, got, im.MD5)
		}
	}
	return nil
}

// Write writes a bundle: header, envelope, and the images in the order of the
// manifest, each of which must be exactly what the manifest says; an image that
// changed since it was described is [ota.ErrValidation]. Signatures are not
// checked. After an error w has a part of a bundle, which is to be thrown away.
func Write(w io.Writer, signed []byte, images ...io.Reader) error {
	m, err := Unsigned(signed)
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if len(images) != len(m.Images) {
		return refuse("write bundle: got %d images, want %d", len(images), len(m.Images))
	}
	for _, b := range [][]byte{header(len(signed)), signed} {
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	for i, r := range images {
		im := &m.Images[i]
		if err := copyImage(w, r, im, nil); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
		n, err := io.ReadFull(r, make([]byte, 1))
		if n > 0 {
			return refuse("write bundle: image %s: has more than %d bytes", im.Component, im.Size)
		}
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("write bundle: image %s: read at %d: %w", im.Component, im.Size, err)
		}
	}
	return nil
}

// Build describes the image files (component to file name), signs the manifest
// and writes the bundle to out, which it replaces. After an error out is what it
// was before; after success it is durable.
//
// If m.Images is empty, Build orders the components by name. Otherwise its
// components and their order are kept, and so are their chunk sizes, 0 meaning
// [DefaultChunkSize]; all else in them is computed, MD5 always. On success
// m.Images and m.Digest are filled in, and m.Format if it was 0.
func Build(out string, m *ota.Manifest, imageFiles map[string]string, keys ...crypto.Signer) error {
	filled := *m
	if filled.Format == 0 {
		filled.Format = 1
	}
	plan, err := planImages(m.Images, imageFiles)
	if err != nil {
		return fmt.Errorf("build %s: %w", out, err)
	}
	files := make([]io.Reader, len(plan))
	filled.Images = make([]ota.Image, len(plan))
	for i, im := range plan {
		f, err := openImage(imageFiles[im.Component], out)
		if err != nil {
			return fmt.Errorf("build %s: image %s: %w", out, im.Component, err)
		}
		defer f.Close()
		if filled.Images[i], err = DescribeImage(im.Component, f, im.ChunkSize, true); err != nil {
			return fmt.Errorf("build %s: %w", out, err)
		}
		// The same descriptor again, so that a file exchanged meanwhile is not mixed in.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("build %s: image %s: %w", out, im.Component, err)
		}
		files[i] = f
	}
	signed, err := Sign(&filled, keys...)
	if err != nil {
		return fmt.Errorf("build %s: %w", out, err)
	}
	written, err := Unsigned(signed)
	if err != nil {
		return fmt.Errorf("build %s: %w", out, err)
	}
	if err := replaceFile(out, 0o644, func(w io.Writer) error { return Write(w, signed, files...) }); err != nil {
		return fmt.Errorf("build %s: %w", out, err)
	}
	m.Format, m.Images, m.Digest = filled.Format, filled.Images, written.Digest
	return nil
}

// planImages returns the images to make, in order, with component and chunk size.
func planImages(declared []ota.Image, files map[string]string) ([]ota.Image, error) {
	var plan []ota.Image
	for _, im := range declared {
		if _, ok := files[im.Component]; !ok {
			return nil, refuse("no file is given for component %s", im.Component)
		}
		plan = append(plan, ota.Image{Component: im.Component, ChunkSize: im.ChunkSize})
	}
	for _, component := range slices.Sorted(maps.Keys(files)) {
		if len(declared) == 0 {
			plan = append(plan, ota.Image{Component: component})
			continue
		}
		if !slices.ContainsFunc(declared, func(im ota.Image) bool { return im.Component == component }) {
			return nil, refuse("a file is given for component %s, which the manifest does not have", component)
		}
	}
	if len(plan) == 0 {
		return nil, refuse("no images are given")
	}
	if len(plan) > ota.MaxImages {
		return nil, refuse("%d images, want at most %d", len(plan), ota.MaxImages)
	}
	return plan, nil
}

func openImage(name, out string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if o, statErr := os.Stat(out); err == nil && statErr == nil && os.SameFile(info, o) {
		err = fmt.Errorf("%s is the output as well, and would be overwritten", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// SignFile adds a signature to the bundle at path, as [AddSignature] does, after
// verifying that the bundle is whole. After an error the file is what it was.
func SignFile(path string, key crypto.Signer) error {
	// A link stays a link, and the file behind it is replaced.
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("sign bundle: %w", err)
	}
	r, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sign bundle: %w", err)
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return fmt.Errorf("sign bundle: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("sign bundle: %s is not a regular file", path)
	}
	f, err := Open(r, info.Size())
	if err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	signed, err := AddSignature(f.Signed(), key)
	if err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	m, err := Unsigned(f.Signed())
	if err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	if err := f.checkSize(m); err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	images := make([]io.Reader, len(m.Images))
	for i := range m.Images {
		if images[i], err = f.Image(m, &m.Images[i]); err != nil {
			return fmt.Errorf("sign %s: %w", path, err)
		}
	}
	if err := replaceFile(path, info.Mode().Perm(), func(w io.Writer) error { return Write(w, signed, images...) }); err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	return nil
}

// replaceFile writes a file beside name and moves it there once it is durable:
// a power cut leaves the old file or the new one, and an error the old one. Only
// if the last step, syncing the folder, is what fails, the new one is there.
func replaceFile(name string, perm os.FileMode, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := write(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	// Before the rename: a name that points to bytes that are not yet on the
	// medium is an empty file after a power cut.
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // where a directory cannot be synced
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
