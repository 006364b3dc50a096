package network

import (
	"fmt"
	"sync"
	"time"

	"flanneld/subnet"
)

// leaseHealth knows whether this host's lease is about to end.
type leaseHealth struct {
	margin time.Duration // before its end, in which it is to be renewed

	mu   sync.Mutex
	ends time.Time // zero for a reservation
}

// written takes note of the lease as it was last written.
func (h *leaseHealth) written(l subnet.Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends = l.Expires
}

// end is when the lease ends, zero for a reservation.
func (h *leaseHealth) end() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ends
}

// problem is an error once the lease should have been renewed long ago. A short
// outage of the store is none: the lease outlives it.
func (h *leaseHealth) problem() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	left := time.Until(h.ends).Round(time.Second)
	switch {
	case h.ends.IsZero() || left > h.margin/2:
		return nil
	case left > 0:
		return fmt.Errorf("lease: it ends in %v and could not be renewed yet", left)
	}
	return fmt.Errorf("lease: it ended %v ago and could not be renewed; another host may take the subnet", -left)
}
