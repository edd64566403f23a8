package inbox

import (
	"slices"
	"sort"
)

// maxSpans bounds the memory of a set, and with it that of the journal: 1 MiB.
const maxSpans = 65536

// A span is the bytes from one offset to before another.
type span struct{ from, to int64 }

// A set is which bytes are there: spans in rising order with gaps between them.
type set struct {
	spans []span
	total int64 // bytes
}

// at returns the index of the first span that ends behind offset.
func (s *set) at(offset int64) int {
	return sort.Search(len(s.spans), func(i int) bool { return s.spans[i].to > offset })
}

func (s *set) has(from, to int64) bool {
	if from >= to {
		return true
	}
	i := s.at(from)
	return i < len(s.spans) && s.spans[i].from <= from && to <= s.spans[i].to
}

// missing returns the first byte from offset on that is not there.
func (s *set) missing(offset int64) int64 {
	if i := s.at(offset); i < len(s.spans) && s.spans[i].from <= offset {
		return s.spans[i].to
	}
	return offset
}

// room reports whether the span can be added without the set having more than maxSpans.
func (s *set) room(from, to int64) bool {
	if len(s.spans) < maxSpans {
		return true
	}
	i := s.at(from - 1) // it grows only if nothing is touched
	return i < len(s.spans) && s.spans[i].from <= to
}

func (s *set) add(from, to int64) {
	if from >= to {
		return
	}
	i := sort.Search(len(s.spans), func(i int) bool { return s.spans[i].to >= from })
	j := i
	for j < len(s.spans) && s.spans[j].from <= to {
		from, to = min(from, s.spans[j].from), max(to, s.spans[j].to)
		s.total -= s.spans[j].to - s.spans[j].from
		j++
	}
	s.total += to - from
	s.spans = slices.Replace(s.spans, i, j, span{from, to})
}

func (s *set) remove(from, to int64) {
	if from >= to {
		return
	}
	i := s.at(from)
	j := i
	var rest []span
	for j < len(s.spans) && s.spans[j].from < to {
		x := s.spans[j]
		s.total -= min(x.to, to) - max(x.from, from)
		if x.from < from {
			rest = append(rest, span{x.from, from})
		}
		if x.to > to {
			rest = append(rest, span{to, x.to})
		}
		j++
	}
	s.spans = slices.Replace(s.spans, i, j, rest...)
}

// within calls f with the parts of the span that are there, and those that are not, in order.
func (s *set) within(from, to int64, f func(part span, there bool) error) error {
	for i := s.at(from); from < to; i++ {
		next := span{to, to}
		if i < len(s.spans) {
			next = s.spans[i]
		}
		if gap := min(next.from, to); from < gap {
			if err := f(span{from, gap}, false); err != nil {
				return err
			}
			from = gap
		}
		if end := min(next.to, to); from < end {
			if err := f(span{from, end}, true); err != nil {
				return err
			}
			from = end
		}
	}
	return nil
}
