package cloudwatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/interlock-energy/ota/internal/durable"
)

// event is a line as CloudWatch gets it.
type event struct {
	ms   int64 // since 1970
	text []byte
}

// A segment on disk is
//
//	"ILOGCW1\n"
//	length    uint32, big endian, like all of these: of the text
//	checksum  uint32, CRC-32C of time and text
//	time      int64, ms since 1970
//	text
//	length ...
//
// and ends at the end of the file or at the first record that is not whole and
// right: what a power cut has torn. A segment is only appended to by the process
// that began it, so nothing follows a tear.
const (
	segmentMagic  = "ILOGCW1\n"
	segmentHeader = len(segmentMagic)
	recordHeader  = 4 + 4 + 8
	maxSegment    = 2 << 20 // bytes; none of ours is larger
	block         = 4096    // of the file system: a small file takes one, too
	reserve       = 1 << 20 // bytes of the disk that stay free: an update has its record there
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendRecord adds e to a segment's bytes.
func appendRecord(to []byte, e event) []byte {
	to = binary.BigEndian.AppendUint32(to, uint32(len(e.text)))
	at := len(to)
	to = binary.BigEndian.AppendUint32(to, 0)
	to = binary.BigEndian.AppendUint64(to, uint64(e.ms))
	to = append(to, e.text...)
	binary.BigEndian.PutUint32(to[at:], crc32.Checksum(to[at+4:], castagnoli))
	return to
}

// parseSegment returns the events of a segment up to the tear. Their texts are
// part of data.
func parseSegment(data []byte) []event {
	rest, ok := strings.CutPrefix(string(data[:min(len(data), segmentHeader)]), segmentMagic)
	if !ok || rest != "" {
		return nil
	}
	var events []event
	for data = data[segmentHeader:]; len(data) >= recordHeader; {
		length := int64(binary.BigEndian.Uint32(data))
		if length > int64(len(data)-recordHeader) || length > maxEvent || length == 0 {
			break
		}
		end := recordHeader + int(length)
		if crc32.Checksum(data[8:end], castagnoli) != binary.BigEndian.Uint32(data[4:]) {
			break
		}
		events = append(events, event{int64(binary.BigEndian.Uint64(data[8:])), data[recordHeader:end]})
		data = data[end:]
	}
	return events
}

// segment is a file of events that fit into one batch.
type segment struct {
	number uint64 // grows; also the name
	size   int64  // bytes of the file that are good
	events int
	done   int   // of the events in order of time, those that need no more sending
	weight int   // as CloudWatch counts a batch
	lo, hi int64 // times
	failed int   // reads
}

// add counts e. A segment that is full must not get it.
func (s *segment) add(e event) {
	if s.events == 0 {
		s.lo, s.hi = e.ms, e.ms
	}
	s.lo, s.hi = min(s.lo, e.ms), max(s.hi, e.ms)
	s.events++
	s.weight += len(e.text) + overhead
	s.size += int64(recordHeader + len(e.text))
}

// disk returns what the file takes of it.
func (s *segment) disk() int64 { return (s.size + block - 1) / block * block }

// spool keeps events in a directory:
//
//	DIR/0000000000000007.log   the oldest segment; removed when all of it is accepted
//	DIR/0000000000000008.log   the newest one, being appended to
//
// A segment that was accepted is removed, and that is the note that it was. The
// spool is used by one goroutine.
type spool struct {
	fs   durable.FS
	dir  string
	max  int64
	drop func(lines int64, why string)

	loaded bool
	segs   []*segment // oldest first
	open   *segment   // the last of segs, or nil
	busy   *segment   // is being sent: not dropped
	next   uint64     // number
	filled bool       // a segment has become full since somebody looked
	stale  []uint64   // accepted or dropped, but still there, because removing did not work
}

func (s *spool) path(number uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016x.log", number))
}

// load finds what earlier processes have left. It does nothing the second time.
func (s *spool) load() error {
	if s.loaded {
		return nil
	}
	if err := durable.MkdirAll(s.fs, s.dir, 0o750); err != nil {
		return err
	}
	names, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		hex, ok := strings.CutSuffix(name.Name(), ".log")
		n, err := strconv.ParseUint(hex, 16, 64)
		if !ok || err != nil || len(hex) != 16 || n == 1<<64-1 {
			continue // not ours
		}
		seg := &segment{number: n}
		if data, err := durable.ReadFile(s.fs, s.path(n), maxSegment); err == nil {
			for _, e := range parseSegment(data) {
				seg.add(e)
			}
			seg.size = int64(len(data)) // with the tear
		}
		s.next = max(s.next, n+1)
		if seg.events == 0 { // nothing in it has ever been whole
			s.stale = append(s.stale, n)
			continue
		}
		s.segs = append(s.segs, seg)
	}
	slices.SortFunc(s.segs, func(a, b *segment) int { return int(min(max(int64(a.number-b.number), -1), 1)) })
	s.loaded = true
	return nil
}

// append makes the first n events durable, all of them if the error is nil.
func (s *spool) append(events []event) (n int, err error) {
	if err := s.load(); err != nil {
		return 0, err
	}
	s.sweep()
	for n < len(events) {
		if s.open != nil && !s.fits(s.open, events[n]) {
			s.seal()
			s.filled = true
		}
		fresh := s.open == nil
		if fresh {
			s.open = &segment{number: s.next, size: int64(segmentHeader)}
		}
		was, data := *s.open, []byte(nil)
		if fresh {
			data = []byte(segmentMagic)
		}
		k := n
		for ; k < len(events) && s.fits(s.open, events[k]); k++ {
			s.open.add(events[k])
			data = appendRecord(data, events[k])
		}
		err := s.room(int64(len(data)))
		if err == nil {
			err = s.write(&was, data, fresh)
		}
		if err != nil {
			*s.open = was // what is behind it on the disk is a tear
			s.open = nil
			return n, err
		}
		if fresh {
			s.segs = append(s.segs, s.open)
		}
		n = k
	}
	return n, nil
}

// fits tells whether e may join seg. The first event always may.
func (s *spool) fits(seg *segment, e event) bool {
	if seg.events == 0 {
		return true
	}
	return seg.size+int64(recordHeader+len(e.text)) <= s.max/8 &&
		seg.weight+len(e.text)+overhead <= maxBatchBytes &&
		seg.events < maxBatchEvents &&
		max(seg.hi, e.ms)-min(seg.lo, e.ms) < maxSpan.Milliseconds()
}

// write puts data behind the good bytes of seg, and syncs.
func (s *spool) write(seg *segment, data []byte, fresh bool) (err error) {
	name, flag, at := s.path(seg.number), os.O_WRONLY, seg.size
	if fresh {
		s.next = seg.number + 1 // the name is used up, even if this does not work
		flag, at = flag|os.O_CREATE|os.O_EXCL, 0
	}
	f, err := s.fs.OpenFile(name, flag, 0o640)
	if err != nil {
		return err
	}
	wrote, err := f.WriteAt(data, at)
	if err == nil && wrote != len(data) {
		err = fmt.Errorf("write %s: wrote %d of %d bytes", name, wrote, len(data))
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil && !fresh {
		f.Truncate(at) // if it stays, it is a tear, or lines that are sent twice after a restart
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && fresh {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil && fresh {
		s.unlink(seg.number)
	}
	return err
}

// room drops the oldest segments until there is room for so many bytes, here and on the
// disk. It is an error if there is none on the disk.
func (s *spool) room(bytes int64) error {
	for {
		free, err := s.fs.Free(s.dir)
		tight := err == nil && free < bytes+block+reserve // a system that cannot tell keeps nobody from trying
		size := bytes + block
		for _, seg := range s.segs {
			size += seg.disk()
		}
		i := slices.IndexFunc(s.segs, func(seg *segment) bool { return seg != s.busy && seg != s.open })
		if i < 0 && tight {
			return fmt.Errorf("spool the log: %d bytes are free in %s, want %d", free, s.dir, bytes+block+reserve)
		}
		if i < 0 || size <= s.max && !tight {
			return nil
		}
		s.drop(int64(s.segs[i].events-s.segs[i].done), whySpool)
		s.remove(s.segs[i])
	}
}

// seal makes that the next event begins a new segment.
func (s *spool) seal() { s.open = nil }

// read returns the events of seg, as they were added.
func (s *spool) read(seg *segment) ([]event, error) {
	data, err := durable.ReadFile(s.fs, s.path(seg.number), maxSegment)
	if err != nil {
		return nil, err
	}
	events := parseSegment(data)
	if len(events) < seg.events {
		return nil, fmt.Errorf("read %s: got %d lines, want %d", s.path(seg.number), len(events), seg.events)
	}
	return events[:seg.events], nil // more: after a write that was reported as failed
}

// remove forgets seg.
func (s *spool) remove(seg *segment) {
	if s.open == seg {
		s.open = nil
	}
	s.segs = slices.DeleteFunc(s.segs, func(other *segment) bool { return other == seg })
	s.unlink(seg.number)
	s.fs.SyncDir(s.dir) // if not, the file may be back after a power cut, which is said at the top
}

func (s *spool) unlink(number uint64) {
	if err := s.fs.Remove(s.path(number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.stale = append(s.stale, number)
	}
}

// sweep tries again to remove what could not be removed.
func (s *spool) sweep() {
	again := s.stale
	s.stale = nil
	for _, n := range again {
		s.unlink(n)
	}
}

// waiting returns the events that are to be sent, and the bytes of the files.
func (s *spool) waiting() (lines int, size int64) {
	for _, seg := range s.segs {
		lines += seg.events - seg.done
		size += seg.disk()
	}
	return lines, size
}

// plan says what to do with events, which are in order of time: the first old ones
// are too old to be sent, the n after those make a batch. If n is 0, the rest is
// further in the future than CloudWatch takes.
func plan(events []event, now time.Time) (old, n int) {
	from, to := now.Add(-maxAge).UnixMilli(), now.Add(maxAhead).UnixMilli()
	for old < len(events) && events[old].ms < from {
		old++
	}
	rest, weight := events[old:], 0
	for n < len(rest) && n < maxBatchEvents && rest[n].ms <= to && rest[n].ms-rest[0].ms < maxSpan.Milliseconds() {
		if weight += len(rest[n].text) + overhead; weight > maxBatchBytes {
			break
		}
		n++
	}
	return old, n
}
