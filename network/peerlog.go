package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

const (
	// peersPause is the least time between two lines about peers, so that a
	// thousand hosts that start at once make few lines.
	peersPause = 2 * time.Second
	// peersNamed is of how many that have come, gone or changed each is named.
	peersNamed = 3
)

// logPeers says which peers come, go and change, from one set of all leases to the
// next, until ctx ends.
func logPeers(ctx context.Context, own netip.Prefix, sets <-chan []*subnet.Lease) error {
	var last []*subnet.Lease
	for first := true; ; first = false {
		var now []*subnet.Lease
		select {
		case <-ctx.Done():
			return nil
		case now = <-sets:
		}
		c := comparePeers(own, last, now)
		switch {
		case first:
			klog.Infof("The network has %s so far", c.count())
		case len(c.changes) > 0:
			klog.Info(c)
		}
		if klog.V(2).Enabled() && (first || len(c.changes) > peersNamed) {
			for _, p := range c.changes {
				klog.Infof("Peer %v", p)
			}
		}
		last = now
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(peersPause):
		}
	}
}

// peersChange is what is otherwise with the peers.
type peersChange struct {
	changes             []peerChange
	come, gone, changed int
	all                 int
}

// comparePeers compares two sets, both in order of their subnets.
func comparePeers(own netip.Prefix, before, now []*subnet.Lease) (c peersChange) {
	for len(before) > 0 || len(now) > 0 {
		var p peerChange
		switch {
		case len(now) == 0 || len(before) > 0 && prefix.Compare(before[0].Subnet, now[0].Subnet) < 0:
			p.was, before = before[0], before[1:]
		case len(before) == 0 || prefix.Compare(before[0].Subnet, now[0].Subnet) > 0:
			p.is, now = now[0], now[1:]
		default:
			p.was, p.is, before, now = before[0], now[0], before[1:], now[1:]
		}
		switch {
		case p.was != nil && p.was.Subnet == own || p.is != nil && p.is.Subnet == own:
			continue
		case p.is == nil:
			c.gone++
		case p.was == nil:
			c.come++
		case !p.was.Attrs.Equal(p.is.Attrs):
			c.changed++
		default: // renewed at most
			c.all++
			continue
		}
		if p.is != nil {
			c.all++
		}
		c.changes = append(c.changes, p)
	}
	return c
}

// peerChange is a peer's lease before and after; nil where there is none.
type peerChange struct{ was, is *subnet.Lease }

func (p peerChange) String() string {
	switch {
	case p.is == nil:
		return fmt.Sprintf("%v has gone", p.was)
	case p.was == nil:
		return fmt.Sprintf("%v has come", p.is)
	case p.was.PublicIP != p.is.PublicIP:
		return fmt.Sprintf("%v has moved to %v", p.was, p.is.PublicIP)
	}
	return fmt.Sprintf("%v has changed: backend %s %s", p.is, p.is.BackendType, p.is.BackendData)
}

// count is how many peers there are, in words.
func (c peersChange) count() string {
	switch c.all {
	case 0:
		return "no peers"
	case 1:
		return "1 peer"
	}
	return fmt.Sprintf("%d peers", c.all)
}

// String is one line about what has changed.
func (c peersChange) String() string {
	var parts []string
	if len(c.changes) <= peersNamed {
		for _, p := range c.changes {
			parts = append(parts, p.String())
		}
		return fmt.Sprintf("Peer %s; %s now", strings.Join(parts, ", "), c.count())
	}
	for _, part := range []struct {
		n    int
		what string
	}{{c.come, "come"}, {c.gone, "gone"}, {c.changed, "changed"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d have %s", part.n, part.what))
		}
	}
	return fmt.Sprintf("Peers: %s; %s now", strings.Join(parts, ", "), c.count())
}
