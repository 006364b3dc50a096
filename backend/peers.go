package backend

import (
	"fmt"
	"net/netip"
	"strings"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

// Filter picks from all leases those of hosts that this one can exchange traffic
// with through a backend, its own not among them.
type Filter struct {
	Host Host
	// Type is the backend's name.
	Type string
	// Own is this host's subnet.
	Own netip.Prefix
}

// Peer reports whether a lease is of such a host. The error says why not, if an
// operator should know.
func (f Filter) Peer(l *subnet.Lease) (bool, error) {
	leaveOut := func(format string, args ...any) (bool, error) {
		return false, fmt.Errorf("leaving out the lease of %v: "+format, append([]any{l}, args...)...)
	}
	switch {
	case l.Subnet == f.Own:
		return false, nil
	case !prefix.Contains(f.Host.Network, l.Subnet):
		return leaveOut("it lies outside the network %v", f.Host.Network)
	case l.Subnet.Overlaps(f.Own):
		return leaveOut("it overlaps this host's own subnet %v", f.Own)
	case l.PublicIP == f.Host.PublicIP:
		return leaveOut("it bears this host's own address, but this host uses %v", f.Own)
	case !strings.EqualFold(l.BackendType, f.Type): // as in the config
		return leaveOut("its backend is %s, this host's is %s", l.BackendType, f.Type)
	}
	return true, nil
}

// Peers picks from a list. There is a fault for each lease left out for a reason
// that an operator should know.
func (f Filter) Peers(leases []*subnet.Lease) (peers []*subnet.Lease, faults []error) {
	for _, l := range leases {
		if ok, fault := f.Peer(l); ok {
			peers = append(peers, l)
		} else if fault != nil {
			faults = append(faults, fault)
		}
	}
	return peers, faults
}
