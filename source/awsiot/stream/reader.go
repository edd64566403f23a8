package stream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/interlock-energy/ota"
)

// maxBad is after how many answers to our own requests that cannot be used it is
// clear that this will not mend.
const maxBad = 8

// reader is what Open returns. Its goroutine asks; the connection's brings blocks.
type reader struct {
	ctx    context.Context
	cancel context.CancelFunc
	conn   Conn
	o      Options
	token  string    // in front of all our tokens
	start  time.Time // times in tokens count from here
	unsub  []func()
	ended  chan struct{} // closed when run has ended
	came   chan struct{} // one token: there may be something to read
	asking chan struct{} // one token: there may be something to ask for

	mu   sync.Mutex
	w    *window
	skip int // bytes of the next block that are read, or before Offset
	bad  int
	err  error // why it ended
}

func (o *Options) prefix() string { return "$aws/things/" + o.Thing + "/streams/" + o.Stream + "/" }

// Open returns the file from o.Offset on. Cancelling ctx unblocks a Read. Close
// it when done. Errors of Read wrap [ota.ErrConnectivity] if nothing comes for
// o.Patience, which Open with another offset can mend, or are a [*Rejected].
func Open(ctx context.Context, conn Conn, o Options) (io.ReadCloser, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("open stream %.64q: %w: %w", o.Stream, ota.ErrInternal, err)
	}
	r := &reader{conn: conn, o: o, token: newToken(), start: time.Now(), w: newWindow(&o),
		ended: make(chan struct{}), came: make(chan struct{}, 1), asking: make(chan struct{}, 1)}
	r.skip = int(o.Offset % int64(o.BlockSize))
	if o.Offset == o.Size {
		r.w.base, r.w.fresh = r.w.end, r.w.end
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	for topic, handle := range map[string]func([]byte){"data/": r.data, "rejected/": r.rejected} {
		unsub, err := conn.Subscribe(r.ctx, o.prefix()+topic+string(o.Format), func(_ string, b []byte) { handle(b) })
		if err != nil {
			close(r.ended)
			r.Close()
			return nil, fmt.Errorf("open stream %s: subscribe: %w", o.Stream, networkError(err))
		}
		r.unsub = append(r.unsub, unsub)
	}
	go r.run()
	return r, nil
}

// check fills in defaults and says what is wrong with o.
func (o *Options) check() error {
	if err := o.checkNames(); err != nil {
		return err
	}
	if o.BlockSize == 0 {
		o.BlockSize = 16 << 10
	}
	if o.Window == 0 {
		o.Window = max(256<<10, o.BlockSize)
	}
	if o.Patience == 0 {
		o.Patience = 2 * time.Minute
	}
	switch {
	case o.FileID < 0 || o.FileID > MaxFileID:
		return fmt.Errorf("file %d, want 0 to %d", o.FileID, MaxFileID)
	case o.Size < 1 || o.Size > MaxFileSize:
		return fmt.Errorf("file of %d bytes, want 1 to %d; larger ones can be had over HTTP only", o.Size, MaxFileSize)
	case o.Offset < 0 || o.Offset > o.Size:
		return fmt.Errorf("offset %d, want 0 to %d", o.Offset, o.Size)
	case o.Version < 0:
		return fmt.Errorf("version %d, want 0 or more", o.Version)
	case o.BlockSize < MinBlockSize || o.BlockSize > MaxBlockSize:
		return fmt.Errorf("block size %d, want %d to %d bytes", o.BlockSize, MinBlockSize, MaxBlockSize)
	case o.Window < o.BlockSize || o.Window > MaxFileSize:
		return fmt.Errorf("window of %d bytes, want %d, which is a block, to %d", o.Window, o.BlockSize, MaxFileSize)
	case o.Patience < 0:
		return fmt.Errorf("patience %v, want more than 0", o.Patience)
	}
	return nil
}

// checkNames keeps a name from making another topic of it (AWS IoT: things are
// [a-zA-Z0-9:_-], at most 128; streams [a-zA-Z0-9_-], at most 128).
func (o *Options) checkNames() error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	if o.Thing == "" || len(o.Thing) > 128 || strings.Trim(o.Thing, letters+":") != "" {
		return fmt.Errorf("thing %.130q, want 1 to 128 letters, digits, and : _ -", o.Thing)
	}
	if o.Stream == "" || len(o.Stream) > 128 || strings.Trim(o.Stream, letters) != "" {
		return fmt.Errorf("stream %.130q, want 1 to 128 letters, digits, and _ -", o.Stream)
	}
	if o.Format == "" {
		o.Format = CBOR
	}
	if o.Format != CBOR && o.Format != JSON {
		return fmt.Errorf("format %q, want %q or %q", o.Format, CBOR, JSON)
	}
	return nil
}

func newToken() string {
	b := make([]byte, 6)
	rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}

func networkError(err error) error {
	if _, ok := errors.AsType[ota.ErrorCode](err); ok || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", ota.ErrConnectivity, err)
}

// Read implements [io.Reader].
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := r.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-r.came:
		case <-r.ctx.Done():
			return 0, fmt.Errorf("read stream %s: %w", r.o.Stream, context.Cause(r.ctx))
		}
	}
}

func (r *reader) take(p []byte) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n < len(p) {
		data := r.w.next()
		if data == nil {
			break
		}
		c := copy(p[n:], data[r.skip:])
		n, r.skip = n+c, r.skip+c
		if r.skip == len(data) {
			r.w.drop()
			r.skip = 0
			signal(r.asking)
		}
	}
	switch {
	case n > 0:
		return n, nil
	case r.w.base == r.w.end:
		return 0, io.EOF
	}
	return 0, r.err
}

// Close implements [io.Closer]. Nothing is asked for after it.
func (r *reader) Close() error {
	r.cancel()
	<-r.ended
	r.mu.Lock()
	unsub := r.unsub
	r.unsub = nil
	r.mu.Unlock()
	for _, f := range unsub {
		f()
	}
	return nil
}

// signal leaves a token in c, if there is none.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run asks until all is there, the reader is closed or there is no hope.
func (r *reader) run() {
	defer close(r.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		req, wait, err := r.plan(time.Now())
		if err != nil || wait < 0 {
			return
		}
		if req != nil {
			r.send(req)
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-r.asking:
		case <-r.ctx.Done():
			return
		}
	}
}

// plan returns what to send now, or how long nothing has to be done unless something
// comes; less than 0 means for ever.
func (r *reader) plan(now time.Time) (*request, time.Duration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || r.w.base == r.w.end {
		return nil, -1, r.err
	}
	if r.w.waiting() && now.Sub(r.w.quiet) >= r.o.Patience {
		r.end(fmt.Errorf("read stream %s: %w: nothing has come for %v; got %d of the blocks from %d on",
			r.o.Stream, ota.ErrConnectivity, r.o.Patience, r.w.received, r.o.Offset/int64(r.o.BlockSize)))
		return nil, -1, r.err
	}
	if req := r.w.ask(now); req != nil {
		return req, 0, nil
	}
	wait := r.o.Patience
	if r.w.waiting() {
		wait = r.w.quiet.Add(r.o.Patience).Sub(now)
	}
	if at := r.w.wake(); at.After(now) {
		wait = min(wait, at.Sub(now))
	}
	return nil, wait, nil
}

func (r *reader) send(req *request) {
	offset, count, b := req.bitmap()
	payload, err := r.o.Format.encode(getRequest{Token: r.tokenFor(req), Version: r.o.Version, File: r.o.FileID,
		Length: r.o.BlockSize, Offset: offset, Count: count, Bitmap: b})
	if err == nil {
		ctx, cancel := context.WithTimeout(r.ctx, r.o.Patience)
		err = r.conn.Publish(ctx, r.o.prefix()+"get/"+string(r.o.Format), 0, payload)
		cancel()
	}
	if err != nil { // the connection is away: it may come back
		r.mu.Lock()
		r.w.refused(time.Now(), req.seq)
		r.mu.Unlock()
	}
}

// tokenFor names a request and when it was sent, so that no list of requests is
// needed to tell how long an answer took.
func (r *reader) tokenFor(req *request) string {
	return fmt.Sprintf("%s-%d-%d", r.token, req.seq, req.sent.Sub(r.start).Milliseconds())
}

// parseToken returns what tokenFor wrote. An answer without a token is ours, sent at
// a time that is not known; one with another token is somebody else's, or an answer
// to a reader that is gone.
func (r *reader) parseToken(token string, now time.Time) (seq uint64, took time.Duration, ours bool) {
	if token == "" {
		return 0, -1, true
	}
	rest, ok := strings.CutPrefix(token, r.token+"-")
	number, sent, _ := strings.Cut(rest, "-")
	seq, err := strconv.ParseUint(number, 10, 64)
	ms, err2 := strconv.ParseInt(sent, 10, 64)
	if !ok || err != nil || err2 != nil || seq == 0 || seq > r.w.seq {
		return 0, -1, false
	}
	took = now.Sub(r.start.Add(time.Duration(ms) * time.Millisecond))
	return seq, max(took, 0), true
}

// data takes a message with a block.
func (r *reader) data(payload []byte) {
	m, err := r.o.Format.parseData(payload)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.spoiled(err)
		return
	}
	now := time.Now()
	seq, took, ours := r.parseToken(m.Token, now)
	if !ours || *m.File != int64(r.o.FileID) {
		return
	}
	if *m.Block < 0 || *m.Block >= int64(r.w.end) {
		r.spoiled(fmt.Errorf("block %d, and the file of %d bytes ends with block %d", *m.Block, r.o.Size, r.w.end-1))
		return
	}
	if got, want := len(m.Data), r.w.length(int(*m.Block)); got != want {
		r.spoiled(fmt.Errorf("block %d has %d bytes, want %d: the file is not one of %d bytes", *m.Block, got, want, r.o.Size))
		return
	}
	if r.w.arrived(now, int(*m.Block), m.Data, seq, took) {
		signal(r.came)
	}
	signal(r.asking)
}

// rejected takes a message that says no.
func (r *reader) rejected(payload []byte) {
	token, rej, err := r.o.Format.parseRejected(payload)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.spoiled(err)
		return
	}
	now := time.Now()
	seq, _, ours := r.parseToken(token, now)
	switch {
	case !ours:
	case rej.passing():
		r.w.refused(now, seq)
		signal(r.asking)
	default:
		r.end(fmt.Errorf("read stream %s: %w", r.o.Stream, rej))
	}
}

// spoiled counts messages that cannot be used. One can be an accident.
func (r *reader) spoiled(err error) {
	if r.bad++; r.bad == maxBad {
		r.end(fmt.Errorf("read stream %s: %w: %d messages that cannot be used, the last: %w", r.o.Stream, ota.ErrServer, r.bad, err))
	}
}

// end lets Read return err once it has taken what is there.
func (r *reader) end(err error) {
	if r.err == nil {
		r.err = err
	}
	signal(r.came)
	signal(r.asking)
}
