package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/interlock-energy/ota/bus/crash"
)

func TestMain(m *testing.M) {
	crash.Strict() // a panic is to be found, not answered
	testscript.Main(m, map[string]func(){"interlock": main})
}

// TestScripts runs the command lines in testdata as a person would, in processes
// of their own. UPDATE_SCRIPTS=1 writes the golden outputs anew.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"INTERLOCK_SERVER", "INTERLOCK_BUCKET", "INTERLOCK_TOKEN", "INTERLOCK_TOKEN_FILE", "SOURCE_DATE_EPOCH"} {
				e.Setenv(name, "")
			}
			e.Setenv("INTERLOCK_CA", "ca.pem")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":    exits,
			"flip":     flip,
			"cut":      cut,
			"filemode": fileMode,
			"fill":     fill,
			"await":    await,
			"esp32app": esp32App,
			"otadata":  otadata,
			"erase":    erase,
			"nofile":   nofile,
			"part":     part,
			"put":      put,
			"word":     word,
		},
	})
}

// exits CODE COMMAND... runs a command that must end with exactly this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		text := err.Error()
		n, convErr := strconv.Atoi(strings.TrimPrefix(text, "exit status "))
		if convErr != nil {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = n
	}
	if strings.Contains(ts.ReadFile("stderr"), "goroutine ") { // a panic ends with 2, which is usage as well
		ts.Fatalf("the command panicked")
	}
	if got != want || neg {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// flip FILE OFFSET inverts a bit; a negative offset counts from the end.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	name := ts.MkAbs(args[0])
	b, err := os.ReadFile(name)
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	ts.Check(os.WriteFile(name, b, 0o644))
}

// cut FILE BYTES takes bytes away from the end.
func cut(ts *testscript.TestScript, neg bool, args []string) {
	name := ts.MkAbs(args[0])
	info, err := os.Stat(name)
	ts.Check(err)
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(name, info.Size()-n))
}

// filemode MODE FILE compares a file's permissions.
func fileMode(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// fill FILE BYTES writes a file with bytes that repeat at no power of two.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i % 251)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

// await FILE TEXT waits until a file has a text in it, as a background process
// that was started before will write.
func await(ts *testscript.TestScript, neg bool, args []string) {
	deadline := time.Now().Add(time.Minute)
	for {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && strings.Contains(string(b), args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not have %q after a minute: %q, %v", args[0], args[1], b, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
