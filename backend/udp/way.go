package udp

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// way is one of the two directions of packets. At any time only one goroutine
// carries packets on it.
type way struct {
	fd int // readable when there are packets
	// carry takes a batch of packets as far as they go, and returns unix.EAGAIN if
	// there were none.
	carry func() error

	failures int           // of carry, in a row
	turns    atomic.Uint64 // odd while carry is at work

	// When it was last asked whether it is stuck.
	seen  uint64 // turns
	since time.Time
}

// stuckAfter is how long one batch of packets may take. It takes microseconds,
// and on a busy machine some milliseconds.
const stuckAfter = 10 * time.Second

// look carries a batch of packets, if there are any, and reports whether there were.
// A failure counts as a batch. The error is that there are never to be any more.
func (w *way) look() (found bool, err error) {
	w.works()
	err = w.carry()
	w.waits()
	switch {
	case err == nil:
		w.failures = 0
		return true, nil
	case err == unix.EAGAIN:
		return false, nil
	case errors.Is(err, errDeviceLost):
		return false, err
	}
	w.failures++
	pause(w.failures)
	return true, nil
}

// pause keeps a worker from spinning when the same call fails again and again,
// without holding up packets for a failure that comes alone.
func pause(failures int) {
	time.Sleep(min(time.Duration(failures-1)*100*time.Microsecond, 10*time.Millisecond))
}

// works and waits are called by the goroutine that carries, without a lock.
func (w *way) works() { w.turns.Store(w.turns.Load() | 1) }
func (w *way) waits() { w.turns.Store((w.turns.Load() + 1) &^ 1) }

// stuck reports whether one and the same batch has been on the way for too long.
// Calls come from one goroutine.
func (w *way) stuck() bool {
	now := time.Now()
	if turns := w.turns.Load(); turns != w.seen || w.since.IsZero() {
		w.seen, w.since = turns, now
	}
	return w.seen%2 == 1 && now.Sub(w.since) > stuckAfter
}
