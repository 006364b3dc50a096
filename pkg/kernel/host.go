package kernel

import (
	"maps"
	"net/netip"
	"slices"
)

// Host is what the kernel's main table says of the world without the routes
// that are ours: enough to tell which addresses share a link with this host.
// The zero value knows no route. Two that are equal by == say the same.
type Host struct{ *hostRoutes }

type hostRoutes struct {
	to   map[netip.Prefix]HostRoute
	bits []int           // the lengths among them, longest first
	devs map[string]bool // the interfaces among them
}

// HostRoute is a route of the host's own, as far as it matters to Host.
type HostRoute struct {
	Dst netip.Prefix
	// Dev names the interface; it is empty where there is none or several.
	Dev string
	// OnLink says that there is no gateway in between.
	OnLink bool
	Metric int
}

// NewHost is a Host with these routes. Plans get theirs from Run; this is for
// their tests.
func NewHost(routes ...HostRoute) Host {
	h := Host{&hostRoutes{to: map[netip.Prefix]HostRoute{}, devs: map[string]bool{}}}
	for _, r := range routes {
		h.add(r)
	}
	return h
}

// add takes a route into account. Of several to one destination the kernel uses
// the one of lowest metric.
func (h *hostRoutes) add(r HostRoute) {
	h.devs[r.Dev] = true
	if old, ok := h.to[r.Dst]; ok && old.Metric <= r.Metric {
		return
	}
	h.to[r.Dst] = r
	i, ok := slices.BinarySearchFunc(h.bits, r.Dst.Bits(), func(a, b int) int { return b - a })
	if !ok {
		h.bits = slices.Insert(h.bits, i, r.Dst.Bits())
	}
}

// OnLink reports whether addr is on the link of the interface dev: whether the
// host's own routes send packets for it out of dev without a gateway.
func (h Host) OnLink(addr netip.Addr, dev string) bool {
	if h.hostRoutes == nil {
		return false
	}
	for _, n := range h.bits {
		if p, err := addr.Prefix(n); err == nil {
			if r, ok := h.to[p]; ok {
				return r.OnLink && r.Dev == dev
			}
		}
	}
	return false
}

// Linked reports whether any address is on the link of the interface dev. While
// it is down, none is.
func (h Host) Linked(dev string) bool {
	if h.hostRoutes == nil {
		return false
	}
	for _, r := range h.to {
		if r.OnLink && r.Dev == dev {
			return true
		}
	}
	return false
}

// same reports whether two say the same, though they may be two readings.
func (h Host) same(other Host) bool {
	return h == other || h.hostRoutes != nil && other.hostRoutes != nil && maps.Equal(h.to, other.to) && maps.Equal(h.devs, other.devs)
}
