package network

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// trimFirst is when the start, which needs most of all, is over, and trimEvery
	// how soon memory is given back to the system later on.
	trimFirst = time.Second
	trimEvery = 20 * time.Second
	// trimLeast is how much has to be there to give, in bytes: collecting it takes
	// some milliseconds.
	trimLeast = 4 << 20
)

// trimMemory gives back what a burst has needed and nobody needs any more. Go
// would keep most of it: at rest it neither collects what is dead nor releases
// what is free for minutes, while a list of thousands of leases needs more than
// all else.
//
// A value from needed tells that somebody has needed some just now.
func trimMemory(ctx context.Context, needed <-chan struct{}) error {
	due := time.NewTimer(trimFirst)
	defer due.Stop()
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, // dead ones too
		{Name: "/memory/classes/heap/free:bytes"},    // and not released
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-needed:
			due.Reset(trimFirst)
			continue
		case <-due.C:
			due.Reset(trimEvery)
		}
		metrics.Read(samples)
		held, live := uint64(0), samples[3].Value.Uint64()
		for _, s := range samples[:3] {
			held += s.Value.Uint64()
		}
		if held > live+trimLeast {
			debug.FreeOSMemory()
		}
	}
}
