package subnet

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// chance is where a host's random choices come from, so that hosts which do the
// same thing at the same time do not go on in step. What it yields depends on the
// host's address and on when it was made, and on nothing else: in fake time, a
// test sees the same choices again. It is safe for concurrent use.
type chance struct {
	seed uint64

	mu  sync.Mutex
	gen *rand.Rand
}

func newChance(host netip.Addr) *chance {
	c := &chance{}
	for _, b := range host.AsSlice() {
		c.seed = c.seed*257 + uint64(b)
	}
	return c.apart(0)
}

// apart is one for another part of the same host, so that the choices of one do
// not depend on which of two parts comes first.
func (c *chance) apart(part uint64) *chance {
	return &chance{seed: c.seed, gen: rand.New(rand.NewPCG(c.seed+part<<48, uint64(time.Now().UnixNano())))}
}

// Parts of a host that make choices, beside Patient and Acquire.
const (
	following = iota + 1
	holding
)

// below is a number from 0 up to but not including n, which must not be 0.
func (c *chance) below(n uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gen.Uint64N(n)
}

// around is a duration from half of d to half as much again.
func (c *chance) around(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d/2 + time.Duration(c.below(uint64(d)))
}

const (
	// Bounds of the wait between two tries, before chance has its say: five
	// seconds after a store is back, everybody has noticed, also where a try to
	// connect that was begun before takes two more to fail.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// pauses are the waits between tries, each longer than the one before.
type pauses struct {
	*backoff.ExponentialBackOff
	chance *chance
}

func (c *chance) pauses(first time.Duration) pauses {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.RandomizationFactor = first, lastRetry, 0
	b.Reset()
	return pauses{b, c}
}

// next is how long to wait this time.
func (p pauses) next() time.Duration { return p.chance.around(p.NextBackOff()) }
