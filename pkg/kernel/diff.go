package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// change is one write to the kernel.
type change struct {
	op
	hop   *hop       // addHop, delHop; in setRoute the one to use, nil for none
	route *Route     // setRoute, conflict; in addHop the first that wants it
	old   *haveRoute // delRoute
	neigh *Neighbour
	fdb   *FDBEntry
	in    *netip.Prefix // conflict: what of the host's own is in the way
}

type op int8

// In the order in which they are made: a new entry is complete before packets
// are sent its way, and an old one is used no more before it is taken apart.
const (
	clearFDB op = iota // before setFDB, as an entry with two destinations cannot be replaced
	setFDB
	setNeigh
	addHop
	setRoute
	conflict // a route is wanted where the host has one of its own: it is not set
	delRoute
	delHop // after delRoute: the kernel looks for routes that use it
	delNeigh
	delFDB // with all destinations, as clearFDB
)

// deletes reports whether a change takes something away and adds nothing.
func (c change) deletes() bool { return c.op >= delRoute || c.op == clearFDB }

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
	case addHop:
		return fmt.Sprintf("making the next hop %d of the route %v", c.hop.id, c.route)
	case delHop:
		return fmt.Sprintf("deleting the next hop %d", c.hop.id)
	case delNeigh:
		return fmt.Sprintf("deleting the neighbour %v", c.neigh)
	}
	return fmt.Sprintf("setting the route %v", c.route)
}

// diff lists what has to be done to get from h to want.
func diff(want State, h *have) []change {
	h.pass++
	var changes []change
	changes = diffRoutes(changes, want.Routes, want.Local, h)
	changes = diffNeighbours(changes, want.Neighbours, h)
	changes = diffFDB(changes, want.FDB, h)
	slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(a.op, b.op) })
	return changes
}

func diffRoutes(changes []change, want []Route, local []netip.Prefix, h *have) []change {
	inTheWay := ownLinks(h.links, want)
	right, hopsUsed := 0, 0
	use := func(is *hop) {
		if is != nil && is.seen != h.pass {
			is.seen = h.pass
			hopsUsed++
		}
	}
	for i := range want {
		r := &want[i]
		first := h.routes[slotOf(r.Dst)]
		if first != nil {
			first.seen = h.pass
		}
		stays, foreigner := pick(first, r)
		obstacle := inTheWay[r.Dst]
		if obstacle == nil && stays == nil && foreigner {
			obstacle = &r.Dst
		}
		switch {
		case obstacle != nil:
			changes = append(changes, change{op: conflict, route: r, in: obstacle})
			stays = nil
		case stays != nil:
			use(stays.hop)
			right++
		default:
			c := change{op: setRoute, route: r}
			if r.Via.IsValid() && !h.hops.none {
				fresh := false
				if c.hop, fresh = h.hops.find(r.way()); fresh {
					changes = append(changes, change{op: addHop, route: r, hop: c.hop})
				}
				use(c.hop)
			}
			changes = append(changes, c)
			stays = first // its place is taken
		}
		for t := first; t != nil; t = t.next {
			if t != stays && (t.claim == ours || t.claim == free && obstacle == nil) {
				changes = append(changes, change{op: delRoute, old: t})
			}
		}
	}
	for _, dst := range local {
		if first := h.routes[slotOf(dst)]; first != nil && first.seen != h.pass {
			for t := first; t != nil; t = t.next {
				if t.claim == free && t.Via.IsValid() {
					changes = append(changes, change{op: delRoute, old: t})
				}
			}
		}
	}
	if right < h.ourRoutes {
		for _, first := range h.routes {
			for t := first; t != nil && first.seen != h.pass; t = t.next {
				if t.claim == ours {
					changes = append(changes, change{op: delRoute, old: t})
				}
			}
		}
	}
	for _, t := range h.surplus {
		changes = append(changes, change{op: delRoute, old: t})
	}
	if hopsUsed < len(h.hops.ours) {
		for _, is := range h.hops.ours {
			if is.seen != h.pass {
				changes = append(changes, change{op: delHop, hop: is})
			}
		}
	}
	return changes
}

// pick finds the route among those to one destination that is as wanted, and
// whether there is a foreign one.
func pick(first *haveRoute, r *Route) (right *haveRoute, foreigner bool) {
	for t := first; t != nil; t = t.next {
		if right == nil && t.claim == ours && !t.odd && t.Route == *r {
			right = t
		}
		foreigner = foreigner || t.claim == foreign
	}
	return right, foreigner
}

// ownLinks finds, for each wanted route through a gateway, a link of the host's
// own that is a part of its destination, or all of it. The host is itself there,
// whatever the State says: such a route would take the host's neighbours away
// from it.
func ownLinks(links []netip.Prefix, want []Route) map[netip.Prefix]*netip.Prefix {
	found := map[netip.Prefix]*netip.Prefix{}
	if len(links) == 0 {
		return found
	}
	inside := map[netip.Prefix]*netip.Prefix{} // of what a link is inside
	for i := range links {
		for bits := links[i].Bits(); bits > 0; bits-- {
			inside[netip.PrefixFrom(links[i].Addr(), bits).Masked()] = &links[i]
		}
	}
	for i := range want {
		if link := inside[want[i].Dst]; link != nil && want[i].Via.IsValid() {
			found[want[i].Dst] = link
		}
	}
	return found
}

func diffNeighbours(changes []change, want []Neighbour, h *have) []change {
	right := 0
	for i := range want {
		n := &want[i]
		if h.neighs[keyOf(n.IP)] == (haveNeighbour{n.MAC, true}) {
			right++
		} else {
			changes = append(changes, change{op: setNeigh, neigh: n})
		}
	}
	if right == h.permanent { // those that are not permanent are the kernel's own business
		return changes
	}
	wanted := make(map[ip4]bool, len(want))
	for i := range want {
		wanted[keyOf(want[i].IP)] = true
	}
	for ip, t := range h.neighs {
		if t.permanent && !wanted[ip] {
			changes = append(changes, change{op: delNeigh, neigh: &Neighbour{ip.addr(), t.mac}})
		}
	}
	return changes
}

func diffFDB(changes []change, want []FDBEntry, h *have) []change {
	right := 0
	for i := range want {
		f := &want[i]
		there, ok := h.fdb[f.MAC.key()]
		if ok && there == (haveFDB{dst: keyOf(f.Dst)}) {
			right++
			continue
		}
		if there.many {
			changes = append(changes, change{op: clearFDB, fdb: f})
		}
		changes = append(changes, change{op: setFDB, fdb: f})
	}
	if right == len(h.fdb) {
		return changes
	}
	wanted := make(map[mac48]bool, len(want))
	for i := range want {
		wanted[want[i].MAC.key()] = true
	}
	for mac := range h.fdb {
		if !wanted[mac] {
			changes = append(changes, change{op: delFDB, fdb: &FDBEntry{MAC: mac.mac()}})
		}
	}
	return changes
}
