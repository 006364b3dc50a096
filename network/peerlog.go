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
		case len(c.lines) > 0:
			klog.Info(c)
		}
		if klog.V(2).Enabled() && (first || len(c.lines) > peersNamed) {
			for _, line := range c.lines {
				klog.Infof("Peer %s", line)
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

// peerChange is what is otherwise with the peers.
type peerChange struct {
	lines               []string // one for each
	come, gone, changed int
	all                 int
}

// comparePeers compares two sets, both in order of their subnets.
func comparePeers(own netip.Prefix, before, now []*subnet.Lease) (c peerChange) {
	for len(before) > 0 || len(now) > 0 {
		var was, is *subnet.Lease
		switch {
		case len(now) == 0 || len(before) > 0 && prefix.Compare(before[0].Subnet, now[0].Subnet) < 0:
			was, before = before[0], before[1:]
		case len(before) == 0 || prefix.Compare(before[0].Subnet, now[0].Subnet) > 0:
			is, now = now[0], now[1:]
		default:
			was, is, before, now = before[0], now[0], before[1:], now[1:]
		}
		switch {
		case is == nil && was.Subnet == own || is != nil && is.Subnet == own:
			continue
		case is == nil:
			c.gone++
			c.lines = append(c.lines, fmt.Sprintf("%v has gone", was))
			continue
		case was == nil:
			c.come++
			c.lines = append(c.lines, fmt.Sprintf("%v has come", is))
		case was.PublicIP != is.PublicIP:
			c.changed++
			c.lines = append(c.lines, fmt.Sprintf("%v has moved to %v", was, is.PublicIP))
		case !was.Attrs.Equal(is.Attrs):
			c.changed++
			c.lines = append(c.lines, fmt.Sprintf("%v has changed: backend %s %s", is, is.BackendType, is.BackendData))
		}
		c.all++
	}
	return c
}

// count is how many peers there are, in words.
func (c peerChange) count() string {
	switch c.all {
	case 0:
		return "no peers"
	case 1:
		return "1 peer"
	}
	return fmt.Sprintf("%d peers", c.all)
}

// String is one line about what has changed.
func (c peerChange) String() string {
	if len(c.lines) <= peersNamed {
		return fmt.Sprintf("Peer %s; %s now", strings.Join(c.lines, ", "), c.count())
	}
	var parts []string
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
