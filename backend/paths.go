package backend

import (
	"fmt"
	"slices"

	"flanneld/pkg/kernel"
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
	// those in view. An error tells why there is none.
	To func(peer *subnet.Lease, view kernel.Host) (Path, error)

	// What the last set was, and what came of each lease.
	view   kernel.Host
	leases []*subnet.Lease
	paths  []Path
	faults []error
	// macs are those of paths' FDB entries, zero for none: all that is looked at
	// of other paths when one changes. clashing says that some are the same.
	macs     []kernel.MAC
	clashing bool
}

// Set adds the paths to the peers among leases to a state. There is a fault for
// each peer that there is no path to.
func (p *Paths) Set(want *kernel.State, leases []*subnet.Lease, view kernel.Host) (faults []error) {
	n := len(leases)
	paths, errs, macs := make([]Path, n), make([]error, n), make([]kernel.MAC, n)
	var fresh []int // the leases that were not in the last set
	for i, j := 0, 0; i < n; i++ {
		// Both sets are in order of subnets, or else more is looked at than need be.
		for j < len(p.leases) && p.leases[j] != leases[i] && p.leases[j].Subnet.Compare(leases[i].Subnet) < 0 {
			j++
		}
		if j < len(p.leases) && p.leases[j] == leases[i] && view == p.view {
			paths[i], errs[i], macs[i] = p.paths[j], p.faults[j], p.macs[j]
			j++
			continue
		}
		if paths[i], errs[i] = p.path(leases[i], view); paths[i].FDB != nil {
			macs[i] = paths[i].FDB.MAC
		}
		fresh = append(fresh, i)
	}
	p.clashing = clash(macs, fresh, p.clashing)
	p.view, p.leases, p.paths, p.faults, p.macs = view, leases, paths, errs, macs
	return p.fill(want)
}

func (p *Paths) path(l *subnet.Lease, view kernel.Host) (Path, error) {
	if ok, fault := p.Peer(l); !ok {
		return Path{}, fault
	}
	return p.To(l, view)
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
		if path.FDB != nil {
			holder := i
			if p.clashing {
				holder = holders[p.macs[i]]
			}
			switch {
			case holder != i && p.paths[holder].FDB.Dst != path.FDB.Dst:
				faults = append(faults, fmt.Errorf("leaving out the lease of %v: its VtepMAC %v is also that of %v; if both hosts are there, delete the device %s on one of them and restart flanneld there",
					p.leases[i], p.macs[i], p.leases[holder], path.Route.Dev))
				continue
			case holder == i: // one entry for a host with several leases
				want.FDB = append(want.FDB, path.FDB)
			}
		}
		if path.Route != nil {
			want.Routes = append(want.Routes, path.Route)
		}
		if path.Neighbour != nil {
			want.Neighbours = append(want.Neighbours, path.Neighbour)
		}
	}
	return faults
}

// holders are the leases whose FDB entry counts, if some have one MAC. A host
// that has changed its address or subnet may have an old lease left: what was
// written last counts.
func (p *Paths) holders() map[kernel.MAC]int {
	if !p.clashing {
		return nil
	}
	holders := map[kernel.MAC]int{}
	for i, mac := range p.macs {
		if other, ok := holders[mac]; !ok || p.leases[other].Revision < p.leases[i].Revision {
			holders[mac] = i
		}
	}
	return holders
}

// few is how many fresh MACs are each compared with all others. For more, a map
// of all is less work.
const few = 16

// clash reports whether some MACs are the same. Those that are not fresh were
// looked at before, with the result in before.
func clash(macs []kernel.MAC, fresh []int, before bool) bool {
	none := kernel.MAC{}
	if before || len(fresh) > few {
		seen := make(map[kernel.MAC]bool, len(macs))
		for _, mac := range macs {
			if seen[mac] && mac != none {
				return true
			}
			seen[mac] = true
		}
		return false
	}
	for _, i := range fresh {
		if macs[i] != none && (slices.Contains(macs[:i], macs[i]) || slices.Contains(macs[i+1:], macs[i])) {
			return true
		}
	}
	return false
}
