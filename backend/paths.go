package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"flanneld/pkg/kernel"
	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

// Path is what the kernel needs to reach a peer's subnet: a route, and where
// that leads through a VXLAN device, what the device has to know. The zero Path
// is none.
type Path struct {
	Route     *kernel.Route
	Neighbour *kernel.Neighbour
	FDB       *kernel.FDBEntry
}

// Paths works out the paths to all peers, one set of leases after another. It
// looks only at leases that it has not seen in the last set: of one lease among
// thousands that changes, the others cost nothing. That is also why it returns
// the same pointers for what has not changed, see kernel.State.
type Paths struct {
	Filter
	// To is the path to one peer, as far as the host's own routes matter to it
	// those in view. An error tells why there is none; it may be a *Fault.
	To func(peer *subnet.Lease, view kernel.Host) (Path, error)

	// What the last set was, and what came of each lease.
	view   kernel.Host
	leases []*subnet.Lease
	paths  []Path
	faults []error
	// keys are what no two paths may share, all that is looked at of other paths
	// when one changes. clashing says that some are the same.
	keys     []keys
	clashing bool
}

// keys are those of a path's entries, zero for none.
type keys struct {
	mac kernel.MAC // of the FDB entry
	ip  netip.Addr // of the neighbour
}

// Set adds the paths to the peers among leases to a state. There is a *Fault for
// each peer that there is no path to.
func (p *Paths) Set(want *kernel.State, leases []*subnet.Lease, view kernel.Host) (faults []error) {
	n := len(leases)
	paths, errs, ks := make([]Path, n), make([]error, n), make([]keys, n)
	var fresh []int // the leases that were not in the last set
	for i, j := 0, 0; i < n; i++ {
		// Both sets are in order of subnets, or else more is looked at than need be.
		for j < len(p.leases) && p.leases[j] != leases[i] && prefix.Compare(p.leases[j].Subnet, leases[i].Subnet) < 0 {
			j++
		}
		if j < len(p.leases) && p.leases[j] == leases[i] && view == p.view {
			paths[i], errs[i], ks[i] = p.paths[j], p.faults[j], p.keys[j]
			j++
			continue
		}
		paths[i], errs[i] = p.path(leases[i], view)
		ks[i] = paths[i].keys()
		fresh = append(fresh, i)
	}
	p.clashing = clash(ks, fresh, p.clashing)
	p.view, p.leases, p.paths, p.faults, p.keys = view, leases, paths, errs, ks
	return p.fill(want)
}

func (p Path) keys() (k keys) {
	if p.FDB != nil {
		k.mac = p.FDB.MAC
	}
	if p.Neighbour != nil {
		k.ip = p.Neighbour.IP
	}
	return k
}

func (p *Paths) path(l *subnet.Lease, view kernel.Host) (Path, error) {
	if ok, fault := p.Peer(l); !ok {
		return Path{}, fault
	}
	path, err := p.To(l, view)
	var fault *Fault
	if err != nil && !errors.As(err, &fault) {
		err = &Fault{Lease: l, Reason: err}
	}
	return path, err
}

// fill adds the paths to a state.
func (p *Paths) fill(want *kernel.State) (faults []error) {
	n := len(p.paths)
	want.Routes = make([]*kernel.Route, 0, n)
	want.Neighbours, want.FDB = make([]*kernel.Neighbour, 0, n), make([]*kernel.FDBEntry, 0, n)
	holders := p.holders()
	for i, path := range p.paths {
		if p.faults[i] != nil {
			faults = append(faults, p.faults[i])
		}
		fdb := path.FDB
		if p.clashing && path.Route != nil {
			fault, shared := p.yields(i, holders)
			if fault != nil {
				faults = append(faults, fault)
				continue
			}
			if shared { // one entry for a host with several leases
				fdb = nil
			}
		}
		if path.Route != nil {
			want.Routes = append(want.Routes, path.Route)
		}
		if path.Neighbour != nil {
			want.Neighbours = append(want.Neighbours, path.Neighbour)
		}
		if fdb != nil {
			want.FDB = append(want.FDB, fdb)
		}
	}
	return faults
}

// holders are the leases whose entries count, by a key that is in several. A host
// that has changed its address or subnet may have an old lease left: what was
// written last counts.
func (p *Paths) holders() map[any]int {
	if !p.clashing {
		return nil
	}
	holders := map[any]int{}
	hold := func(key any, i int) {
		if other, ok := holders[key]; !ok || p.leases[other].Revision < p.leases[i].Revision {
			holders[key] = i
		}
	}
	for i, k := range p.keys {
		if k.ip.IsValid() {
			hold(k.ip, i)
		}
	}
	for i, k := range p.keys {
		if k.mac != (kernel.MAC{}) && holders[k.ip] == i { // not of what is left out already
			hold(k.mac, i)
		}
	}
	return holders
}

// yields says why the i-th lease is left out for another's sake, if it is, and
// whether its FDB entry is also that of another.
func (p *Paths) yields(i int, holders map[any]int) (fault error, shared bool) {
	k := p.keys[i]
	if holder, ok := holders[k.ip]; ok && holder != i {
		return &Fault{Lease: p.leases[i], Reason: fmt.Errorf("it overlaps that of %v, and both begin with one address", p.leases[holder])}, false
	}
	holder, ok := holders[k.mac]
	if ok && p.paths[holder].FDB.Dst != p.paths[i].FDB.Dst {
		return &Fault{Lease: p.leases[i], Reason: fmt.Errorf("its VtepMAC %v is also that of %v; if both hosts are there, delete the device %s on one of them and restart flanneld there",
			k.mac, p.leases[holder], p.paths[i].Route.Dev)}, false
	}
	return nil, ok && holder != i
}

// few is how many fresh keys are each compared with all others. For more, a map
// of all is less work.
const few = 16

// clash reports whether some keys are the same. Those that are not fresh were
// looked at before, with the result in before.
func clash(all []keys, fresh []int, before bool) bool {
	if before || len(fresh) > few {
		macs, ips := make(map[kernel.MAC]bool, len(all)), make(map[netip.Addr]bool, len(all))
		for _, k := range all {
			if k != (keys{}) && (macs[k.mac] || ips[k.ip]) {
				return true
			}
			macs[k.mac], ips[k.ip] = true, true
		}
		return false
	}
	for _, i := range fresh {
		same := func(k keys) bool { return k.mac == all[i].mac || k.ip == all[i].ip }
		if all[i] != (keys{}) && (slices.ContainsFunc(all[:i], same) || slices.ContainsFunc(all[i+1:], same)) {
			return true
		}
	}
	return false
}
