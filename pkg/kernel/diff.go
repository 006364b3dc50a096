package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// change is one write to the kernel.
type change struct {
	op
	hop   *hop         // addHop, delHop; in setRoute the one to use, nil for none
	route *Route       // setRoute, conflict; in addHop the first that wants it
	old   *haveRoute   // delRoute
	neigh *Neighbour   // setNeigh, delNeigh
	fdb   *FDBEntry    // setFDB, clearFDB, delFDB
	in    netip.Prefix // conflict: what of the host's own is in the way

	made bool // by apply
}

type op int8

// In the order in which they are made: a new entry is complete before packets
// are sent its way, and an old one is used no more before it is taken apart.
const (
	clearFDB op = iota // before setFDB: not every entry can be replaced
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
func (c *change) deletes() bool {
	return c.op == delRoute || c.op == delHop || c.op == delNeigh || c.op == delFDB || c.op == clearFDB
}

func (c *change) String() string {
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

// why is the reason of a conflict.
func (c *change) why() error {
	if c.in == c.route.Dst {
		return errors.New("the host has a route of its own to it, which stays")
	}
	return fmt.Errorf("the host is itself on the link %v, which is a part of it", c.in)
}

// entry is what a change is about: of each kind there is one under a key.
type entry struct {
	kind byte
	key  uint64
}

// entry is that of a change. A next hop is part of the routes through it.
func (c *change) entry() entry {
	switch c.op {
	case setNeigh, delNeigh:
		return neighEntry(c.neigh)
	case setFDB, clearFDB, delFDB:
		return fdbEntry(c.fdb)
	case delRoute:
		return routeEntry(&c.old.Route)
	case delHop:
		return entry{'h', uint64(c.hop.id)}
	}
	return routeEntry(c.route)
}

func routeEntry(r *Route) entry     { return entry{'r', uint64(r.slot())} }
func neighEntry(n *Neighbour) entry { return entry{'n', uint64(n.key())} }
func fdbEntry(f *FDBEntry) entry    { return entry{'f', uint64(f.key())} }

// diff lists what has to be done to get from h to want, of all there is.
func diff(want State, h *have) []change {
	d := differ{have: h, all: true}
	d.routes(want.Routes)
	for dst := range h.routes {
		d.leftRoutes(dst)
	}
	for _, dst := range want.Local {
		d.leftGateways(slotOf(dst))
	}
	for _, r := range h.surplus {
		d.deleteRoute(r)
	}
	d.neighbours(want.Neighbours)
	for ip := range h.neighs {
		d.leftNeighbour(ip)
	}
	d.fdbEntries(want.FDB)
	for mac := range h.fdb {
		d.leftFDB(mac)
	}
	return d.sorted()
}

// diffSince lists what has to be done to get from h to want where h is as before
// asked for, but for what has failed: only what is not in both is looked at.
func diffSince(before, want State, h *have) []change {
	d := differ{have: h}
	olds, news := apart(before.Routes, want.Routes)
	d.routes(news)
	for _, r := range olds {
		d.leftRoutes(r.slot())
	}
	oldNeighs, newNeighs := apart(before.Neighbours, want.Neighbours)
	d.neighbours(newNeighs)
	for _, n := range oldNeighs {
		d.leftNeighbour(n.key())
	}
	oldFDB, newFDB := apart(before.FDB, want.FDB)
	d.fdbEntries(newFDB)
	for _, f := range oldFDB {
		d.leftFDB(f.key())
	}
	return d.sorted()
}

// apart returns what is in only one of two lists. A plan uses the same pointer
// for what has not changed, and keeps the order, so that nothing behind it has to
// be looked at. Where the lists differ so much that their likeness is not found,
// more is returned than need be, of both, which does no harm.
func apart[T any](a, b []*T) (onlyA, onlyB []*T) {
	const far = 64 // how far to look for where the lists are alike again
	for len(a) > 0 && len(b) > 0 {
		if a[0] == b[0] {
			a, b = a[1:], b[1:]
			continue
		}
		inB, inA := slices.Index(b[:min(far, len(b))], a[0]), slices.Index(a[:min(far, len(a))], b[0])
		if inA < 0 {
			onlyB, b = append(onlyB, b[0]), b[1:]
		}
		if inB < 0 || inA >= 0 { // or else the order has changed
			onlyA, a = append(onlyA, a[0]), a[1:]
		}
	}
	return append(onlyA, a...), append(onlyB, b...)
}

// differ gathers changes.
type differ struct {
	have    *have
	all     bool // not only what is not in both of two States
	changes []change

	// What of the wanted is looked at, and is not left over then.
	wantedRoutes wanted[Route, slot]
	wantedNeighs wanted[Neighbour, ip4]
	wantedFDB    wanted[FDBEntry, mac48]
	// users are how many more routes will go through a hop afterwards.
	users map[*hop]int
}

// wanted is a list that is asked for keys, mostly never.
type wanted[E any, K comparable] struct {
	list []*E
	keys map[K]bool
}

func (w *wanted[E, K]) has(key K, of func(*E) K) bool {
	if w.keys == nil {
		w.keys = make(map[K]bool, len(w.list))
		for _, e := range w.list {
			w.keys[of(e)] = true
		}
	}
	return w.keys[key]
}

func (d *differ) add(c change) { d.changes = append(d.changes, c) }

// sorted ends the gathering.
func (d *differ) sorted() []change {
	unused := func(is *hop) {
		if is.users+d.users[is] == 0 {
			d.add(change{op: delHop, hop: is})
		}
	}
	if d.all {
		for _, is := range d.have.hops.ours {
			unused(is)
		}
	} else {
		for is := range d.users {
			unused(is)
		}
	}
	slices.SortStableFunc(d.changes, func(a, b change) int { return cmp.Compare(a.op, b.op) })
	return d.changes
}

// leave says that so many more routes will go through a hop.
func (d *differ) leave(is *hop, more int) {
	if is != nil {
		if d.users == nil {
			d.users = map[*hop]int{}
		}
		d.users[is] += more
	}
}

func (d *differ) deleteRoute(r *haveRoute) {
	d.leave(r.hop, -1)
	d.add(change{op: delRoute, old: r})
}

// routes looks at wanted routes and all that is in their slots.
func (d *differ) routes(want []*Route) {
	d.wantedRoutes.list = want
	for _, r := range want {
		dst := r.slot()
		first := d.have.routes[dst]
		stays, foreigner := pick(first, r)
		// The host is itself on a link that is a part of the destination, whatever
		// the State says: a route through a gateway would take the host's own
		// neighbours away from it.
		link, taken := d.have.linked[dst]
		taken = taken && r.Via.IsValid()
		if !taken && foreigner { // of several in a slot the kernel uses the first
			link, taken = r.Dst, true
		}
		switch {
		case taken:
			d.add(change{op: conflict, route: r, in: link})
			stays = nil
		case stays == nil:
			d.setRoute(r)
			if stays = first; first != nil { // its place is taken
				d.leave(first.hop, -1)
			}
		}
		for t := first; t != nil; t = t.next {
			if t != stays && (t.claim == ours || t.claim == free && !taken) {
				d.deleteRoute(t)
			}
		}
	}
}

// pick finds the route among those to one destination that is as wanted, and
// whether there is a foreign one before it.
func pick(first *haveRoute, r *Route) (right *haveRoute, foreigner bool) {
	for t := first; t != nil; t = t.next {
		if right == nil && t.claim == ours && !t.odd && t.Route == *r {
			right = t
		}
		foreigner = foreigner || t.claim == foreign && right == nil
	}
	return right, foreigner
}

func (d *differ) setRoute(r *Route) {
	c := change{op: setRoute, route: r}
	if r.Via.IsValid() && !d.have.hops.none {
		fresh := false
		if c.hop, fresh = d.have.hops.find(r.way()); fresh {
			d.add(change{op: addHop, route: r, hop: c.hop})
		}
		d.leave(c.hop, 1)
	}
	d.add(c)
}

// leftRoutes deletes those of ours in a slot that nobody wants.
func (d *differ) leftRoutes(dst slot) {
	for t := d.have.routes[dst]; t != nil; t = t.next {
		if t.claim == ours && !d.wantedRoutes.has(dst, (*Route).slot) {
			d.deleteRoute(t)
		}
	}
}

// leftGateways deletes nobody's routes through a gateway to a destination on
// this host itself, see State.Local.
func (d *differ) leftGateways(dst slot) {
	for t := d.have.routes[dst]; t != nil; t = t.next {
		if t.claim == free && t.Via.IsValid() && !d.wantedRoutes.has(dst, (*Route).slot) {
			d.deleteRoute(t)
		}
	}
}

func (d *differ) neighbours(want []*Neighbour) {
	d.wantedNeighs.list = want
	for _, n := range want {
		if d.have.neighs[n.key()] != (haveNeighbour{n.MAC, true}) {
			d.add(change{op: setNeigh, neigh: n})
		}
	}
}

func (d *differ) leftNeighbour(ip ip4) {
	// Those that are not permanent are the kernel's own business.
	if t := d.have.neighs[ip]; t.permanent && !d.wantedNeighs.has(ip, (*Neighbour).key) {
		d.add(change{op: delNeigh, neigh: &Neighbour{ip.addr(), t.mac}})
	}
}

func (d *differ) fdbEntries(want []*FDBEntry) {
	d.wantedFDB.list = want
	for _, f := range want {
		there, ok := d.have.fdb[f.key()]
		if ok && there == (haveFDB{dst: keyOf(f.Dst)}) {
			continue
		}
		if there.many || there.odd {
			d.add(change{op: clearFDB, fdb: f})
		}
		d.add(change{op: setFDB, fdb: f})
	}
}

func (d *differ) leftFDB(mac mac48) {
	if _, ok := d.have.fdb[mac]; ok && !d.wantedFDB.has(mac, (*FDBEntry).key) {
		d.add(change{op: delFDB, fdb: &FDBEntry{MAC: mac.mac()}})
	}
}
