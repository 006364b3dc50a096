package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"flanneld/pkg/rtnl"
)

// have is what the kernel has, as far as it is ours or in our way: as it was
// read, and since then brought up to date with each write that succeeded.
type have struct {
	// routes are those in the slots State can fill: main table, no metric. There
	// may be several to one destination: here is the first, which the kernel
	// replaces, and the others follow from it.
	routes map[slot]*haveRoute
	// surplus are ours, but not in such a slot.
	surplus []*haveRoute
	// linked has the destinations that a link of the host's own is a part of, or
	// all of, and that link.
	linked map[slot]netip.Prefix
	hops   hops
	// neighs and fdb are those of State.Device.
	neighs map[ip4]haveNeighbour
	fdb    map[mac48]haveFDB
}

// slot is a destination, ip4 an address, mac48 a MAC, as keys of large maps:
// small, and without pointers for the garbage collector to follow.
type (
	slot  uint64
	ip4   uint32
	mac48 uint64
)

func slotOf(p netip.Prefix) slot { return slot(keyOf(p.Addr()))<<8 | slot(p.Bits()) }

func (r *Route) slot() slot    { return slotOf(r.Dst) }
func (n *Neighbour) key() ip4  { return keyOf(n.IP) }
func (f *FDBEntry) key() mac48 { return f.MAC.key() }

func keyOf(a netip.Addr) ip4 {
	four := a.As4()
	return ip4(binary.BigEndian.Uint32(four[:]))
}

func (k ip4) addr() netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(k))))
}

func (m MAC) key() mac48 {
	return mac48(binary.BigEndian.Uint16(m[:]))<<32 | mac48(binary.BigEndian.Uint32(m[2:]))
}

func (k mac48) mac() MAC {
	return MAC(binary.BigEndian.AppendUint64(nil, uint64(k))[2:])
}

// haveRoute is a route there is. One with something that Route cannot express
// is odd, so that it equals nothing.
type haveRoute struct {
	Route
	claim claim
	odd   bool
	hop   *hop       // the one of ours that it goes through, if it does
	raw   rtnl.Route // what to ask the kernel to delete
	next  *haveRoute // to the same destination
}

// claim says whose a route is.
type claim int8

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
	mac       MAC
	permanent bool
}

// haveFDB is what an FDB has for a MAC: one destination, or something else.
type haveFDB struct {
	dst ip4
	// odd has more to it than a destination, or there are many.
	odd, many bool
}

func newHave(hops hops) have {
	return have{
		routes: map[slot]*haveRoute{},
		linked: map[slot]netip.Prefix{},
		hops:   hops,
		neighs: map[ip4]haveNeighbour{},
		fdb:    map[mac48]haveFDB{},
	}
}

// addRoute adds a route after those to the same destination.
func (h *have) addRoute(r *haveRoute) {
	r.hop.use(1)
	first := h.routes[slotOf(r.Dst)]
	if first == nil {
		h.routes[slotOf(r.Dst)] = r
		return
	}
	for first.next != nil {
		first = first.next
	}
	first.next = r
}

// addSurplus adds a route of ours that is in no slot.
func (h *have) addSurplus(r *haveRoute) {
	r.hop.use(1)
	h.surplus = append(h.surplus, r)
}

// replaceRoute puts r where the kernel puts one that replaces: in the place of
// the first to its destination.
func (h *have) replaceRoute(r *haveRoute) {
	r.hop.use(1)
	if first := h.routes[slotOf(r.Dst)]; first != nil {
		first.hop.use(-1)
		r.next = first.next
	}
	h.routes[slotOf(r.Dst)] = r
}

// dropRoute forgets a route that was deleted.
func (h *have) dropRoute(gone *haveRoute) {
	gone.hop.use(-1)
	if gone.raw.Metric != 0 || gone.raw.TOS != 0 {
		h.surplus = slices.DeleteFunc(h.surplus, func(r *haveRoute) bool { return r == gone })
		return
	}
	first := h.routes[slotOf(gone.Dst)]
	switch {
	case first == gone && gone.next == nil:
		delete(h.routes, slotOf(gone.Dst))
	case first == gone:
		h.routes[slotOf(gone.Dst)] = gone.next
	default:
		for r := first; r != nil; r = r.next {
			if r.next == gone {
				r.next = gone.next
				return
			}
		}
	}
}

// addLink notes that the host is itself on a link.
func (h *have) addLink(link netip.Prefix) {
	for bits := link.Bits(); bits > 0; bits-- {
		h.linked[slotOf(netip.PrefixFrom(link.Addr(), bits).Masked())] = link
	}
}

// addFDB adds an entry that was read.
func (h *have) addFDB(e rtnl.FDBEntry) {
	key := MAC(e.MAC).key()
	_, many := h.fdb[key]
	is := fdbOf(e)
	is.many = many
	h.fdb[key] = is
}

// fdbOf is what an FDB has that has this one entry for a MAC.
func fdbOf(e rtnl.FDBEntry) haveFDB {
	if e.Other || !e.Dst.IsValid() {
		return haveFDB{odd: true}
	}
	return haveFDB{dst: keyOf(e.Dst)}
}

// way is what a route through a gateway says of how to reach its destination.
type way struct {
	dev    string
	via    ip4
	onLink bool
}

func (r *Route) way() way { return way{r.Dev, keyOf(r.Via), r.OnLink} }

// hops are the kernel's next-hop objects. Routes through them are added in a
// time that does not grow with the table, see rtnl.NextHop.
type hops struct {
	// none is a kernel that has no such objects: routes name their gateway.
	none  bool
	ours  map[uint32]*hop // by ID
	byWay map[way]*hop
	// taken are those of others, by ID.
	taken map[uint32]rtnl.NextHop
	// last is the ID last given.
	last uint32
}

// hop is a next-hop object of ours.
type hop struct {
	id uint32
	way
	users int // the routes through it
}

func (is *hop) use(by int) {
	if is != nil {
		is.users += by
	}
}

// firstHop is where the IDs of ours begin: far from where others count up from.
const firstHop = 102 << 24

func newHops() hops {
	return hops{ours: map[uint32]*hop{}, byWay: map[way]*hop{}, taken: map[uint32]rtnl.NextHop{}}
}

func (h *hops) add(id uint32, w way) *hop {
	is := &hop{id: id, way: w}
	h.ours[id], h.byWay[w] = is, is
	return is
}

func (h *hops) drop(gone *hop) {
	if h.byWay[gone.way] == gone {
		delete(h.byWay, gone.way)
	}
	delete(h.ours, gone.id)
}

// find returns the hop for a way, and whether it has to be made first, under an
// ID that nobody has.
func (h *hops) find(w way) (is *hop, fresh bool) {
	if is = h.byWay[w]; is != nil {
		return is, false
	}
	for {
		h.last = max(h.last+1, firstHop)
		if _, taken := h.taken[h.last]; !taken && h.ours[h.last] == nil {
			return h.add(h.last, w), true
		}
	}
}
