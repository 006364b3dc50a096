package backend

import (
	"fmt"
	"net/netip"
	"strings"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

// Peers picks from all leases those that this host can exchange traffic with
// through the backend of the given type, its own not among them. For each one
// left out for a reason that an operator should know there is a fault. The
// peers point into leases.
func Peers(host Host, backendType string, own netip.Prefix, leases []subnet.Lease) (peers []*subnet.Lease, faults []error) {
	leaveOut := func(l *subnet.Lease, format string, args ...any) {
		faults = append(faults, fmt.Errorf("leaving out the lease of %v: "+format, append([]any{l}, args...)...))
	}
	peers = make([]*subnet.Lease, 0, len(leases))
	for i := range leases {
		switch l := &leases[i]; {
		case l.Subnet == own:
		case !prefix.Contains(host.Network, l.Subnet):
			leaveOut(l, "it lies outside the network %v", host.Network)
		case l.Subnet.Overlaps(own):
			leaveOut(l, "it overlaps this host's own subnet %v", own)
		case l.PublicIP == host.PublicIP:
			leaveOut(l, "it bears this host's own address, but this host uses %v", own)
		case !strings.EqualFold(l.BackendType, backendType): // as in the config
			leaveOut(l, "its backend is %s, this host's is %s", l.BackendType, backendType)
		default:
			peers = append(peers, l)
		}
	}
	return peers, faults
}
