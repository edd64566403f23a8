package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/bundle"
	"github.com/interlock-energy/ota/gate/bms"
	"github.com/interlock-energy/ota/internal/control"
	"github.com/interlock-energy/ota/internal/durable"
	"github.com/interlock-energy/ota/internal/evidence"
)

const (
	maxAsked = 32               // commands that wait for the attempt which they cause
	oldAsked = 15 * time.Minute // what was asked for longer ago has not caused it
	maxSteps = 200              // of one quiesce or resume

	// longestRestartLine is how long the line may take that stands between the gate's
	// last yes and the restart.
	longestRestartLine = time.Second
)

// witness stands between the manager and what it works with, and writes evidence of
// what passes. Before the first byte is written and before the restart no evidence
// means no: the gate's yes is worth nothing if nobody can show it. From the restart on
// evidence that cannot be written holds nothing up, because then the safe thing is to
// finish or to go back.
type witness struct {
	a    *Agent
	log  *evidence.Log
	keys *bundle.Keys // nil: signatures are not verified

	mu      sync.Mutex
	version string              // that runs
	record  ota.Record          // as it was saved last
	booted  string              // attempt and boot of the last line of that kind
	signers map[string][]string // by the digest of the manifest
	waiting []waiting           // for the next attempt
	decided *bms.Decision       // the last of the battery's part of the gate
	action  evidence.Kind       // quiesce or resume, while one is under way
	steps   int                 // of it
}

// waiting is a line that was due before there was an attempt.
type waiting struct {
	kind evidence.Kind
	body any
	at   time.Time
}

func newWitness(a *Agent) *witness {
	c := &a.cfg
	w := &witness{a: a, signers: map[string][]string{}, log: evidence.Open(evidence.Config{Dir: a.evidenceDir(),
		Device: c.Device.ID, Product: c.Device.Product, Agent: c.Version, Now: a.now, Log: a.log})}
	if valueOr(c.VerifySignature, true) {
		w.keys, _ = newKeys(c) // newVerify has looked
	}
	if a.guard != nil {
		a.guard.Decided = w.decide
	}
	return w
}

func (a *Agent) evidenceDir() string { return filepath.Join(a.cfg.StateDir, "evidence") }

// evidenceOf returns the head hash of an attempt that has ended, "" if there is none.
// A report may be delivered long after, and by another process: the file is asked.
func (a *Agent) evidenceOf(attempt string) string {
	names, err := evidence.List(durable.OS{}, a.evidenceDir())
	if err != nil || attempt == "" {
		return ""
	}
	for _, name := range slices.Backward(names) {
		if !strings.Contains(name, attempt) {
			continue
		}
		data, err := evidence.ReadFile(durable.OS{}, a.evidenceDir(), name)
		if err != nil {
			return ""
		}
		lines, err := evidence.Parse(data)
		if err != nil || len(lines) == 0 || lines[len(lines)-1].Kind != evidence.KindEnd {
			return ""
		}
		return lines[len(lines)-1].Hash()
	}
	return ""
}

// watch returns c with the witness between the manager and everything that counts.
func (w *witness) watch(c ota.Config) ota.Config {
	w.mu.Lock()
	w.version = c.Version
	w.mu.Unlock()
	verify, gate := c.Verify, c.Gate
	c.Verify = func(signed []byte) (*ota.Manifest, error) {
		m, err := verify(signed)
		if err == nil {
			w.signed(m, signed)
		}
		return m, err
	}
	c.Gate = func(ctx context.Context, m *ota.Manifest, at ota.Moment) error {
		w.mu.Lock()
		w.decided = nil
		w.mu.Unlock()
		began := time.Now()
		err := gate(ctx, m, at)
		return w.answered(m, at, time.Since(began), err)
	}
	c.Slots = witnessedSlots{c.Slots, w}
	c.Store = witnessedStore{c.Store, w}
	c.Healthy = w.health(c.Healthy)
	c.Symptom = w.health(c.Symptom)
	c.Hooks.Suspend = w.act(evidence.KindQuiesce, c.Hooks.Suspend)
	c.Hooks.Resume = w.act(evidence.KindResume, c.Hooks.Resume)
	return c
}

// write writes a line that nothing depends on: the log says if it could not.
func (w *witness) write(kind evidence.Kind, body any) {
	defer w.a.alive.enter("writing evidence")()
	_ = w.log.Write(kind, body)
}

func (w *witness) signed(m *ota.Manifest, signed []byte) {
	ids, err := w.keys.Signers(signed)
	if err != nil {
		return // it was verified a moment ago
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.signers) > 64 {
		clear(w.signers)
	}
	w.signers[m.Digest] = ids
}

func (w *witness) decide(d bms.Decision) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.decided = &d
}

// allowed returns the reading on which the battery's part of the gate has just said yes.
func (w *witness) allowed() (bms.Reading, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.decided == nil || w.decided.Verdict != nil {
		return bms.Reading{}, errors.New("there is no reading that was allowed")
	}
	return w.decided.Reading, nil
}

// answered writes the gate's answer down, and returns what the manager is told.
func (w *witness) answered(m *ota.Manifest, at ota.Moment, took time.Duration, answer error) error {
	defer w.a.alive.enter("writing evidence")()
	w.mu.Lock()
	d, state := w.decided, w.record.State
	w.mu.Unlock()
	g := evidence.Gate{Moment: at, Yes: answer == nil, TookMS: took.Milliseconds()}
	if answer != nil {
		g.Code, g.Reason = codeOf(answer).Name(), answer.Error()
		if r, ok := errors.AsType[*ota.Refusal](answer); ok {
			g.Reason = r.Reason
		}
	}
	if m != nil && m.Limits != (ota.Limits{}) {
		g.Release = &m.Limits
	}
	if d != nil {
		describe(&g, d)
	}
	err := w.log.Gate(g)
	if err == nil && w.log.Attempt() == "" {
		err = errors.New("no attempt is open")
	}
	switch {
	case answer != nil:
		return answer
	case err == nil, state == ota.Trial, state == ota.Soak, state == ota.RollBack:
		return nil
	}
	return &ota.Refusal{Code: ota.ErrInternal, Reason: "evidence cannot be written: " + err.Error()}
}

// codeOf is the code of a refusal, which may be none: then time has to pass.
func codeOf(err error) ota.ErrorCode {
	if r, ok := errors.AsType[*ota.Refusal](err); ok {
		return r.Code
	}
	return ota.CodeOf(err)
}

// describe adds what the battery's part of the gate decided, and on what.
func describe(g *evidence.Gate, d *bms.Decision) {
	t := limits(d.Thresholds)
	g.Thresholds, g.Battery = &t, "yes"
	if d.Verdict != nil {
		g.Battery = d.Verdict.Error()
		if r, ok := errors.AsType[*ota.Refusal](d.Verdict); ok {
			g.Battery = r.Reason
		}
	}
	if d.Error != nil {
		g.Error = d.Error.Error()
		return
	}
	r := &d.Reading
	g.Source, g.Valid, g.Alarms, g.Warnings = r.Source, r.Valid, r.Alarms, r.Warnings
	g.Mode, g.Contactors, g.Control = string(r.Mode), string(r.Contactors), string(r.Control)
	if r.Beat != nil {
		g.Beat = &evidence.Beat{Count: r.Beat.Count, WithinMS: r.Beat.Within.Milliseconds()}
	}
	g.Signals = measured(r, d.At)
}

// measured returns the signals of r and of the other instruments, with their ages. A
// time that no file can hold is left out, and so is a value that is no number.
func measured(r *bms.Reading, now time.Time) (out []evidence.Signal) {
	alone := *r
	alone.Others = nil
	for _, s := range alone.Tell() {
		e := evidence.Signal{Name: s.Name, Value: s.Value, Unit: s.Unit, At: s.At, Source: s.Source}
		at := r.Signals[bms.Quantity(s.Name)].At
		if at.IsZero() {
			at = r.At
		}
		if !at.IsZero() {
			age := now.Sub(at).Milliseconds()
			e.AgeMS = &age
		}
		out = append(out, e)
	}
	for i := range r.Others {
		out = append(out, measured(&r.Others[i], now)...)
	}
	return out
}

func limits(t bms.Thresholds) evidence.Limits {
	l := evidence.Limits{MinSoC: t.MinSoC, MaxTemperature: t.MaxTemperature, MinTemperature: t.MinTemperature,
		MaxCurrent: t.MaxCurrent, MaxAgeMS: t.MaxAge.Milliseconds()}
	if j, err := json.Marshal(t); err == nil { // infinity is no JSON, and no reason to lose the line
		l.All = j
	}
	return l
}

// The wrappers below write lines, and else are the wrapped value.

type witnessedStore struct {
	ota.Store
	w *witness
}

// Load also ends what an earlier process could not.
func (s witnessedStore) Load() (ota.Record, error) {
	r, err := s.Store.Load()
	if err != nil {
		return r, err
	}
	w := s.w
	defer w.a.alive.enter("reading evidence")()
	w.mu.Lock()
	w.record = r
	w.mu.Unlock()
	current := ""
	if r.State != ota.Idle {
		current = r.Attempt
	}
	if err := w.log.Settle(current, func(attempt string) string { return howEnded(&r, attempt) }); err != nil {
		w.a.log.Warn("end the evidence of the last update", "error", err)
	}
	if current != "" {
		w.begin(&r)
	}
	return r, nil
}

// Save writes what is about to be saved before it is: a line may say what did not
// happen, when the power failed in between, but nothing happens that no line says.
func (s witnessedStore) Save(r ota.Record) error {
	w := s.w
	w.mu.Lock()
	old := w.record
	w.mu.Unlock()
	w.before(&old, &r)
	err := s.Store.Save(r)
	if err != nil {
		if old.State != r.State {
			w.write(evidence.KindState, evidence.State{From: old.State, To: r.State, Error: err.Error()})
		}
		return err
	}
	w.mu.Lock()
	w.record = r
	w.mu.Unlock()
	if r.State == ota.Idle {
		defer w.a.alive.enter("writing evidence")()
		if attempt := w.log.Attempt(); attempt != "" {
			_ = w.log.End(howEnded(&r, attempt)) // Settle ends it at the next start
		}
	}
	return nil
}

func (w *witness) before(old, r *ota.Record) {
	defer w.a.alive.enter("writing evidence")()
	news := r.Last != nil && (old.Last == nil || *old.Last != *r.Last)
	switch attempt := w.log.Attempt(); {
	case r.State != ota.Idle && attempt != r.Attempt:
		if attempt != "" { // a newer release takes its place
			w.write(evidence.KindState, evidence.State{From: old.State, To: ota.Idle})
			_ = w.log.End(howEnded(r, attempt))
		}
		w.begin(r)
	case r.State == ota.Idle && attempt == "" && news: // the bootloader went back long after the end
		_, _ = w.log.Begin(r.Last.ID, r.Last.Version)
	}
	if old.State != r.State {
		from := old.State
		if from == "" || old.Attempt != r.Attempt && r.State != ota.Idle {
			from = ota.Idle
		}
		w.write(evidence.KindState, evidence.State{From: from, To: r.State, Reason: r.Reason})
	}
	if r.State == ota.Idle && news {
		w.write(evidence.KindResult, evidence.Result{Report: *r.Last})
	}
}

// howEnded says how an attempt ended that is not under way any more.
func howEnded(r *ota.Record, attempt string) string {
	if r.Last != nil && r.Last.ID == attempt {
		return string(r.Last.Result)
	}
	return "given up: the release was withdrawn, or another took its place"
}

// begin opens the evidence of the attempt in r, and writes what it begins with.
func (w *witness) begin(r *ota.Record) {
	before, err := w.log.Begin(r.Attempt, r.Release.Version)
	if err != nil {
		w.a.log.Warn("begin the evidence of an update", "error", err)
	}
	w.mu.Lock()
	boot := w.a.alive.boot.Load()
	again := boot == nil || w.booted == r.Attempt+" "+boot.ID
	if !again {
		w.booted = r.Attempt + " " + boot.ID
	}
	version, lines := w.version, w.waiting
	if !before {
		w.waiting = nil
	}
	w.mu.Unlock()
	if !again {
		w.write(evidence.KindBooted, evidence.Booted{Slot: boot.Slot, BootID: boot.ID, Version: version, FellBack: boot.FellBack, Trial: boot.Trial})
	}
	if before {
		return
	}
	w.write(evidence.KindManifest, w.manifest(r))
	for _, l := range lines {
		if l.kind == evidence.KindThresholds || time.Since(l.at) < oldAsked {
			w.write(l.kind, l.body)
		}
	}
	switch {
	case r.Back:
	case w.a.cfg.AutomaticUpdate:
		w.write(evidence.KindAsked, evidence.Asked{For: "install and apply", By: "automatic_update"})
	case r.Release.Mandatory:
		w.write(evidence.KindAsked, evidence.Asked{For: "install and apply", By: "mandatory release"})
	}
}

func (w *witness) manifest(r *ota.Record) evidence.Manifest {
	u := r.Release.Info()
	m := evidence.Manifest{Digest: r.Digest, Version: u.Version, From: r.From, SecurityVersion: u.SecurityVersion, Created: u.Created,
		Expires: u.Expires, Mandatory: u.Mandatory, Limits: u.Limits, Images: u.Images, Back: r.Back,
		Threshold: w.keys.Threshold(), Sources: w.offeredBy(r.Digest)}
	w.mu.Lock()
	ids, ok := w.signers[r.Digest]
	w.mu.Unlock()
	switch {
	case r.Back:
		m.Unknown = "it is the previous release, which was verified when it was installed"
	case w.keys == nil:
		m.Unknown = "verify_signature is false"
	case !ok:
		m.Unknown = "it was verified by an earlier process"
	}
	m.Signers = ids
	return m
}

// offeredBy returns the sources that offered a release, as far as is known.
func (w *witness) offeredBy(digest string) (names []string) {
	all := w.a.sourceNames()
	w.a.mu.Lock()
	set := w.a.sources
	w.a.mu.Unlock()
	if len(all) == 1 {
		return all
	}
	if set == nil {
		return nil
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, i := range set.offered[digest] {
		if i < len(all) {
			names = append(names, all[i])
		}
	}
	return names
}

type witnessedSlots struct {
	ota.Slots
	w *witness
}

func (s witnessedSlots) Try(ctx context.Context, slot string) error {
	return s.told("try", slot, func() error { return s.Slots.Try(ctx, slot) })
}

func (s witnessedSlots) MarkGood(ctx context.Context) error {
	slot := ""
	if b := s.w.a.alive.boot.Load(); b != nil {
		slot = b.Slot
	}
	return s.told("mark good", slot, func() error { return s.Slots.MarkGood(ctx) })
}

func (s witnessedSlots) told(do, slot string, f func() error) error {
	s.w.write(evidence.KindBootloader, evidence.Bootloader{Do: do, Slot: slot, Phase: "begun"})
	err := f()
	line := evidence.Bootloader{Do: do, Slot: slot, Phase: "done"}
	if err != nil {
		line.Phase, line.Error = "failed", err.Error()
	}
	s.w.write(evidence.KindBootloader, line)
	return err
}

func (s witnessedSlots) Reboot(ctx context.Context) error {
	slot := ""
	if b := s.w.a.alive.boot.Load(); b != nil {
		slot = b.Slot
	}
	s.w.mu.Lock()
	state := s.w.record.State
	s.w.mu.Unlock()
	began := time.Now()
	s.w.write(evidence.KindRestart, evidence.Restart{Slot: slot})
	err := error(nil)
	if took := time.Since(began); state == ota.Activating && took > longestRestartLine { // a way back is not held up
		err = fmt.Errorf("write the evidence of the restart: it took %v, want at most %v, for the gate's yes is from before", took.Round(time.Millisecond), longestRestartLine)
	} else {
		err = s.Slots.Reboot(ctx)
	}
	if err != nil {
		s.w.write(evidence.KindRestart, evidence.Restart{Slot: slot, Error: err.Error()})
	}
	return err
}

// Probe implements [ota.Prober].
func (s witnessedSlots) Probe(ctx context.Context) (ota.Rollback, error) {
	if p, ok := s.Slots.(ota.Prober); ok {
		return p.Probe(ctx)
	}
	return ota.Rollback{State: ota.RollbackUnknown, Why: "this kind of slots cannot tell"}, nil
}

// act writes down what a hook does; nil stays nil.
func (w *witness) act(kind evidence.Kind, hook func(context.Context) error) func(context.Context) error {
	if hook == nil {
		return nil
	}
	return func(ctx context.Context) error {
		w.mu.Lock()
		w.action, w.steps = kind, 0
		w.mu.Unlock()
		began := time.Now()
		w.write(kind, evidence.Action{Phase: "begun"})
		err := hook(ctx)
		w.mu.Lock()
		w.action = ""
		w.mu.Unlock()
		line := evidence.Action{Phase: "done", TookMS: time.Since(began).Milliseconds()}
		if err != nil {
			line.Phase, line.Error = "failed", err.Error()
		}
		w.write(kind, line)
		return err
	}
}

// step writes down what quiesce or resume does now, for people.
func (w *witness) step(text string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	kind := w.action
	w.steps++
	many := w.steps > maxSteps
	w.mu.Unlock()
	if kind != "" && !many {
		w.write(kind, evidence.Action{Phase: "step", Step: text})
	}
}

// collector gathers what each check says, for one question to all of them.
type collector struct {
	mu     sync.Mutex
	checks []evidence.Check
}

type collectorKey struct{}

// noteCheck is told how one check ended.
func noteCheck(ctx context.Context, name string, took time.Duration, err error) {
	c, ok := ctx.Value(collectorKey{}).(*collector)
	if !ok {
		return
	}
	k := evidence.Check{Name: name, OK: err == nil, TookMS: took.Milliseconds()}
	if err != nil {
		k.Error = err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks = append(c.checks, k)
}

// health writes down what ask says; nil stays nil.
func (w *witness) health(ask func(context.Context) error) func(context.Context) error {
	if ask == nil {
		return nil
	}
	return func(ctx context.Context) error {
		c := &collector{}
		err := ask(context.WithValue(ctx, collectorKey{}, c))
		c.mu.Lock()
		defer c.mu.Unlock()
		slices.SortFunc(c.checks, func(a, b evidence.Check) int { return strings.Compare(a.Name, b.Name) })
		h := evidence.Health{OK: err == nil, Checks: c.checks}
		if err != nil {
			h.Error = err.Error()
		}
		defer w.a.alive.enter("writing evidence")()
		_ = w.log.Health(h) // what is healthy is not made sick by a full medium
		return err
	}
}

// asked writes down a command, or keeps it for the attempt that it causes.
func (w *witness) asked(p control.Peer, c control.Command) {
	if w == nil {
		return
	}
	w.later(evidence.KindAsked, asker(p, string(c)), func(at time.Time) any { a := asker(p, string(c)); a.At = at; return a })
}

func asker(p control.Peer, what string) evidence.Asked {
	a := evidence.Asked{For: what, By: "a program that holds the agent"}
	if p.Bus != "" {
		a.By = p.Bus
	}
	if p.Known {
		a.By, a.UID, a.PID = "control socket", &p.UID, &p.PID
		if u, err := user.LookupId(strconv.FormatUint(uint64(p.UID), 10)); err == nil {
			a.User = u.Username
		}
	}
	return a
}

// changed writes down new limits on the battery, or keeps them for the next attempt.
func (w *witness) changed(p control.Peer, old, now bms.Thresholds) {
	if w == nil {
		return
	}
	t := evidence.Thresholds{Old: limits(old), New: limits(now), By: asker(p, "thresholds")}
	w.later(evidence.KindThresholds, t, func(at time.Time) any { t.At = at; return t })
}

func (w *witness) later(kind evidence.Kind, body any, dated func(time.Time) any) {
	if w.log.Attempt() != "" {
		w.write(kind, body)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = append(w.waiting, waiting{kind, dated(w.a.now().Round(0).UTC()), time.Now()})
	w.waiting = w.waiting[max(0, len(w.waiting)-maxAsked):]
}

// CommandBy implements [control.PeerDevice].
func (a *Agent) CommandBy(p control.Peer, c control.Command) control.Call {
	a.witness.asked(p, c)
	return a.command(c)
}

// SetThresholdsBy implements [control.PeerDevice].
func (a *Agent) SetThresholdsBy(p control.Peer, c control.ThresholdsChange) (control.Thresholds, error) {
	old, now, err := a.setThresholds(c)
	if err == nil && !reflect.DeepEqual(old, now) {
		a.witness.changed(p, old, now)
	}
	return shown(now), err
}

// Evidence implements [control.Archive].
func (a *Agent) Evidence() ([]control.EvidenceFile, error) {
	names, err := evidence.List(durable.OS{}, a.evidenceDir())
	if err != nil {
		return nil, err
	}
	out := []control.EvidenceFile{}
	for _, name := range names {
		data, err := evidence.ReadFile(durable.OS{}, a.evidenceDir(), name)
		if err != nil {
			return nil, fmt.Errorf("list the evidence: %w", err)
		}
		out = append(out, control.EvidenceFile{Name: name, Size: int64(len(data))})
	}
	return out, nil
}

// EvidenceFile implements [control.Archive].
func (a *Agent) EvidenceFile(name string) ([]byte, error) {
	return evidence.ReadFile(durable.OS{}, a.evidenceDir(), name)
}

// evidenceHead is where the evidence stands, for the status; nil: there is none yet.
func (a *Agent) evidenceHead() *control.EvidenceHead {
	if a.witness == nil {
		return nil
	}
	h := a.witness.log.Head()
	if h == (evidence.Head{}) {
		return nil
	}
	return &control.EvidenceHead{File: h.File, Hash: h.Hash, Lines: h.Lines, Error: h.Error}
}
