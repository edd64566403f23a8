package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/interlock-energy/ota/slot/esp32"
	"github.com/interlock-energy/ota/slot/esp32/image"
)

// flashResult is a whole flash for programs.
type flashResult struct {
	File        string           `json:"file"`
	Kind        string           `json:"kind"`
	Size        int64            `json:"size"` // bytes
	Chip        string           `json:"chip,omitempty"`
	Bootloader  *imageResult     `json:"bootloader,omitempty"`
	TableOffset int64            `json:"table_offset"`
	MD5         bool             `json:"md5"` // the table has a checksum
	Partitions  []partitionRow   `json:"partitions"`
	Otadata     *[2]otadataEntry `json:"otadata,omitempty"`
	Boots       string           `json:"boots,omitempty"` // label
	Told        string           `json:"told,omitempty"`  // label of what it was told to boot
	Trial       bool             `json:"trial"`
	Why         string           `json:"why"`
	Problems    []string         `json:"problems,omitempty"`

	table   *image.Table
	chip    *image.ChipID
	refuses string // why the bootloader does not take the table
}

func (f *flashResult) problem(format string, a ...any) {
	f.Problems = append(f.Problems, fmt.Sprintf(format, a...))
}

// flash shows a file that is a whole flash.
func (r *inspection) flash(e *env) error {
	res, label := &flashResult{File: r.file, Kind: "flash", Size: r.size, TableOffset: r.table}, r.label()
	chip := r.size              // bytes
	if r.size&(r.size-1) != 0 { // no flash has that: a merged file, which ends with its last part
		r.f, r.size, chip = padded{r.f, r.size}, 1<<32, 0
	}
	b, err := r.bytes(r.table, image.TableSize)
	if err != nil {
		return err
	}
	if res.table, err = image.ParseTable(b, 0); err != nil {
		return err
	}
	res.MD5 = res.table.MD5
	if err := res.table.Check(uint32(r.table), chip); err != nil {
		return err
	}
	if err := r.bootloader(res); err != nil {
		return err
	}
	if err := r.partitions(res); err != nil {
		return err
	}
	if err := r.boot(res); err != nil {
		return err
	}
	if res.refuses != "" {
		res.Boots, res.Trial, res.Why = "", false, res.refuses
	}
	if r.json {
		err = e.printJSON(res)
	} else {
		err = res.print(e, label)
	}
	switch {
	case err != nil:
		return err
	case res.Boots == "":
		return hint(invalidFile("it does not boot: %s", res.Why), "the list of problems says what is wrong; write a whole application into a slot")
	case res.Boots != res.Told:
		return hint(invalidFile("it does not boot what it was told to: %s", res.Why), "write %s again, or make the flash boot %s", res.Told, res.Boots)
	}
	return nil
}

// padded is a file that goes on as erased flash does.
type padded struct {
	io.ReaderAt
	size int64
}

func (p padded) ReadAt(b []byte, at int64) (int, error) {
	n := int(max(0, min(int64(len(b)), p.size-at)))
	if got, err := p.ReaderAt.ReadAt(b[:n], at); got < n {
		return got, err
	}
	m, err := erased{}.Read(b[n:])
	return n + m, err
}

// errErased says that nothing is there, so that it is not damaged either.
var errErased = errors.New("erased")

// verify verifies the image at an offset of the flash. The error of a medium is
// told from that of an image by ioErr.
func (r *inspection) verify(at, limit int64, o image.Options) (info *image.Info, bad, ioErr error) {
	head := make([]byte, image.SectorSize)
	section := io.NewSectionReader(r.f, at, limit)
	if n, err := section.ReadAt(head, 0); err == io.EOF {
		head = head[:n]
	} else if err != nil {
		return nil, nil, err
	}
	if bytes.Count(head, []byte{0xFF}) == len(head) {
		return nil, errErased, nil
	}
	o.KeyDigests, o.MaxSize = r.keys, limit
	info, bad = image.Verify(section, limit, o)
	return info, bad, nil
}

// bootloader looks at all places where a chip may have one.
func (r *inspection) bootloader(res *flashResult) error {
	var why error
	for _, at := range []uint32{0x1000, 0, 0x2000} {
		info, bad, err := r.verify(int64(at), r.table-int64(at), image.Options{})
		if err != nil {
			return err
		}
		if bad != nil {
			if head, err := r.bytes(int64(at), 1); err == nil && len(head) == 1 && head[0] == 0xE9 {
				why = fmt.Errorf("the bootloader at %#x: %w", at, bad)
			}
			continue
		}
		if offset, ok := info.Chip.BootloaderOffset(); ok && offset == at {
			res.Bootloader, res.chip, res.Chip = describeImage(info), &info.Chip, info.Chip.String()
			why = nil
			break
		}
	}
	if why != nil {
		res.problem("%v (a tool that writes a bootloader may have changed its header without its hash, which matters with Secure Boot only)", why)
	}
	if b := res.Bootloader; b != nil && b.FlashSize > 0 {
		for _, p := range res.table.Partitions {
			if int64(p.Offset)+int64(p.Size) > b.FlashSize {
				res.refuses = fmt.Sprintf("the bootloader is built for %v of flash and refuses the table, because %v ends behind that", flashSize(b.FlashSize), p)
				res.problem("%s", res.refuses)
				break
			}
		}
	}
	return nil
}

// partitions looks into all partitions.
func (r *inspection) partitions(res *flashResult) error {
	for _, p := range res.table.Partitions {
		row := newPartitionRow(p)
		section := io.NewSectionReader(r.f, int64(p.Offset), int64(p.Size))
		if p.Type != image.TypeApp {
			row.Content = "data"
			if ok, err := isErased(section); err != nil {
				return err
			} else if ok {
				row.Content = "erased"
			}
			res.Partitions = append(res.Partitions, row)
			continue
		}
		info, bad, err := r.verify(int64(p.Offset), int64(p.Size), image.Options{Chip: res.chip, App: true})
		switch {
		case err != nil:
			return err
		case errors.Is(bad, errErased):
			row.Content = "erased"
		case bad != nil:
			row.Content, row.Error = "damaged", bad.Error()
			res.problem("%s: %v", p.Label, bad)
		default:
			row.Content, row.Image = "image", describeImage(info)
			if res.Chip == "" {
				res.Chip = info.Chip.String()
			}
		}
		res.Partitions = append(res.Partitions, row)
	}
	return nil
}

// boot finds out what boots next, and why.
func (r *inspection) boot(res *flashResult) error {
	slots := res.table.OTA()
	p, ok := res.table.Find(image.TypeData, image.DataOTA)
	if !ok || len(slots) == 0 {
		res.withoutOtadata(slots)
		return nil
	}
	b := make([]byte, otadataSize)
	if _, err := io.NewSectionReader(r.f, int64(p.Offset), otadataSize).ReadAt(b, 0); err != nil {
		return err
	}
	list := readOtadata(b, slots)
	res.Otadata = &list
	state, err := esp32.ReadBoot(r.f, esp32.Config{TableOffset: uint32(r.table), Rollback: true, Chip: res.chip, KeyDigests: r.keys})
	if err != nil {
		return err
	}
	res.Boots, res.Told, res.Trial = state.Next, state.Order[0].Label, state.Trial
	res.Why = whyBoots(state, list)
	return nil
}

// withoutOtadata finds out what boots if there is nothing to choose by: the first
// whole application of all (load_boot_image of ESP-IDF's bootloader_utility.c).
func (f *flashResult) withoutOtadata(slots []image.Partition) {
	order := slots
	if p, ok := f.table.Find(image.TypeApp, image.AppFactory); ok {
		order = append([]image.Partition{p}, slots...)
	}
	if len(slots) > 0 {
		f.problem("the table has slots, but no otadata, which says which of them boots: an update cannot switch")
	}
	f.Why = "the table has no otadata, so the first whole application is taken"
	for i, p := range order {
		if i == 0 {
			f.Told = p.Label
		}
		for _, row := range f.Partitions {
			if row.Label == p.Label && row.Image != nil && f.Boots == "" {
				f.Boots = p.Label
			}
		}
	}
	if f.Boots == "" {
		f.Why = "no partition holds a whole application"
	}
}

// whyBoots says in a sentence why a flash boots what it boots.
func whyBoots(s *esp32.BootState, list [2]otadataEntry) string {
	told := s.Order[0].Label
	var why string
	switch {
	case s.Active < 0 && list[0].Sequence == 1<<32-1 && list[1].Sequence == 1<<32-1:
		why = fmt.Sprintf("otadata is erased, so the bootloader begins with %s", told)
	case s.Active < 0:
		why = fmt.Sprintf("no entry of otadata is valid, so the bootloader begins with %s", told)
	case list[s.Active].State == esp32.PendingVerify.String():
		why = fmt.Sprintf("entry %d: %s was tried and never marked good, so the bootloader gives it up and takes %s", s.Active+1, list[s.Active].Slot, told)
	case list[0].Counts && list[1].Counts:
		why = fmt.Sprintf("entry %d has the higher sequence number, %d", s.Active+1, list[s.Active].Sequence)
	default:
		why = fmt.Sprintf("entry %d is the only valid one", s.Active+1)
	}
	switch {
	case s.Next == "":
		why += ", and no partition holds a whole application"
	case s.Next != told:
		why += fmt.Sprintf(", but no whole application is in %s, so it goes on to %s", told, s.Next)
	case s.Trial:
		why += "; it is NEW: on trial, and if it is not marked good the next start takes another"
	}
	if s.FellBack {
		why += "; an update was tried before, and the bootloader came back"
	}
	return why
}

// print shows a whole flash to people.
func (f *flashResult) print(e *env, file string) error {
	bootloader := "none"
	if b := f.Bootloader; b != nil {
		bootloader = fmt.Sprintf("%s, %s", b.name(), size(b.Size)) + when(b.FlashSize > 0, ", for "+flashSize(b.FlashSize).String()+" of flash") + when(b.signatureHolds, ", signed")
	}
	updates := fmt.Sprintf("%d slots", len(f.table.OTA()))
	if len(f.table.OTA()) < 2 {
		updates = "not possible: the table has no two slots"
	} else if f.Otadata == nil {
		updates = "not possible: the table has no otadata"
	}
	if err := e.list(
		[2]string{"file", file},
		[2]string{"kind", "whole flash"},
		[2]string{"chip", or(f.Chip, "not known: there is no image")},
		[2]string{"bootloader", bootloader},
		[2]string{"table", fmt.Sprintf("at %#x, %s, %s", f.TableOffset, count(len(f.Partitions), "partition"), or(when(f.MD5, "MD5 whole"), "without checksum"))},
		[2]string{"updates", updates},
		[2]string{"boots", or(f.Boots, "NOTHING") + when(f.Trial, " (trial)")},
		[2]string{"because", f.Why},
	); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout)
	if err := printPartitions(e, f.Partitions, true); err != nil {
		return err
	}
	if f.Otadata != nil {
		fmt.Fprintln(e.stdout)
		if err := printOtadata(e, *f.Otadata); err != nil {
			return err
		}
	}
	if len(f.Problems) > 0 {
		fmt.Fprintln(e.stdout, "\nproblems")
		for _, p := range f.Problems {
			fmt.Fprintln(e.stdout, "  "+clean(p))
		}
	}
	return nil
}
