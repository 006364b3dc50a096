package kernel

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flanneld/pkg/rtnl"
)

var seed = flag.Uint64("seed", 0, "of TestDiffProperty; 0 is another one each time")

// In the tests of diff a route is written as State prints it, with "own",
// "free" or "foreign" in front where it is one the kernel has, and "odd" where
// it has something that State cannot express. "nhid" is a next-hop object.

func route(text string) Route {
	r, _ := routeThrough(text)
	return r
}

func routeThrough(text string) (r Route, hop uint32) {
	f := strings.Fields(text)
	r = Route{Dst: pfx(f[0])}
	for i := 1; i < len(f); i++ {
		switch f[i] {
		case "nhid":
			i++
			n, err := strconv.Atoi(f[i])
			if err != nil {
				panic(text)
			}
			hop = uint32(n)
		case "via":
			i++
			r.Via = ip(f[i])
		case "dev":
			i++
			r.Dev = f[i]
		case "onlink":
			r.OnLink = true
		default:
			panic(text)
		}
	}
	return r, hop
}

func haveRoutes(texts ...string) (routes []*haveRoute) {
	for _, text := range texts {
		r := &haveRoute{}
		whose, rest, _ := strings.Cut(text, " ")
		r.claim = map[string]claim{"own": ours, "free": free, "foreign": foreign}[whose]
		rest, r.odd = strings.CutPrefix(rest, "odd ")
		r.odd = r.odd || r.claim != ours
		r.Route, r.raw.NextHop = routeThrough(rest)
		routes = append(routes, r)
	}
	return routes
}

// claims are the words for whose a route is.
var claims = map[claim]string{ours: "own", free: "free", foreign: "foreign"}

// there is what the kernel has: these routes in their slots.
func there(routes ...string) *have {
	h := newHave(newHops())
	for _, r := range haveRoutes(routes...) {
		if id := r.raw.NextHop; id != 0 {
			r.hop = h.hops.add(id, r.way())
		}
		h.addRoute(r)
	}
	return &h
}

// pointers are to copies of what is in a list.
func pointers[T any](list []T) (all []*T) {
	for _, e := range list {
		all = append(all, &e)
	}
	return all
}

func describe(changes []change) (lines []string) {
	for _, c := range changes {
		line := c.String()
		switch c.op {
		case conflict:
			line = "conflict in " + line
		case delRoute:
			whose := claims[c.old.claim]
			if c.old.odd && c.old.claim == ours {
				whose += " odd"
			}
			line += fmt.Sprintf(" [%s %v]", whose, c.old.Route)
		case setRoute:
			if c.hop != nil {
				line += fmt.Sprintf(" nhid %d", c.hop.id)
			}
		case clearFDB:
			line = "first " + line
		}
		lines = append(lines, line)
	}
	return lines
}

func TestDiffRoutes(t *testing.T) {
	const wanted = "10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink"
	const set = "setting the route " + wanted
	for _, test := range []struct {
		name          string
		want          []string
		have, surplus []string
		changes       []string
	}{
		{name: "nothing"},
		{name: "new", want: []string{wanted}, changes: []string{set}},
		{name: "equal", want: []string{wanted}, have: []string{"own " + wanted}},
		{name: "other gateway", want: []string{wanted}, have: []string{"own 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink"}, changes: []string{set}},
		{name: "no gateway", want: []string{wanted}, have: []string{"own 10.1.2.0/24 dev flannel.1"}, changes: []string{set}},
		{name: "other device", want: []string{wanted}, have: []string{"own 10.1.2.0/24 via 10.1.2.0 dev eth0 onlink"}, changes: []string{set}},
		{name: "not onlink", want: []string{wanted}, have: []string{"own 10.1.2.0/24 via 10.1.2.0 dev flannel.1"}, changes: []string{set}},
		{name: "odd", want: []string{wanted}, have: []string{"own odd " + wanted}, changes: []string{set}},
		{name: "other length is another slot", want: []string{wanted}, have: []string{"own 10.1.2.0/25 via 10.1.2.0 dev flannel.1 onlink"},
			changes: []string{set, "deleting the route 10.1.2.0/25 via 10.1.2.0 dev flannel.1 onlink [own 10.1.2.0/25 via 10.1.2.0 dev flannel.1 onlink]"}},
		{name: "own but not wanted", have: []string{"own " + wanted}, changes: []string{"deleting the route " + wanted + " [own " + wanted + "]"}},
		{name: "odd and not wanted", have: []string{"own odd " + wanted}, changes: []string{"deleting the route " + wanted + " [own odd " + wanted + "]"}},
		{name: "two of ours not wanted", have: []string{"own " + wanted, "own 10.1.2.0/24 dev eth0"}, changes: []string{
			"deleting the route " + wanted + " [own " + wanted + "]", "deleting the route 10.1.2.0/24 dev eth0 [own 10.1.2.0/24 dev eth0]"}},
		{name: "nobody's in the slot", want: []string{wanted}, have: []string{"free " + wanted}, changes: []string{set}},
		{name: "nobody's elsewhere", want: []string{wanted}, have: []string{"own " + wanted, "free 10.1.3.0/24 dev eth0"}},
		{name: "nobody's beside the right one", want: []string{wanted}, have: []string{"free 10.1.2.0/24 dev eth0", "own " + wanted},
			changes: []string{"deleting the route 10.1.2.0/24 dev eth0 [free 10.1.2.0/24 dev eth0]"}},
		{name: "foreign in the slot", want: []string{wanted}, have: []string{"foreign 10.1.2.0/24 dev eth0"}, changes: []string{"conflict in " + set}},
		{name: "foreign in the slot that looks the same", want: []string{wanted}, have: []string{"foreign " + wanted}, changes: []string{"conflict in " + set}},
		{name: "foreign elsewhere", have: []string{"foreign 10.1.3.0/24 dev eth0"}},
		{name: "foreign after the right one", want: []string{wanted}, have: []string{"own " + wanted, "foreign 10.1.2.0/24 dev eth0"}},
		{name: "foreign before the right one, which the kernel does not use then", want: []string{wanted}, have: []string{"foreign 10.1.2.0/24 dev eth0", "own " + wanted},
			changes: []string{"conflict in " + set, "deleting the route " + wanted + " [own " + wanted + "]"}},
		{name: "foreign and a wrong one of ours", want: []string{wanted}, have: []string{"own 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink", "foreign 10.1.2.0/24 dev eth0"},
			changes: []string{"conflict in " + set, "deleting the route 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink [own 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink]"}},
		{name: "foreign and nobody's", want: []string{wanted}, have: []string{"free 10.1.2.0/24 dev eth1", "foreign 10.1.2.0/24 dev eth0"}, changes: []string{"conflict in " + set}},
		{name: "all three", want: []string{wanted}, have: []string{"foreign 10.1.2.0/24 dev eth0", "free 10.1.2.0/24 dev eth1", "own " + wanted, "own 10.1.2.0/24 dev eth2"},
			changes: []string{"conflict in " + set, "deleting the route " + wanted + " [own " + wanted + "]", "deleting the route 10.1.2.0/24 dev eth2 [own 10.1.2.0/24 dev eth2]"}},
		{name: "several wrong in the slot: the first is replaced, the others deleted", want: []string{wanted},
			have:    []string{"own 10.1.2.0/24 dev eth0", "free 10.1.2.0/24 dev eth1", "own 10.1.2.0/24 dev eth2"},
			changes: []string{set, "deleting the route 10.1.2.0/24 dev eth1 [free 10.1.2.0/24 dev eth1]", "deleting the route 10.1.2.0/24 dev eth2 [own 10.1.2.0/24 dev eth2]"}},
		{name: "surplus", want: []string{wanted}, have: []string{"own " + wanted}, surplus: []string{"own " + wanted}, changes: []string{"deleting the route " + wanted + " [own " + wanted + "]"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var want State
			for _, text := range test.want {
				r := route(text)
				want.Routes = append(want.Routes, &r)
			}
			h := there(test.have...)
			h.surplus = haveRoutes(test.surplus...)
			h.hops.none = true
			got := describe(diff(want, h))
			if d := cmp.Diff(test.changes, got); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
		})
	}
}

var mac1, mac2 = MAC{2, 0, 0, 0, 0, 1}, MAC{2, 0, 0, 0, 0, 2}

func TestDiffNeighbours(t *testing.T) {
	a := ip("10.1.2.0")
	n := Neighbour{IP: a, MAC: mac1}
	const set, del = "setting the neighbour 10.1.2.0 lladdr 02:00:00:00:00:01", "deleting the neighbour 10.1.2.0 lladdr 02:00:00:00:00:01"
	for _, test := range []struct {
		name    string
		want    []Neighbour
		have    *haveNeighbour
		changes []string
	}{
		{name: "new", want: []Neighbour{n}, changes: []string{set}},
		{name: "equal", want: []Neighbour{n}, have: &haveNeighbour{mac1, true}},
		{name: "other MAC", want: []Neighbour{n}, have: &haveNeighbour{mac2, true}, changes: []string{set}},
		{name: "not permanent", want: []Neighbour{n}, have: &haveNeighbour{mac1, false}, changes: []string{set}},
		{name: "without a MAC", want: []Neighbour{n}, have: &haveNeighbour{}, changes: []string{set}},
		{name: "not wanted", have: &haveNeighbour{mac1, true}, changes: []string{del}},
		{name: "not wanted, not permanent", have: &haveNeighbour{mac1, false}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHave(newHops())
			if test.have != nil {
				h.neighs[keyOf(a)] = *test.have
			}
			if d := cmp.Diff(test.changes, describe(diff(State{Neighbours: pointers(test.want)}, &h))); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
		})
	}
}

func TestDiffFDB(t *testing.T) {
	e1, e2 := FDBEntry{mac1, ip("192.0.2.1")}, FDBEntry{mac1, ip("192.0.2.2")}
	const mac = "the FDB entry 02:00:00:00:00:01"
	const text1 = mac + " dst 192.0.2.1"
	for _, test := range []struct {
		name    string
		want    []FDBEntry
		have    []FDBEntry
		changes []string
	}{
		{name: "new", want: []FDBEntry{e1}, changes: []string{"setting " + text1}},
		{name: "equal", want: []FDBEntry{e1}, have: []FDBEntry{e1}},
		{name: "other destination", want: []FDBEntry{e1}, have: []FDBEntry{e2}, changes: []string{"setting " + text1}},
		{name: "second destination", want: []FDBEntry{e1}, have: []FDBEntry{e1, e2}, changes: []string{"first deleting " + mac, "setting " + text1}},
		{name: "not wanted", have: []FDBEntry{e1}, changes: []string{"deleting " + mac}},
		{name: "two destinations not wanted", have: []FDBEntry{e1, e2}, changes: []string{"deleting " + mac}},
		{name: "odd", want: []FDBEntry{e1}, have: []FDBEntry{{MAC: mac1}}, changes: []string{"first deleting " + mac, "setting " + text1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHave(newHops())
			for _, e := range test.have {
				h.addFDB(rtnl.FDBEntry{MAC: e.MAC, Dst: e.Dst})
			}
			if d := cmp.Diff(test.changes, describe(diff(State{FDB: pointers(test.want)}, &h))); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
		})
	}
}

// A peer's way is complete before its route leads there, and what leads to a
// peer's old place is taken back to front.
func TestDiffOrder(t *testing.T) {
	want := State{
		Routes:     pointers([]Route{route("10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink"), route("10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink")}),
		Neighbours: []*Neighbour{{ip("10.1.2.0"), mac1}},
		FDB:        []*FDBEntry{{mac1, ip("192.0.2.1")}},
	}
	h := there("own 10.1.3.0/24 nhid 7 via 10.1.3.0 dev flannel.1 onlink", "foreign 10.1.4.0/24 dev eth0")
	h.neighs[keyOf(ip("10.1.3.0"))] = haveNeighbour{mac2, true}
	h.addFDB(rtnl.FDBEntry{MAC: mac1, Dst: ip("192.0.2.8")})
	h.addFDB(rtnl.FDBEntry{MAC: mac1, Dst: ip("192.0.2.9")})
	h.addFDB(rtnl.FDBEntry{MAC: mac2, Dst: ip("192.0.2.2")})
	if d := cmp.Diff([]string{
		"first deleting the FDB entry 02:00:00:00:00:01",
		"setting the FDB entry 02:00:00:00:00:01 dst 192.0.2.1",
		"setting the neighbour 10.1.2.0 lladdr 02:00:00:00:00:01",
		"making the next hop 1711276032 of the route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink",
		"setting the route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink nhid 1711276032",
		"conflict in setting the route 10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink",
		"deleting the route 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink [own 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink]",
		"deleting the next hop 7",
		"deleting the neighbour 10.1.3.0 lladdr 02:00:00:00:00:02",
		"deleting the FDB entry 02:00:00:00:00:02",
	}, describe(diff(want, h))); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

// obey changes h as Linux does. It is the same code that Run keeps its notes
// with, under the kernel's own rules.
func obey(t *testing.T, h *have, changes []change) {
	var notes table
	for _, c := range changes {
		switch c.op {
		case conflict, addHop: // addHop is noted by diff itself
			continue
		case setRoute: // RTM_NEWROUTE with NLM_F_REPLACE
			if first := h.routes[slotOf(c.route.Dst)]; first != nil && first.claim == foreign {
				t.Fatalf("%v takes the place of the foreign %v", c, first.Route)
			}
			if c.hop != nil && (h.hops.ours[c.hop.id] != c.hop || c.hop.way != c.route.way()) {
				t.Fatalf("%v through the next hop %v", c, c.hop)
			}
			if c.hop == nil { // as rawRoute, which asks for interfaces
				h.replaceRoute(&haveRoute{Route: *c.route})
				continue
			}
		case delRoute:
			if c.old.claim == foreign {
				t.Fatalf("%v, which is foreign", c)
			}
			if !slices.Contains(h.surplus, c.old) && !slices.Contains(inSlot(h, slotOf(c.old.Dst)), c.old) {
				t.Fatalf("%v, which is not there", c)
			}
		case delHop:
			if h.hops.ours[c.hop.id] != c.hop {
				t.Fatalf("%v, which is not there", c)
			}
			for dst := range h.routes { // or the kernel would delete them
				for _, r := range inSlot(h, dst) {
					if r.hop == c.hop {
						t.Fatalf("%v, which %v uses", c, r.Route)
					}
				}
			}
		case delNeigh:
			if !h.neighs[keyOf(c.neigh.IP)].permanent {
				t.Fatalf("%v, which is the kernel's own", c)
			}
		case setFDB:
			if h.fdb[c.fdb.MAC.key()].many {
				t.Fatalf("%v, which has two destinations", c)
			}
		case clearFDB, delFDB:
			if _, ok := h.fdb[c.fdb.MAC.key()]; !ok {
				t.Fatalf("%v, which is not there", c)
			}
		}
		notes.note(h, &c)
	}
}

// inSlot are the routes to a destination.
func inSlot(h *have, dst slot) (all []*haveRoute) {
	for r := h.routes[dst]; r != nil; r = r.next {
		all = append(all, r)
	}
	return all
}

// Whatever there is and whatever is wanted: afterwards there is what is wanted,
// what is foreign is as it was, and there is nothing left to do.
func TestDiffProperty(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to repeat: -seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, 0))
	// Small ranges, so that things meet.
	some := func(n int, f func()) {
		for range r.IntN(n) {
			f()
		}
	}
	dst := func() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(6)), 0, 0}), 16) }
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(5))}) }
	mac := func() MAC { return MAC{2, 0, 0, 0, 0, byte(r.IntN(5))} }
	randomRoute := func(dst netip.Prefix) Route {
		return Route{Dst: dst, Via: addr(), Dev: []string{"eth0", "flannel.1"}[r.IntN(2)], OnLink: r.IntN(2) == 0}
	}
	hold := func(c claim) *haveRoute {
		return &haveRoute{Route: randomRoute(dst()), claim: c, odd: c != ours || r.IntN(4) == 0}
	}
	for round := range 5000 {
		var want State
		seen := map[any]bool{}
		once := func(key any) bool { was := seen[key]; seen[key] = true; return !was }
		some(7, func() {
			if d := dst(); once(d) {
				route := randomRoute(d)
				want.Routes = append(want.Routes, &route)
			}
		})
		some(5, func() {
			if n := (Neighbour{addr(), mac()}); once(n.IP) {
				want.Neighbours = append(want.Neighbours, &n)
			}
		})
		some(5, func() {
			if f := (FDBEntry{mac(), addr()}); once(f.MAC) {
				want.FDB = append(want.FDB, &f)
			}
		})
		h := newHave(newHops())
		var links []netip.Prefix
		h.hops.none = r.IntN(4) == 0
		if !h.hops.none {
			some(4, func() {
				w, id := randomRoute(dst()), firstHop+uint32(r.IntN(6))
				if h.hops.ours[id] == nil {
					h.hops.add(id, w.way())
				}
			})
			some(4, func() { h.hops.taken[firstHop+10+uint32(r.IntN(6))] = rtnl.NextHop{} })
			h.hops.last = firstHop + uint32(r.IntN(16))
		}
		some(10, func() { h.addRoute(hold(claim(r.IntN(3)))) })
		for _, w := range want.Routes { // some of it is right already
			if r.IntN(3) == 0 {
				right := &haveRoute{Route: *w, claim: ours}
				if !h.hops.none && r.IntN(2) == 0 {
					id := firstHop + 100 + uint32(r.IntN(100))
					for h.hops.ours[id] != nil {
						id++
					}
					right.hop = h.hops.add(id, w.way())
				}
				h.addRoute(right)
			}
		}
		some(3, func() {
			r := hold(ours)
			r.raw.Metric = 1
			h.addSurplus(r)
		})
		some(3, func() {
			links = append(links, netip.PrefixFrom(dst().Addr(), 16+r.IntN(3)))
			h.addLink(links[len(links)-1])
		})
		some(6, func() { h.neighs[keyOf(addr())] = haveNeighbour{mac(), r.IntN(2) == 0} })
		some(8, func() { h.addFDB(rtnl.FDBEntry{MAC: mac(), Dst: addr(), Other: r.IntN(5) == 0}) })

		all := func() (routes []*haveRoute) {
			for dst := range h.routes {
				routes = append(routes, inSlot(&h, dst)...)
			}
			return routes
		}
		foreignRoutes := func() map[*haveRoute]bool {
			found := map[*haveRoute]bool{}
			for _, r := range all() {
				if r.claim == foreign {
					found[r] = true
				}
			}
			return found
		}
		taken := map[netip.Prefix]bool{}
		freeBefore := map[netip.Prefix]int{}
		before := fmt.Sprintf("round %d: have %+v\n", round, h)
		for _, r := range all() {
			before += fmt.Sprintf("%v %+v\n", claims[r.claim], *r)
			switch r.claim {
			case foreign:
				taken[r.Dst] = true
			case free:
				freeBefore[r.Dst]++
			}
		}
		before += fmt.Sprintf("want %v", want)
		linked := map[netip.Prefix]bool{}
		for _, l := range links {
			linked[netip.PrefixFrom(l.Addr(), 16).Masked()] = true
		}
		foreignBefore := foreignRoutes()

		obey(t, &h, diff(want, &h))
		if r.IntN(2) == 0 { // and then another state
			var next State
			next.Routes = edited(r, want.Routes, func() *Route { route := randomRoute(dst()); return &route }, func(r *Route) any { return r.Dst })
			next.Neighbours = edited(r, want.Neighbours, func() *Neighbour { return &Neighbour{addr(), mac()} }, func(n *Neighbour) any { return n.IP })
			next.FDB = edited(r, want.FDB, func() *FDBEntry { return &FDBEntry{mac(), addr()} }, func(f *FDBEntry) any { return f.MAC })
			before += fmt.Sprintf("\nthen %v", next)
			obey(t, &h, diffSince(want, next, &h))
			for _, w := range want.Routes {
				delete(freeBefore, w.Dst) // they have given way
			}
			want = next
		}

		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("%s\nnow %+v\n%s", before, h, fmt.Sprintf(format, args...))
		}
		if !maps.Equal(foreignRoutes(), foreignBefore) {
			fail("foreign routes were touched")
		}
		wanted := map[netip.Prefix]Route{}
		for _, w := range want.Routes {
			wanted[w.Dst] = *w
		}
		own, nobodys, used := map[netip.Prefix]int{}, map[netip.Prefix]int{}, map[*hop]bool{}
		for _, r := range all() {
			switch w, ok := wanted[r.Dst]; {
			case r.claim == ours && (!ok || r.Route != w || r.odd):
				fail("the stale route %v is there", r.Route)
			case r.claim == ours && linked[r.Dst] && w.Via.IsValid():
				fail("the route %v is over a link of the host's own", r.Route)
			case r.claim == ours:
				own[r.Dst]++
				used[r.hop] = true
			case r.claim == free:
				nobodys[r.Dst]++
			}
		}
		for _, w := range want.Routes {
			none := taken[w.Dst] || linked[w.Dst] && w.Via.IsValid()
			if n := own[w.Dst]; n > 1 || n == 0 && !none {
				fail("the route %v is there %d times", w, n)
			}
			if own[w.Dst] > 0 && nobodys[w.Dst] > 0 {
				fail("there is a route beside %v", w)
			}
		}
		for d, n := range freeBefore {
			if _, ok := wanted[d]; !ok && nobodys[d] != n {
				fail("of %d unmarked routes to %v that are in nobody's way %d are left", n, d, nobodys[d])
			}
		}
		if len(h.surplus) > 0 {
			fail("there is surplus")
		}
		for id, is := range h.hops.ours {
			if _, taken := h.hops.taken[id]; !used[is] || taken {
				fail("the next hop %d, %v, is there for nothing or somebody else's", id, is)
			}
		}
		for _, n := range want.Neighbours {
			if h.neighs[keyOf(n.IP)] != (haveNeighbour{n.MAC, true}) {
				fail("the neighbour %v is %v", n, h.neighs[keyOf(n.IP)])
			}
		}
		permanent := 0
		for _, n := range h.neighs {
			if n.permanent {
				permanent++
			}
		}
		if permanent != len(want.Neighbours) {
			fail("%d permanent neighbours", permanent)
		}
		for _, f := range want.FDB {
			if h.fdb[f.MAC.key()] != (haveFDB{dst: keyOf(f.Dst)}) {
				fail("the FDB entry %v is %v", f, h.fdb[f.MAC.key()])
			}
		}
		if len(h.fdb) != len(want.FDB) {
			fail("%d FDB entries", len(h.fdb))
		}
		for _, c := range diff(want, &h) {
			if c.op != conflict || !taken[c.route.Dst] && !linked[c.route.Dst] {
				fail("and yet there is still to do: %v", c)
			}
		}
	}
}

// edited is a list with some entries left out, some replaced and some added;
// those that stay are the same pointers in the same order.
func edited[T any](r *rand.Rand, list []*T, fresh func() *T, key func(*T) any) (next []*T) {
	seen := map[any]bool{}
	add := func(e *T) {
		if !seen[key(e)] {
			seen[key(e)] = true
			next = append(next, e)
		}
	}
	for _, e := range list {
		switch r.IntN(6) {
		case 0:
		case 1:
			add(fresh())
		case 2:
			add(fresh())
			fallthrough
		default:
			add(e)
		}
	}
	return next
}

// Whatever two lists are like, what only one of them has is found, and where they
// are edited as leases are, no more than that.
func TestApart(t *testing.T) {
	r := rand.New(rand.NewPCG(*seed, 2))
	number := 0
	fresh := func() *int { number++; n := number; return &n }
	for round := range 2000 {
		var a []*int
		for range r.IntN(300) {
			a = append(a, fresh())
		}
		b := edited(r, a, fresh, func(n *int) any { return n })
		shuffled := r.IntN(4) == 0
		if shuffled {
			r.Shuffle(len(b), func(i, j int) { b[i], b[j] = b[j], b[i] })
		}
		onlyA, onlyB := apart(a, b)
		for _, n := range a {
			if in := slices.Contains(b, n); !in && !slices.Contains(onlyA, n) || in && !shuffled && slices.Contains(onlyA, n) {
				t.Fatalf("round %d: %d is in the second list: %v", round, *n, in)
			}
		}
		for _, n := range b {
			if in := slices.Contains(a, n); !in && !slices.Contains(onlyB, n) || in && slices.Contains(onlyB, n) != slices.Contains(onlyA, n) || in && !shuffled && slices.Contains(onlyB, n) {
				t.Fatalf("round %d: %d is in the first list: %v", round, *n, in)
			}
		}
	}
}

func BenchmarkDiff(b *testing.B) {
	// 8,000 peers, all as they ought to be: what each notification costs.
	var want State
	h := newHave(newHops())
	for i := range 8000 {
		a, m := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		r := Route{Dst: netip.PrefixFrom(a, 24), Via: a, Dev: "flannel.1", OnLink: true}
		n, f := Neighbour{a, m}, FDBEntry{m, a}
		want.Routes, want.Neighbours, want.FDB = append(want.Routes, &r), append(want.Neighbours, &n), append(want.FDB, &f)
		hop, _ := h.hops.find(r.way())
		h.addRoute(&haveRoute{Route: r, hop: hop})
		h.neighs[keyOf(a)] = haveNeighbour{m, true}
		h.addFDB(rtnl.FDBEntry{MAC: m, Dst: a})
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(diff(want, &h)) > 0 {
			b.Fatal("there is something to do")
		}
	}
}
