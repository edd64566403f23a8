//go:build linux

package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	//go:embed testdata/modbus.c
	libmodbusPeer string
	//go:embed testdata/modbus.py
	pymodbusPeer string
)

// The makes of client and server.
const (
	interlock = "interlock"
	libmodbus = "libmodbus"
	pymodbus  = "pymodbus"
)

// modbusPairs are what is compared, with the floor first: what both sides of a plain C
// library make of the same machine.
var modbusPairs = []modbusPair{
	{libmodbus, libmodbus, 1},
	{interlock, interlock, 1},
	{interlock, libmodbus, 1},
	{libmodbus, interlock, 1},
	{interlock, pymodbus, 1},
	{pymodbus, interlock, 1},
	{pymodbus, pymodbus, 1},
	{interlock, interlock, 8},
}

// modbusPair is a client and a server, with so many requests in flight on one connection.
type modbusPair struct {
	Client   string `json:"client"`
	Server   string `json:"server"`
	InFlight int    `json:"in_flight"`
}

// modbusRun is one measurement: FC 3 over loopback TCP for a while. CPU times are user
// and system time of the whole process, per request.
type modbusRun struct {
	Requests  int64   `json:"requests"`
	Rate      float64 `json:"requests_per_second"`
	ClientCPU float64 `json:"client_cpu_us"`
	ServerCPU float64 `json:"server_cpu_us"`
}

// modbusRow is all that was measured of a pair, a run for each round.
type modbusRow struct {
	modbusPair
	Registers int         `json:"registers"`
	Runs      []modbusRun `json:"runs"`
}

// modbusReport is what -json prints.
type modbusReport struct {
	At          time.Time          `json:"at"`
	Processor   string             `json:"processor"`
	Processors  int                `json:"processors"`
	Go          string             `json:"go"`
	Seconds     float64            `json:"seconds"` // of each run
	Rows        []modbusRow        `json:"rows"`
	Allocations []modbusAllocation `json:"allocations"`
}

// benchModbus compares reads of registers: every pair in every round, beginning with
// another one each time, so that ratios within a round mean something. Rounds should
// be short and many: a busy machine changes within seconds.
func benchModbus(ctx context.Context, parent string, rounds int, seconds float64, asJSON bool) error {
	dir, err := os.MkdirTemp(parent, "interlock-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	commands, err := modbusCommands(ctx, dir)
	if err != nil {
		return err
	}
	servers := map[string]*modbusServer{}
	for name, command := range commands {
		s, err := startModbusServer(ctx, command)
		if err != nil {
			return fmt.Errorf("start the server of %s: %w", name, err)
		}
		defer s.stop()
		servers[name] = s
	}
	report := modbusReport{At: time.Now().UTC(), Processor: processor(), Processors: runtime.NumCPU(), Go: runtime.Version(), Seconds: seconds}
	for _, registers := range []int{125, 1} {
		for _, p := range modbusPairs {
			report.Rows = append(report.Rows, modbusRow{modbusPair: p, Registers: registers})
		}
	}
	for rows := range slices.Chunk(report.Rows, len(modbusPairs)) {
		for i := range rounds {
			for j := range rows {
				row := &rows[(i+j)%len(rows)]
				r, err := row.measure(ctx, commands[row.Client], servers[row.Server], seconds)
				if err != nil {
					return fmt.Errorf("%s asks %s for %d registers: %w", row.Client, row.Server, row.Registers, err)
				}
				row.Runs = append(row.Runs, r)
				fmt.Fprintf(os.Stderr, "round %d of %d  %3d registers, %s (%d in flight) to %s: %.0f/s\n", i+1, rounds, row.Registers, row.Client, row.InFlight, row.Server, r.Rate)
			}
		}
	}
	if report.Allocations, err = modbusAllocations(ctx); err != nil {
		return err
	}
	if asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(report)
	}
	report.print()
	return nil
}

// modbusCommands are how to start each make's programs, followed by "serve" or "ask".
func modbusCommands(ctx context.Context, dir string) (map[string][]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	source, program, script := filepath.Join(dir, "modbus.c"), filepath.Join(dir, "modbus"), filepath.Join(dir, "modbus.py")
	if err := os.WriteFile(source, []byte(libmodbusPeer), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(script, []byte(pymodbusPeer), 0o644); err != nil {
		return nil, err
	}
	const headers = "/usr/include/modbus" // Debian's, which does without pkg-config
	if out, err := exec.CommandContext(ctx, "gcc", "-O2", "-I"+headers, "-o", program, source, "-lmodbus").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile the peer (Debian packages gcc, libmodbus-dev): %w: %s", err, out)
	}
	return map[string][]string{
		interlock: {self, "-child", "modbus"},
		libmodbus: {program},
		pymodbus:  {"/usr/bin/python3", script}, // the system's, for which Debian's python3-pymodbus is
	}, nil
}

// modbusServer is a server in a process of its own.
type modbusServer struct {
	cmd  *exec.Cmd
	port int
}

func startModbusServer(ctx context.Context, command []string) (*modbusServer, error) {
	s := &modbusServer{cmd: exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], "serve")...)}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := fmt.Fscanf(out, "ready %d\n", &s.port); err != nil {
		s.stop()
		return nil, fmt.Errorf("read its port: %w", err)
	}
	return s, nil
}

func (s *modbusServer) stop() { s.cmd.Process.Kill(); s.cmd.Wait() }

// measure runs a client. It connects, checks all values and warms up, says "ready" and
// waits; asks for so many seconds, says how many answers it got in how many nanoseconds,
// and stays until its CPU time was read.
func (r *modbusRow) measure(ctx context.Context, command []string, server *modbusServer, seconds float64) (modbusRun, error) {
	args := slices.Concat(command[1:], []string{"ask", strconv.Itoa(server.port), strconv.Itoa(r.Registers), strconv.FormatFloat(seconds, 'f', -1, 64)})
	if r.InFlight > 1 {
		args = append(args, strconv.Itoa(r.InFlight))
	}
	cmd := exec.CommandContext(ctx, command[0], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return modbusRun{}, err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return modbusRun{}, err
	}
	if err := cmd.Start(); err != nil {
		return modbusRun{}, err
	}
	run, err := converse(in, bufio.NewReader(pipe), cmd.Process.Pid, server.cmd.Process.Pid)
	in.Close()
	if err != nil {
		cmd.Process.Kill()
	}
	if ended := cmd.Wait(); ended != nil {
		return run, &commandError{command[0], ended, said.String()}
	}
	return run, err
}

// converse lets a client ask, and reads what both processes have spent on it.
func converse(in io.Writer, out *bufio.Reader, client, server int) (modbusRun, error) {
	line, err := out.ReadString('\n')
	if err != nil || line != "ready\n" {
		return modbusRun{}, fmt.Errorf("got %q, %v, want ready", line, err)
	}
	clientBefore, _, err := spent(client)
	if err != nil {
		return modbusRun{}, err
	}
	serverBefore, _, err := spent(server)
	if err != nil {
		return modbusRun{}, err
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		return modbusRun{}, err
	}
	var requests, nanoseconds int64
	if _, err := fmt.Fscanf(out, "%d %d\n", &requests, &nanoseconds); err != nil {
		return modbusRun{}, fmt.Errorf("read how many requests were answered: %w", err)
	}
	if requests <= 0 || nanoseconds <= 0 {
		return modbusRun{}, fmt.Errorf("read how many requests were answered: got %d in %d ns", requests, nanoseconds)
	}
	clientAfter, _, err := spent(client)
	if err != nil {
		return modbusRun{}, err
	}
	serverAfter, _, err := spent(server)
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(requests) }
	return modbusRun{Requests: requests, Rate: float64(requests) / (float64(nanoseconds) / 1e9),
		ClientCPU: each(clientAfter - clientBefore), ServerCPU: each(serverAfter - serverBefore)}, err
}

// print writes a table for each number of registers. The first row of each is the floor.
func (r *modbusReport) print() {
	rounds := len(r.Rows[0].Runs)
	fmt.Printf("\nFC 3 over loopback TCP, one connection, median of %d alternating rounds of %g s (the middle half of them)\n%s, %d processors, %s, %s\n",
		rounds, r.Seconds, r.Processor, r.Processors, r.Go, r.At.Format(time.DateOnly))
	var floor *modbusRow
	for i := range r.Rows {
		row := &r.Rows[i]
		if floor == nil || floor.Registers != row.Registers {
			floor = row
			fmt.Printf("\n| registers | client | server | in flight | requests/s | registers/s | rate / floor | client CPU µs | server CPU µs | CPU / floor |\n|---|---|---|---|---|---|---|---|---|---|\n")
		}
		var rate, ratio, client, server, cpu []float64
		for j, run := range row.Runs {
			f := floor.Runs[j]
			rate, ratio = append(rate, run.Rate), append(ratio, run.Rate/f.Rate)
			client, server = append(client, run.ClientCPU), append(server, run.ServerCPU)
			cpu = append(cpu, (run.ClientCPU+run.ServerCPU)/(f.ClientCPU+f.ServerCPU))
		}
		fmt.Printf("| %d | %s | %s | %d | %s | %.0f | %s | %s | %s | %s |\n", row.Registers, row.Client, row.Server, row.InFlight,
			middle("%.0f", rate), median(rate)*float64(row.Registers), middle("%.2f", ratio), middle("%.1f", client), middle("%.1f", server), middle("%.2f", cpu))
	}
	fmt.Println()
	for _, a := range r.Allocations {
		fmt.Printf("%s: %.2f allocations per request\n", a.What, a.PerRequest)
	}
}

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

// middle is the median with the middle half, which says more of many short runs than
// the extremes do: those are of who else was at work.
func middle(format string, v []float64) string {
	s := slices.Sorted(slices.Values(v))
	return fmt.Sprintf(format+" ("+format+" to "+format+")", s[len(s)/2], s[len(s)/4], s[len(s)*3/4])
}

// processor is what the first processor calls itself (proc_cpuinfo(5)).
func processor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}
