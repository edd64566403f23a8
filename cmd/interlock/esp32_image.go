package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

type esp32ImageCmd struct {
	Partitions string     `required:"" placeholder:"FILE" help:"Partition table: the partitions.csv of the project, or the binary one of its build."`
	Out        string     `required:"" placeholder:"FILE" help:"Flash image to write."`
	App        []string   `sep:"none" placeholder:"LABEL=FILE" help:"Application for a partition, for example ota_0=app.bin. Repeat for more."`
	Data       []string   `sep:"none" placeholder:"LABEL=FILE" help:"Content of another partition, for example nvs=nvs.bin. Repeat for more."`
	Bootloader string     `placeholder:"FILE" help:"Bootloader. Default: none, which an emulator may not need."`
	Boot       string     `placeholder:"LABEL" help:"Partition that boots. Default: factory, if it has an application; else the first slot that has one."`
	FlashSize  flashSize  `default:"4MB" placeholder:"SIZE" help:"Size of the flash, and of the file: 1MB, 2MB ... 128MB. Default: ${default}."`
	Table      *hexNumber `name:"table-offset" placeholder:"OFFSET" help:"Where the partition table lies. Default: 0x8000."`
	esp32Keys
	JSON bool `name:"json" help:"Print JSON."`
}

func (*esp32ImageCmd) Help() string {
	return `Every image is verified before anything is written: that it is whole, is for the same chip as the others, fits its partition, and is signed by --key if there is one. What nothing is given for stays erased (0xFF). The partition that says which slot boots is written so that --boot does, marked good.

Examples:

    interlock esp32 image --partitions partitions.csv --bootloader bootloader.bin \
        --app ota_0=app.bin --out flash.bin
    interlock esp32 image --partitions partitions.csv --flash-size 16MB \
        --app ota_0=old.bin --app ota_1=new.bin --boot ota_1 --data nvs=nvs.bin --out flash.bin`
}

// piece is a part of the flash: bytes, or a file.
type piece struct {
	what   string
	offset int64
	bytes  []byte
	file   string
	size   int64 // of the file
}

func (c *esp32ImageCmd) Run(e *env) error {
	b := &flashBuilder{cmd: c}
	pieces, err := b.plan()
	if err != nil {
		return err
	}
	slices.SortFunc(pieces, func(a, b piece) int { return int(a.offset - b.offset) })
	if err := writeFlash(c.Out, int64(c.FlashSize), pieces, b.verifyAgain); err != nil {
		return exitWith(exitFailed, fmt.Errorf("write %s: %w", c.Out, err))
	}
	if c.JSON {
		return e.printJSON(struct {
			File  string         `json:"file"`
			Size  int64          `json:"size"` // bytes
			Chip  string         `json:"chip,omitempty"`
			Boots string         `json:"boots,omitempty"` // label
			Parts []flashPartRow `json:"parts"`
		}{c.Out, int64(c.FlashSize), b.chipName(), b.boots, b.rows(pieces)})
	}
	if err := e.list(
		[2]string{"flash", fmt.Sprintf("%s (%v)", c.Out, c.FlashSize)},
		[2]string{"chip", b.chipName()},
		[2]string{"boots", or(b.boots, "nothing: no application is given")},
	); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout)
	var rows [][]string
	for _, r := range b.rows(pieces) {
		rows = append(rows, []string{r.Offset, r.Part, r.Content})
	}
	return e.table([]string{"OFFSET", "PART", "CONTENT"}, rows)
}

type flashPartRow struct {
	Offset  string `json:"offset"`
	Part    string `json:"part"`
	Content string `json:"content"`
}

// flashBuilder collects what goes into a flash.
type flashBuilder struct {
	cmd     *esp32ImageCmd
	table   *image.Table
	chip    *image.ChipID // of the first image
	keys    [][32]byte
	images  map[int64]*imageResult // by offset
	content map[string]string      // file, by label
	boots   string
}

func (b *flashBuilder) plan() ([]piece, error) {
	c := b.cmd
	b.images, b.content = map[int64]*imageResult{}, map[string]string{}
	var err error
	if b.keys, err = c.digests(); err != nil {
		return nil, err
	}
	at := uint32(image.TableOffset)
	if c.Table != nil {
		at = uint32(*c.Table)
	}
	if at == 0 || at%image.SectorSize != 0 {
		return nil, usage("--table-offset: got %#x, want a multiple of %#x", at, image.SectorSize)
	}
	if b.table, err = readTable(c.Partitions, at, int64(c.FlashSize)); err != nil {
		return nil, err
	}
	table, err := b.table.Encode()
	if err != nil {
		return nil, err
	}
	pieces := []piece{{what: "partition table", offset: int64(at), bytes: table}}
	for _, given := range []struct {
		flag string
		list []string
	}{{"--app", c.App}, {"--data", c.Data}} {
		for _, s := range given.list {
			p, err := b.part(given.flag, s)
			if err != nil {
				return nil, err
			}
			pieces = append(pieces, p)
		}
	}
	if c.Bootloader != "" {
		p, err := b.bootloader(at)
		if err != nil {
			return nil, err
		}
		pieces = append(pieces, p)
	}
	otadata, err := b.choose()
	if err != nil {
		return nil, err
	}
	return append(pieces, otadata...), nil
}

// readTable reads a partition table in either form and checks it for a flash.
func readTable(name string, at uint32, flash int64) (*image.Table, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	var head [2]byte
	if _, err := io.ReadFull(f, head[:]); err == nil && head == [2]byte{0xAA, 0x50} {
		b := make([]byte, image.TableSize)
		n, err := f.ReadAt(b, 0)
		if err != nil && err != io.EOF {
			return nil, err
		}
		t, err := image.ParseTable(b[:n], flash)
		if err == nil {
			err = t.Check(at, flash)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return t, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	t, err := image.ParseTableCSV(f, at)
	if err == nil {
		err = t.Check(at, flash)
	}
	if err != nil {
		return nil, hint(exitWith(exitFailed, fmt.Errorf("%s: %w", name, err)), "correct the table; ESP-IDF and the bootloader refuse it as well")
	}
	return t, nil
}

// part reads LABEL=FILE and verifies the file.
func (b *flashBuilder) part(flag, s string) (_ piece, err error) {
	label, file, ok := strings.Cut(s, "=")
	if !ok || label == "" || file == "" {
		return piece{}, usage("%s %s: want LABEL=FILE, for example %s ota_0=%s", flag, s, flag, filepath.Base(s))
	}
	p, ok := b.table.Label(label)
	if !ok {
		var labels []string
		for _, p := range b.table.Partitions {
			labels = append(labels, p.Label)
		}
		return piece{}, usage("%s %s: the table has no partition of that label, but %s", flag, s, strings.Join(labels, ", "))
	}
	if b.content[label] != "" {
		return piece{}, usage("%s %s: partition %s is given twice", flag, s, label)
	}
	if isApp := p.Type == image.TypeApp; isApp != (flag == "--app") {
		return piece{}, usage("%s %s: partition %s is %s for an application: use %s", flag, s, label, or(when(isApp, "one"), "none"), or(when(isApp, "--app"), "--data"))
	}
	b.content[label] = file
	out := piece{what: label, offset: int64(p.Offset), file: file}
	if flag == "--app" {
		out.size, err = b.verify(label, file, out.offset, int64(p.Size), true)
		return out, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return piece{}, err
	}
	if !info.Mode().IsRegular() {
		return piece{}, fmt.Errorf("%s is not a regular file", file)
	}
	if out.size = info.Size(); out.size > int64(p.Size) {
		return piece{}, fmt.Errorf("%s does not fit: it is %d bytes, and partition %s has %d", file, out.size, label, p.Size)
	}
	return out, nil
}

// verify verifies an image, which must be for the chip of those before it, and
// returns its size.
func (b *flashBuilder) verify(part, file string, offset, limit int64, app bool) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read
	stat, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if d, err := image.ReadAppDesc(f, stat.Size()); err == nil && !app {
		return 0, usage("--bootloader %s is the application %s %s: give it with --app LABEL=FILE", file, d.Project, d.Version)
	}
	info, err := image.Verify(f, stat.Size(), image.Options{Chip: b.chip, App: app, Exact: true, MaxSize: limit, KeyDigests: b.keys})
	if err != nil {
		return 0, fmt.Errorf("verify %s for %s: %w", file, part, err)
	}
	b.chip = &info.Chip
	b.images[offset] = describeImage(info)
	return info.End, nil
}

// verifyAgain verifies the images where they lie now: a file may have been
// replaced since it was read.
func (b *flashBuilder) verifyAgain(flash io.ReaderAt, pieces []piece) error {
	for _, p := range pieces {
		if b.images[p.offset] == nil {
			continue
		}
		info, err := image.Verify(io.NewSectionReader(flash, p.offset, p.size), p.size, image.Options{Chip: b.chip, Exact: true, KeyDigests: b.keys})
		if err != nil {
			return fmt.Errorf("verify %s as %s: %w", p.file, p.what, err)
		}
		if describeImage(info).SHA256 != b.images[p.offset].SHA256 {
			return fmt.Errorf("%s was changed while it was read", p.file)
		}
	}
	return nil
}

// bootloader verifies the bootloader, which must know of as much flash as the
// table uses: it refuses the whole table otherwise.
func (b *flashBuilder) bootloader(table uint32) (piece, error) {
	const unknown = -1 // offset, until the chip is known
	file := b.cmd.Bootloader
	n, err := b.verify("the bootloader", file, unknown, int64(table), false)
	if err != nil {
		return piece{}, err
	}
	offset, ok := b.chip.BootloaderOffset()
	if !ok {
		return piece{}, fmt.Errorf("%s is for %v, and nobody here knows where in flash its bootloader lies", file, *b.chip)
	}
	at, r := int64(offset), b.images[unknown]
	delete(b.images, unknown)
	b.images[at] = r
	if at+n > int64(table) {
		return piece{}, fmt.Errorf("%s does not fit: it reaches from %#x to %#x, and the partition table is at %#x; move that with --table-offset, as in the project's configuration", file, at, at+n, table)
	}
	for _, p := range b.table.Partitions {
		if r.FlashSize > 0 && int64(p.Offset)+int64(p.Size) > r.FlashSize {
			return piece{}, fmt.Errorf("%s is built for a flash of %v, and %v ends behind it: the bootloader would refuse the table; build it for %v",
				file, flashSize(r.FlashSize), p, b.cmd.FlashSize)
		}
	}
	return piece{what: "bootloader", offset: at, file: file, size: n}, nil
}

// choose finds what boots, and returns what the bootloader wants to read for that.
func (b *flashBuilder) choose() ([]piece, error) {
	b.boots = b.cmd.Boot
	slots := b.table.OTA()
	if b.boots == "" {
		list := slots
		if p, ok := b.table.Find(image.TypeApp, image.AppFactory); ok {
			list = append([]image.Partition{p}, slots...)
		}
		for _, p := range slices.Backward(list) {
			if b.images[int64(p.Offset)] != nil {
				b.boots = p.Label
			}
		}
		if b.boots == "" {
			return nil, nil
		}
	}
	p, ok := b.table.Label(b.boots)
	if !ok || b.images[int64(p.Offset)] == nil {
		return nil, usage("--boot %s: there is no application in it; give one with --app %s=FILE", b.boots, b.boots)
	}
	n, isSlot := p.OTA()
	otadata, ok := b.table.Find(image.TypeData, image.DataOTA)
	switch {
	case b.content[otadata.Label] != "" && ok:
		return nil, usage("--data %s=%s: that partition is written so that --boot boots; leave it out", otadata.Label, b.content[otadata.Label])
	case !isSlot && p.Subtype == image.AppFactory:
		return nil, nil // erased, it boots factory
	case !isSlot:
		return nil, usage("--boot %s: the bootloader does not choose it; name factory or one of the slots", b.boots)
	case !ok:
		return nil, fmt.Errorf("%s: the table has slots, but no partition that says which one boots: add a row \"otadata, data, ota, , 0x2000\"", b.cmd.Partitions)
	}
	// The first entry, as the bootloader writes it by itself.
	return []piece{{what: otadata.Label, offset: int64(otadata.Offset), bytes: esp32.NewEntry(uint32(n)+1, esp32.Valid).Encode()}}, nil
}

func (b *flashBuilder) chipName() string {
	if b.chip == nil {
		return ""
	}
	return b.chip.String()
}

// rows says what is where.
func (b *flashBuilder) rows(pieces []piece) []flashPartRow {
	var rows []flashPartRow
	for _, p := range pieces {
		r := flashPartRow{fmt.Sprintf("%#x", p.offset), p.what, filepath.Base(p.file)}
		switch {
		case b.images[p.offset] != nil:
			im := b.images[p.offset]
			r.Content = im.name() + ", " + size(im.Size)
			if im.signatureHolds {
				r.Content += ", signed"
			}
		case p.what == "partition table":
			r.Content = count(len(b.table.Partitions), "partition")
		case p.file == "":
			r.Content = b.boots + " boots"
		}
		rows = append(rows, r)
	}
	return rows
}

// writeFlash replaces the file name by a flash of total bytes with pieces in it,
// which are in order, do not overlap and fit, once check agrees with it.
func writeFlash(name string, total int64, pieces []piece, check func(io.ReaderAt, []piece) error) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	at := int64(0)
	for _, p := range append(pieces, piece{offset: total}) {
		if _, err := io.CopyN(tmp, erased{}, p.offset-at); err != nil {
			return err
		}
		n, err := p.copyTo(tmp)
		if err != nil {
			return err
		}
		at = p.offset + n
	}
	if err := check(tmp, pieces); err != nil {
		return err
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return err
	}
	return durable.OS{}.SyncDir(filepath.Dir(name))
}

func (p piece) copyTo(w io.Writer) (int64, error) {
	if p.file == "" {
		n, err := w.Write(p.bytes)
		return int64(n), err
	}
	f, err := os.Open(p.file)
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read
	return io.CopyN(w, f, p.size)
}

// erased reads as erased flash does, without an end.
type erased struct{}

func (erased) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = math.MaxUint8
	}
	return len(b), nil
}
