package udp

import (
	"sync/atomic"
	"time"
)

// stuckAfter is how long one batch of packets may take. It takes microseconds,
// and on a busy machine some milliseconds.
const stuckAfter = 10 * time.Second

// worker tells whether one of those that carry packets is at work on a batch or
// waits for the next. The worker itself says so, without a lock; another
// goroutine asks.
type worker struct {
	turns atomic.Uint64 // odd while it is at work

	seen  uint64    // turns when it was last asked
	since time.Time // when they were first seen
}

// works and waits are called by the worker alone.
func (w *worker) works() { w.turns.Store(w.turns.Load() | 1) }
func (w *worker) waits() { w.turns.Store((w.turns.Load() + 1) &^ 1) }

// stuck reports whether the worker has been at work on one and the same batch for
// too long. Calls come from one goroutine.
func (w *worker) stuck() bool {
	now := time.Now()
	if turns := w.turns.Load(); turns != w.seen || w.since.IsZero() {
		w.seen, w.since = turns, now
	}
	return w.seen%2 == 1 && now.Sub(w.since) > stuckAfter
}
