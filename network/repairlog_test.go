package network

import (
	"slices"
	"testing"
	"time"

	"flanneld/pkg/kernel"
)

// What somebody else has changed is said, of who does so all the time once a minute,
// and nothing of what the leases ask for.
func TestRepairLog(t *testing.T) {
	var said []string
	l := newRepairLog()
	l.log = func(line string) { said = append(said, line) }
	now := time.Now()
	one := kernel.Entries{Changed: 3, Repaired: 1}
	for _, cause := range []kernel.Cause{kernel.Start, kernel.Input, kernel.Retry} {
		l.compared(kernel.Comparison{Cause: cause, Routes: one, Device: true}, now)
	}
	l.compared(kernel.Comparison{Cause: kernel.Notice, Routes: kernel.Entries{Wanted: 5, Programmed: 5, Changed: 2}}, now)
	if len(said) > 0 {
		t.Fatalf("%q", said)
	}
	l.compared(kernel.Comparison{Cause: kernel.Notice, Routes: one}, now)
	l.compared(kernel.Comparison{Cause: kernel.Periodic, Routes: kernel.Entries{Repaired: 2}, Neighbours: one, FDB: kernel.Entries{Repaired: 3}}, now)
	l.compared(kernel.Comparison{Cause: kernel.Notice, Device: true}, now)
	for range 600 { // ten minutes
		now = now.Add(time.Second)
		l.compared(kernel.Comparison{Cause: kernel.Notice, Routes: one}, now)
	}
	want := []string{
		"Put right in the kernel: 1 route",
		"Put right in the kernel: 2 routes, 1 neighbour, 3 FDB entries",
		"Put right in the kernel: the device",
	}
	for range 10 {
		want = append(want, "Put right in the kernel: 60 routes, in 60 comparisons since this was said last")
	}
	if !slices.Equal(said, want) {
		t.Errorf("%d lines: %q", len(said), said)
	}
}
