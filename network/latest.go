package network

import "sync"

// latest hands the newest of a series of values to a reader that may be slower
// than the writer.
type latest[T any] struct {
	ch chan T

	mu    sync.Mutex
	value T
	any   bool // there has been a value
}

func newLatest[T any]() *latest[T] { return &latest[T]{ch: make(chan T, 1)} }

func (l *latest[T]) put(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value, l.any = v, true
	l.send()
}

// repeat puts the last value once more, if there is one.
func (l *latest[T]) repeat() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.any {
		l.send()
	}
}

// last is the last value, the zero one if there is none.
func (l *latest[T]) last() T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value
}

func (l *latest[T]) send() {
	select {
	case <-l.ch: // nobody needs the one before any more
	default:
	}
	l.ch <- l.value
}

// taken reports whether the reader has taken the last value.
func (l *latest[T]) taken() bool { return len(l.ch) == 0 }
