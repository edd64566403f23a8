package uboot_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/otatest"
	"github.com/interlock-energy/ota/slot/uboot"
)

// tools is an environment in files that mkenvimage has made, with its real readers
// and writers. They all use the one lock of the system.
type tools struct {
	*testing.T
	print, set string // programs
	dir        string
	cfg        uboot.Config
	*uboot.Slots
}

func newTools(t *testing.T, size int64, isRedundant bool, vars map[string]string) *tools {
	t.Helper()
	v := &tools{T: t, print: otatest.Tool(t, "fw_printenv"), set: otatest.Tool(t, "fw_setenv"), dir: t.TempDir()}
	mkenvimage := otatest.Tool(t, "mkenvimage")
	if l, err := durable.Lock(uboot.DefaultLock); err != nil && os.Getenv("INTERLOCK_TOOLS") == "1" {
		t.Fatal(err)
	} else if err != nil {
		t.Skipf("NOT TESTED: fw_setenv needs its lock: %v", err)
	} else {
		l.Close()
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		fmt.Fprintf(&text, "%s=%s\n", name, vars[name])
	}
	v.file("text", text.String())
	args, names := []string{}, []string{"env0"}
	if isRedundant {
		args, names = []string{"-r"}, []string{"env0", "env1"}
	}
	config := ""
	for _, name := range names {
		v.run(mkenvimage, append(args, "-s", strconv.FormatInt(size, 10), "-o", v.path(name), v.path("text"))...)
		v.cfg.Env = append(v.cfg.Env, uboot.Place{Path: v.path(name), Size: size})
		config += fmt.Sprintf("%s 0x0 %#x\n", v.path(name), size)
	}
	v.file("config", config)
	v.cfg.AllowSingle = true
	v.cfg.Log = slog.New(slog.DiscardHandler)
	v.cfg.Components = map[string][2]string{"controller": {v.path("a"), v.path("b")}}
	v.cfg.Booted = func(context.Context) (string, string, error) { return "A", "boot 1", nil }
	var err error
	v.Slots, err = uboot.Open(v.cfg)
	must(t, err)
	return v
}

func (v *tools) path(name string) string { return filepath.Join(v.dir, name) }

func (v *tools) file(name, content string) {
	v.Helper()
	must(v.T, os.WriteFile(v.path(name), []byte(content), 0o600))
}

func (v *tools) run(name string, args ...string) string {
	v.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		v.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, stderr.Bytes())
	}
	return string(out)
}

// printenv returns what fw_printenv reads. Values must not have newlines.
func (v *tools) printenv() map[string]string {
	v.Helper()
	all := map[string]string{}
	for line := range strings.Lines(v.run(v.print, "-c", v.path("config"))) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		all[name] = value
	}
	return all
}

// setenv lets fw_setenv set variables in one batch.
func (v *tools) setenv(vars map[string]string) {
	v.Helper()
	var text strings.Builder
	for name, value := range vars {
		fmt.Fprintf(&text, "%s=%s\n", name, value)
	}
	v.file("batch", text.String())
	v.run(v.set, "-c", v.path("config"), "-s", v.path("batch"))
}

// wantBoth compares what both readers read.
func (v *tools) wantBoth(want map[string]string, when string) {
	v.Helper()
	ours, err := v.All()
	must(v.T, err)
	if !maps.Equal(ours, want) {
		v.Fatalf("%s: got %q, want %q", when, ours, want)
	}
	if theirs := v.printenv(); !maps.Equal(theirs, want) {
		v.Fatalf("%s: fw_printenv got %q, want %q", when, theirs, want)
	}
}

// randomVariables are some that are set and some that are deleted. Many values of
// real environments are scripts.
func randomVariables(r *rand.Rand) map[string]string {
	values := []string{"", "1", "run mender_altbootcmd; run bootcmd", "é ünï ☃ \xff", `"quoted" $x ${y} \`, "a=b=c", "  spaces", "#no comment", strings.Repeat("long ", 40), "0x42000000", "\t"}
	names := []string{"BOOT_ORDER", "bootcmd", "ethaddr", "a.b-c_d", "x", "UPPER", "Ünï", "1", "interlock_try", "z"}
	vars := map[string]string{}
	for range 1 + r.IntN(5) {
		vars[names[r.IntN(len(names))]] = values[r.IntN(len(values))]
	}
	return vars
}

func apply(to, vars map[string]string) {
	maps.Copy(to, vars)
	maps.DeleteFunc(to, func(_, value string) bool { return value == "" })
}

// TestTools writes by turns with fw_setenv and with this package, in any order, past
// the point where the flags begin anew, and reads with both.
func TestTools(t *testing.T) {
	for _, c := range []struct {
		isRedundant bool
		size        int64
		saves       int
	}{{true, 0x1000, 220}, {true, 1001, 40}, {false, 0x4000, 40}} {
		t.Run(fmt.Sprintf("redundant %v, %d bytes", c.isRedundant, c.size), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(c.size), 1))
			want := map[string]string{"BOOT_ORDER": "A B", "BOOT_A_LEFT": "3"}
			v := newTools(t, c.size, c.isRedundant, want)
			v.wantBoth(want, "mkenvimage")
			for i := range c.saves {
				vars := randomVariables(r)
				who := "we"
				if r.IntN(2) == 0 {
					who = "fw_setenv"
					v.setenv(vars)
				} else if err := v.Set(vars); err != nil {
					t.Fatal(err)
				}
				apply(want, vars)
				v.wantBoth(want, fmt.Sprintf("save %d, by %s", i+1, who))
			}
		})
	}
}

// TestToolsWithACopyDamaged damages each copy after each writer. Both readers find
// the other copy, and after our next write both copies are valid again.
func TestToolsWithACopyDamaged(t *testing.T) {
	want := map[string]string{"a": "1"}
	v := newTools(t, 0x1000, true, want)
	for i := range 20 {
		must(t, v.Set(map[string]string{"n": strconv.Itoa(i)}))
		want["n"] = strconv.Itoa(i)
		name := fmt.Sprint("env", i%2)
		block, err := os.ReadFile(v.path(name))
		must(t, err)
		block[100+i] ^= 1
		v.file(name, string(block))
		v.wantBoth(want, "damaged "+name)
		if i%3 == 0 {
			v.setenv(map[string]string{"m": strconv.Itoa(i)}) // over the damaged one
			want["m"] = strconv.Itoa(i)
			v.wantBoth(want, "after fw_setenv")
		}
	}
}

// TestToolsBoolean reads with fw_printenv what was written with flags for flash. In
// files it knows incremental flags only, which say the same of 1 and 0.
func TestToolsBoolean(t *testing.T) {
	want := map[string]string{"a": "1"}
	v := newTools(t, 0x1000, true, want)
	v.cfg.Flags = uboot.Boolean
	var err error
	v.Slots, err = uboot.Open(v.cfg)
	must(t, err)
	for i := range 5 {
		must(t, v.Set(map[string]string{"n": strconv.Itoa(i)}))
		want["n"] = strconv.Itoa(i)
		v.wantBoth(want, fmt.Sprint("save ", i+1))
	}
}

// TestToolsChoose compares which of two valid copies counts, for many pairs of flags.
func TestToolsChoose(t *testing.T) {
	v := newTools(t, 0x400, true, map[string]string{"copy": "0"})
	r := rand.New(rand.NewPCG(1, 2))
	pairs := [][2]byte{{1, 3}, {255, 0}, {0, 255}, {254, 0}, {128, 127}, {9, 9}, {255, 255}, {255, 1}}
	for range 60 {
		pairs = append(pairs, [2]byte{byte(r.IntN(256)), byte(r.IntN(256))})
	}
	for _, flags := range pairs {
		for i := range 2 {
			e := &uboot.Env{Flags: flags[i]}
			must(t, e.Set("copy", strconv.Itoa(i)))
			block, err := e.Encode(0x400, redundant)
			must(t, err)
			v.file(fmt.Sprint("env", i), string(block))
		}
		v.wantBoth(map[string]string{"copy": strconv.Itoa(uboot.Newest(uboot.Incremental, flags))}, fmt.Sprint("flags ", flags))
	}
}

// TestToolsTogether lets fw_setenv and this package write at the same time. With the
// lock of both, no change is lost.
func TestToolsTogether(t *testing.T) {
	want := map[string]string{"a": "1"}
	v := newTools(t, 0x1000, true, want)
	const n = 25
	var both sync.WaitGroup
	both.Go(func() {
		for i := range n {
			if out, err := exec.Command(v.set, "-c", v.path("config"), fmt.Sprint("theirs", i), "1").CombinedOutput(); err != nil {
				t.Errorf("fw_setenv: %v: %s", err, out)
			}
		}
	})
	for i := range n {
		if err := v.Set(map[string]string{fmt.Sprint("ours", i): "1"}); err != nil {
			t.Error(err)
		}
	}
	both.Wait()
	for i := range n {
		want[fmt.Sprint("ours", i)], want[fmt.Sprint("theirs", i)] = "1", "1"
	}
	v.wantBoth(want, "in the end")
}
