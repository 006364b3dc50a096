package backend

import (
	"fmt"
	"net/netip"
	"strings"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

// Fault is why a lease has no path to its host.
type Fault struct {
	Lease  *subnet.Lease
	Reason error
	// General says that the reason is not of this lease but of this host, and so
	// the same for many; Error does without the lease then.
	General bool
}

func (f *Fault) Error() string {
	if f.General {
		return f.Reason.Error()
	}
	return fmt.Sprintf("leaving out the lease of %v: %v", f.Lease, f.Reason)
}

func (f *Fault) Unwrap() error { return f.Reason }

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
// operator should know, and is a *Fault.
func (f Filter) Peer(l *subnet.Lease) (bool, error) {
	leaveOut := func(format string, args ...any) (bool, error) {
		return false, &Fault{Lease: l, Reason: fmt.Errorf(format, args...)}
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
