// Package grubtest puts GRUB slots on the disks of package otatest. It has a model of
// GRUB and of its boot script, made from GRUB's behaviour and the text of grub.cfg,
// and not from package grub. A test of package grub compares it with GRUB itself.
package grubtest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/grub"
)

// Places on the disk.
const (
	Env   = "/boot/grub/grubenv"
	Env2  = "/boot/grub/grubenv2"
	SlotA = "/dev/vda3"
	SlotB = "/dev/vda4"

	slotSize = 1 << 20
)

// Backend is an [otatest.Backend] of GRUB slots on two partitions. The zero value is
// ready: two environment blocks, and the script of package grub.
type Backend struct {
	// Alone has one environment block, and a boot script of RAUC's convention, which
	// counts every start. It is not safe over writes that a cut damages.
	Alone bool
}

// Config returns the configuration of an agent on the device, but for Booted and Restart.
func (b Backend) Config() grub.Config {
	cfg := grub.Config{
		Env: Env, Env2: Env2, Components: map[string][2]string{"controller": {SlotA, SlotB}},
		Log: slog.New(slog.DiscardHandler),
	}
	if b.Alone {
		cfg.Env2 = ""
	}
	return cfg
}

// Format implements [otatest.Backend].
func (b Backend) Format(d *otatest.Disk, image []byte) error {
	d.MkDevice(SlotA, slotSize)
	d.MkDevice(SlotB, slotSize)
	d.MkFAT("/boot/grub")
	if err := durable.MkdirAll(d, "/data", 0o755); err != nil { // where the record is
		return err
	}
	if err := durable.WriteRange(d, SlotA, 0, image); err != nil {
		return err
	}
	return grub.FormatOn(d, b.Config(), "A")
}

// Slots implements [otatest.Backend].
func (b Backend) Slots(d *otatest.Disk, boot otatest.Boot, restart func(context.Context) error) (ota.Slots, error) {
	cfg := b.Config()
	cfg.Booted = func(context.Context) (string, string, error) { return boot.Slot, boot.ID, nil }
	cfg.Restart = restart
	return grub.OpenOn(d, cfg)
}

// Image implements [otatest.Backend].
func (Backend) Image(d *otatest.Disk, slot string) []byte {
	if slot == "B" {
		return d.Content(SlotB)
	}
	return d.Content(SlotA)
}

// PowerOn implements [otatest.Backend].
func (b Backend) PowerOn(d *otatest.Disk) (string, error) {
	loads := func(slot string) bool { return len(bytes.Trim(b.Image(d, slot)[:512], "\x00")) > 0 }
	var order []string
	if b.Alone {
		order = rauc(d)
	} else {
		order = Script(d)
	}
	for _, slot := range order {
		if loads(slot) {
			return slot, nil
		}
	}
	return "", errors.New("grub: no kernel loads")
}

// vars is GRUB's variables.
type vars map[string]string

// loadEnv does what load_env does: it reads the file's variables into v.
func loadEnv(d *otatest.Disk, name string, v vars) bool {
	whole, err := durable.ReadFile(d, name, 1<<20)
	if err != nil || !bytes.HasPrefix(whole, []byte("# GRUB Environment Block\n")) {
		return false
	}
	p := whole[len("# GRUB Environment Block\n"):]
	for len(p) > 0 {
		n := 0
		if p[0] != '#' {
			n = bytes.IndexByte(p, '=') + 1
			if n == 0 {
				return true
			}
		}
		name, value := string(p[:max(n-1, 0)]), []byte(nil)
		for n < len(p) && p[n] != '\n' {
			if p[n] == '\\' {
				n++
			}
			if n < len(p) {
				value = append(value, p[n])
			}
			n++
		}
		if n >= len(p) {
			return true
		}
		if p[0] != '#' {
			v[name] = string(value)
		}
		p = p[n+1:]
	}
	return true
}

// saveEnv does what save_env does with variables that are in the file already, in the
// length that they have there: it changes them where they are, and writes the block
// to where it was read from. It is an error if it cannot be read.
func saveEnv(d *otatest.Disk, name string, v vars, names ...string) bool {
	whole, err := durable.ReadFile(d, name, 1<<20)
	if err != nil || !bytes.HasPrefix(whole, []byte("# GRUB Environment Block\n")) {
		return false
	}
	for _, n := range names {
		at := bytes.Index(whole, []byte("\n"+n+"="))
		if at < 0 {
			return false // this model does not insert
		}
		at += len(n) + 2
		end := at + bytes.IndexByte(whole[at:], '\n')
		if end < at {
			return false
		}
		if end-at != len(v[n]) { // what follows moves, and the end is filled up
			rest := append([]byte(v[n]), whole[end:]...)
			for len(rest) < len(whole)-at {
				rest = append(rest, '#')
			}
			if at+len(rest) > len(whole) && len(bytes.Trim(rest[len(whole)-at:], "#")) > 0 {
				return false // it does not fit
			}
			copy(whole[at:], rest)
			continue
		}
		copy(whole[at:], v[n])
	}
	f, err := d.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_, err = f.WriteAt(whole, 0)
	return errors.Join(err, f.Sync(), f.Close()) == nil
}

var names = []string{"interlock_begin", "interlock_seq", "ORDER", "A_OK", "A_TRY", "B_OK", "B_TRY", "interlock_trial", "interlock_boot", "interlock_end"}

func seal(v vars) string {
	s := v["interlock_seq"]
	return s + v["ORDER"] + s + v["A_OK"] + s + v["A_TRY"] + s + v["B_OK"] + s + v["B_TRY"] + s + v["interlock_trial"] + s + v["interlock_boot"] + s
}

func readBlock(d *otatest.Disk, name string) (v vars, whole bool) {
	all, v := vars{}, vars{}
	ok := loadEnv(d, name, all)
	for _, n := range names {
		v[n] = all[n]
	}
	want := seal(v)
	return v, ok && slices.Contains([]string{"1", "2", "3"}, v["interlock_seq"]) && v["interlock_begin"] == want && v["interlock_end"] == want
}

// Script is the model of grub.cfg. It returns the slots that are started, one after
// the other until one loads.
func Script(d *otatest.Disk) []string {
	one, first := readBlock(d, Env)
	two, second := readBlock(d, Env2)
	v, newest, older := one, Env, Env2
	if second && (!first || slices.Contains([]string{"12", "23", "31"}, one["interlock_seq"]+two["interlock_seq"])) {
		v, newest, older = two, Env2, Env
	}
	pick, spare := "", ""
	if first || second {
		if pick, spare = choose(v); pick == "" {
			for _, slot := range []string{"A", "B"} {
				if v["interlock_trial"] != slot {
					v[slot+"_TRY"] = "0"
				}
			}
			pick, spare = choose(v)
		}
	}
	if pick == "" {
		return []string{"A", "B"}
	}
	trial := v["interlock_trial"] == pick
	v[pick+"_TRY"] = map[string]string{"0": "1", "1": "2", "2": "3", "3": "4", "4": "5", "5": "6", "6": "7"}[v[pick+"_TRY"]]
	if v[pick+"_TRY"] == "" {
		v[pick+"_TRY"] = "8"
	}
	v["interlock_seq"] = map[string]string{"1": "2", "2": "3", "3": "1"}[v["interlock_seq"]]
	v["interlock_begin"], v["interlock_end"] = seal(v), seal(v)
	counted := false
	if saveEnv(d, older, v, names...) {
		if back, whole := readBlock(d, older); whole && back["interlock_begin"] == seal(v) {
			counted = true
			saveEnv(d, newest, v, names...)
		}
	}
	switch {
	case spare == "":
		return []string{pick}
	case !counted && trial:
		return []string{spare}
	}
	return []string{pick, spare}
}

// choose returns the slot to start, and the other one if that is good.
func choose(v vars) (pick, spare string) {
	for _, slot := range strings.Fields(v["ORDER"]) {
		try := v[slot+"_TRY"]
		left := try != "" && try < "8"
		if v["interlock_trial"] == slot {
			left = try == "0"
		}
		if pick == "" && (slot == "A" || slot == "B") && v[slot+"_OK"] == "1" && left {
			pick = slot
		}
	}
	for _, slot := range []string{"A", "B"} {
		if slot != pick && v[slot+"_OK"] == "1" && v["interlock_trial"] != slot {
			spare = slot
		}
	}
	return pick, spare
}

// rauc is the model of a script as RAUC's documentation shows it: the first slot of
// ORDER with x_OK=1 and x_TRY=0 is started, after x_TRY=1 is written. With none left
// all get their start again.
func rauc(d *otatest.Disk) []string {
	v := vars{}
	if !loadEnv(d, Env, v) {
		return []string{"A", "B"}
	}
	for range 2 {
		for _, slot := range strings.Fields(v["ORDER"]) {
			if v[slot+"_OK"] == "1" && v[slot+"_TRY"] == "0" {
				v[slot+"_TRY"] = "1"
				saveEnv(d, Env, v, "A_TRY", "B_TRY")
				return []string{slot}
			}
		}
		v["A_TRY"], v["B_TRY"] = "0", "0"
	}
	return []string{"A", "B"}
}
