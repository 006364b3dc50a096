package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// have is what the kernel has, as far as it is ours or in our way. A value of
// an entry that State cannot express is marked odd, so that it equals nothing;
// an FDB entry like that has no Dst.
type have struct {
	// routes are those in the slots State can fill: main table, no metric.
	// There may be several to one destination.
	routes []haveRoute
	// surplus are ours, but not in such a slot.
	surplus []haveRoute
	neighs  map[netip.Addr]haveNeighbour
	fdb     map[MAC][]FDBEntry
}

type haveRoute struct {
	Route
	claim claim
	odd   bool
	raw   any // what to hand back to the kernel to delete it
}

// claim says whose a route is.
type claim int

const (
	// ours bears our mark or is on our device.
	ours claim = iota
	// free bears nobody's mark, as routes do that were made by hand or by a
	// daemon that marks none: it gives way where a route of ours is wanted.
	free
	// foreign is somebody else's and never touched.
	foreign
)

type haveNeighbour struct {
	Neighbour
	permanent bool
}

// change is one write to the kernel.
type change struct {
	op
	route Route
	old   haveRoute
	neigh Neighbour
	fdb   FDBEntry
}

type op int

// In the order in which they are made: a new entry is complete before packets
// are sent its way, and an old one is used no more before it is taken apart.
const (
	clearFDB op = iota // before setFDB, as an entry with two destinations cannot be replaced
	setFDB
	setNeigh
	setRoute
	conflict // a route is wanted where there is a foreign one: it is not set
	delRoute
	delNeigh
	delFDB // with all destinations, as clearFDB
)

func (c change) String() string {
	switch c.op {
	case setNeigh:
		return fmt.Sprintf("setting the neighbour %v", c.neigh)
	case clearFDB, delFDB:
		return fmt.Sprintf("deleting the FDB entry %v", c.fdb.MAC)
	case setFDB:
		return fmt.Sprintf("setting the FDB entry %v", c.fdb)
	case delRoute:
		return fmt.Sprintf("deleting the route %v", c.old.Route)
	case delNeigh:
		return fmt.Sprintf("deleting the neighbour %v", c.neigh)
	}
	return fmt.Sprintf("setting the route %v", c.route)
}

// diff lists what has to be done to get from h to want.
func diff(want State, h have) []change {
	var changes []change
	changes = diffRoutes(changes, want.Routes, want.Local, h)
	changes = diffNeighbours(changes, want.Neighbours, h.neighs)
	changes = diffFDB(changes, want.FDB, h.fdb)
	slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(a.op, b.op) })
	return changes
}

func diffRoutes(changes []change, want []Route, local []netip.Prefix, h have) []change {
	slots := make(map[netip.Prefix][]haveRoute, len(h.routes))
	for _, r := range h.routes {
		slots[r.Dst] = append(slots[r.Dst], r)
	}
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, r := range want {
		wanted[r.Dst] = true
		there := slots[r.Dst]
		right := slices.IndexFunc(there, func(t haveRoute) bool { return t.claim == ours && !t.odd && t.Route == r })
		taken := right < 0 && slices.ContainsFunc(there, func(t haveRoute) bool { return t.claim == foreign })
		switch {
		case taken:
			changes = append(changes, change{op: conflict, route: r})
		case right < 0:
			// The kernel replaces the first that it finds in the slot.
			changes = append(changes, change{op: setRoute, route: r})
			right = 0
		}
		for i, t := range there {
			if i != right && (t.claim == ours || t.claim == free && !taken) {
				changes = append(changes, change{op: delRoute, old: t})
			}
		}
	}
	for _, t := range h.routes {
		leftover := t.claim == free && t.Via.IsValid() && slices.Contains(local, t.Dst)
		if (t.claim == ours || leftover) && !wanted[t.Dst] {
			changes = append(changes, change{op: delRoute, old: t})
		}
	}
	for _, t := range h.surplus {
		changes = append(changes, change{op: delRoute, old: t})
	}
	return changes
}

func diffNeighbours(changes []change, want []Neighbour, have map[netip.Addr]haveNeighbour) []change {
	wanted := make(map[netip.Addr]bool, len(want))
	for _, n := range want {
		wanted[n.IP] = true
		if t, ok := have[n.IP]; !ok || !t.permanent || t.Neighbour != n {
			changes = append(changes, change{op: setNeigh, neigh: n})
		}
	}
	for ip, t := range have {
		// Those that are not permanent are the kernel's own business.
		if t.permanent && !wanted[ip] {
			changes = append(changes, change{op: delNeigh, neigh: t.Neighbour})
		}
	}
	return changes
}

func diffFDB(changes []change, want []FDBEntry, have map[MAC][]FDBEntry) []change {
	wanted := make(map[MAC]bool, len(want))
	for _, f := range want {
		wanted[f.MAC] = true
		if there := have[f.MAC]; len(there) == 1 && there[0] == f {
			continue
		}
		if len(have[f.MAC]) > 1 {
			changes = append(changes, change{op: clearFDB, fdb: FDBEntry{MAC: f.MAC}})
		}
		changes = append(changes, change{op: setFDB, fdb: f})
	}
	for mac := range have {
		if !wanted[mac] {
			changes = append(changes, change{op: delFDB, fdb: FDBEntry{MAC: mac}})
		}
	}
	return changes
}
