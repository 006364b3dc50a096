package kernel

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var seed = flag.Uint64("seed", 0, "of TestDiffProperty; 0 is another one each time")

// In the tests of diff a route is written as State prints it, with "own",
// "free" or "foreign" in front where it is one the kernel has, and "odd" where
// it has something that State cannot express.

func route(text string) Route {
	f := strings.Fields(text)
	r := Route{Dst: pfx(f[0])}
	for i := 1; i < len(f); i++ {
		switch f[i] {
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
	return r
}

func haveRoutes(texts ...string) (routes []haveRoute) {
	for _, text := range texts {
		var r haveRoute
		whose, rest, _ := strings.Cut(text, " ")
		r.claim = map[string]claim{"own": ours, "free": free, "foreign": foreign}[whose]
		rest, r.odd = strings.CutPrefix(rest, "odd ")
		r.odd = r.odd || r.claim != ours
		r.Route = route(rest)
		r.raw = text
		routes = append(routes, r)
	}
	return routes
}

func describe(changes []change) (lines []string) {
	for _, c := range changes {
		line := c.String()
		switch c.op {
		case conflict:
			line = "conflict in " + line
		case delRoute:
			line += fmt.Sprintf(" [%v]", c.old.raw)
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
		{name: "foreign before the right one", want: []string{wanted}, have: []string{"foreign 10.1.2.0/24 dev eth0", "own " + wanted}},
		{name: "foreign and a wrong one of ours", want: []string{wanted}, have: []string{"own 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink", "foreign 10.1.2.0/24 dev eth0"},
			changes: []string{"conflict in " + set, "deleting the route 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink [own 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink]"}},
		{name: "foreign and nobody's", want: []string{wanted}, have: []string{"free 10.1.2.0/24 dev eth1", "foreign 10.1.2.0/24 dev eth0"}, changes: []string{"conflict in " + set}},
		{name: "all three", want: []string{wanted}, have: []string{"foreign 10.1.2.0/24 dev eth0", "free 10.1.2.0/24 dev eth1", "own " + wanted, "own 10.1.2.0/24 dev eth2"},
			changes: []string{"deleting the route 10.1.2.0/24 dev eth1 [free 10.1.2.0/24 dev eth1]", "deleting the route 10.1.2.0/24 dev eth2 [own 10.1.2.0/24 dev eth2]"}},
		{name: "several wrong in the slot: the first is replaced, the others deleted", want: []string{wanted},
			have:    []string{"own 10.1.2.0/24 dev eth0", "free 10.1.2.0/24 dev eth1", "own 10.1.2.0/24 dev eth2"},
			changes: []string{set, "deleting the route 10.1.2.0/24 dev eth1 [free 10.1.2.0/24 dev eth1]", "deleting the route 10.1.2.0/24 dev eth2 [own 10.1.2.0/24 dev eth2]"}},
		{name: "surplus", want: []string{wanted}, have: []string{"own " + wanted}, surplus: []string{"own " + wanted}, changes: []string{"deleting the route " + wanted + " [own " + wanted + "]"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var want State
			for _, text := range test.want {
				want.Routes = append(want.Routes, route(text))
			}
			got := describe(diff(want, have{routes: haveRoutes(test.have...), surplus: haveRoutes(test.surplus...)}))
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
		have    []haveNeighbour
		changes []string
	}{
		{name: "new", want: []Neighbour{n}, changes: []string{set}},
		{name: "equal", want: []Neighbour{n}, have: []haveNeighbour{{n, true}}},
		{name: "other MAC", want: []Neighbour{n}, have: []haveNeighbour{{Neighbour{a, mac2}, true}}, changes: []string{set}},
		{name: "not permanent", want: []Neighbour{n}, have: []haveNeighbour{{n, false}}, changes: []string{set}},
		{name: "without a MAC", want: []Neighbour{n}, have: []haveNeighbour{{Neighbour{IP: a}, false}}, changes: []string{set}},
		{name: "not wanted", have: []haveNeighbour{{n, true}}, changes: []string{del}},
		{name: "not wanted, not permanent", have: []haveNeighbour{{n, false}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := have{neighs: map[netip.Addr]haveNeighbour{}}
			for _, n := range test.have {
				h.neighs[n.IP] = n
			}
			if d := cmp.Diff(test.changes, describe(diff(State{Neighbours: test.want}, h))); d != "" {
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
		{name: "odd", want: []FDBEntry{e1}, have: []FDBEntry{{MAC: mac1}}, changes: []string{"setting " + text1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := have{fdb: map[MAC][]FDBEntry{}}
			for _, e := range test.have {
				h.fdb[e.MAC] = append(h.fdb[e.MAC], e)
			}
			if d := cmp.Diff(test.changes, describe(diff(State{FDB: test.want}, h))); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
		})
	}
}

// A peer's way is complete before its route leads there, and what leads to a
// peer's old place is taken back to front.
func TestDiffOrder(t *testing.T) {
	want := State{
		Routes:     []Route{route("10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink"), route("10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink")},
		Neighbours: []Neighbour{{ip("10.1.2.0"), mac1}},
		FDB:        []FDBEntry{{mac1, ip("192.0.2.1")}},
	}
	h := have{
		routes: haveRoutes("own 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink", "foreign 10.1.4.0/24 dev eth0"),
		neighs: map[netip.Addr]haveNeighbour{ip("10.1.3.0"): {Neighbour{ip("10.1.3.0"), mac2}, true}},
		fdb: map[MAC][]FDBEntry{
			mac1: {{mac1, ip("192.0.2.8")}, {mac1, ip("192.0.2.9")}},
			mac2: {{mac2, ip("192.0.2.2")}},
		},
	}
	if d := cmp.Diff([]string{
		"first deleting the FDB entry 02:00:00:00:00:01",
		"setting the FDB entry 02:00:00:00:00:01 dst 192.0.2.1",
		"setting the neighbour 10.1.2.0 lladdr 02:00:00:00:00:01",
		"setting the route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink",
		"conflict in setting the route 10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink",
		"deleting the route 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink [own 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink]",
		"deleting the neighbour 10.1.3.0 lladdr 02:00:00:00:00:02",
		"deleting the FDB entry 02:00:00:00:00:02",
	}, describe(diff(want, h))); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

// A model is a small kernel: tables that obey the changes as Linux does.
type model have

func (m *model) apply(t *testing.T, changes []change) {
	for _, c := range changes {
		switch c.op {
		case setRoute: // RTM_NEWROUTE with NLM_F_REPLACE
			at := slices.IndexFunc(m.routes, func(r haveRoute) bool { return r.Dst == c.route.Dst })
			now := haveRoute{Route: c.route, claim: ours}
			if at < 0 {
				m.routes = append(m.routes, now)
				break
			}
			if m.routes[at].claim == foreign {
				t.Fatalf("%v takes the place of the foreign %v", c, m.routes[at].Route)
			}
			m.routes[at] = now
		case delRoute:
			if c.old.claim == foreign {
				t.Fatalf("%v, which is foreign", c)
			}
			same := func(r haveRoute) bool { return r == c.old }
			if at := slices.IndexFunc(m.routes, same); at >= 0 {
				m.routes = slices.Delete(slices.Clone(m.routes), at, at+1)
			} else if at := slices.IndexFunc(m.surplus, same); at >= 0 {
				m.surplus = slices.Delete(slices.Clone(m.surplus), at, at+1)
			} else {
				t.Fatalf("%v, which is not there", c)
			}
		case setNeigh:
			m.neighs[c.neigh.IP] = haveNeighbour{c.neigh, true}
		case delNeigh:
			if !m.neighs[c.neigh.IP].permanent {
				t.Fatalf("%v, which is the kernel's own", c)
			}
			delete(m.neighs, c.neigh.IP)
		case setFDB:
			if len(m.fdb[c.fdb.MAC]) > 1 {
				t.Fatalf("%v, which has two destinations", c)
			}
			m.fdb[c.fdb.MAC] = []FDBEntry{c.fdb}
		case clearFDB, delFDB:
			if len(m.fdb[c.fdb.MAC]) == 0 {
				t.Fatalf("%v, which is not there", c)
			}
			delete(m.fdb, c.fdb.MAC)
		}
	}
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
	number := 0
	hold := func(c claim) haveRoute {
		number++ // so that two that look the same are still two
		return haveRoute{Route: randomRoute(dst()), claim: c, odd: c != ours || r.IntN(4) == 0, raw: number}
	}
	for round := range 5000 {
		var want State
		seen := map[any]bool{}
		once := func(key any) bool { was := seen[key]; seen[key] = true; return !was }
		some(7, func() {
			if d := dst(); once(d) {
				want.Routes = append(want.Routes, randomRoute(d))
			}
		})
		some(5, func() {
			if n := (Neighbour{addr(), mac()}); once(n.IP) {
				want.Neighbours = append(want.Neighbours, n)
			}
		})
		some(5, func() {
			if f := (FDBEntry{mac(), addr()}); once(f.MAC) {
				want.FDB = append(want.FDB, f)
			}
		})
		m := model{neighs: map[netip.Addr]haveNeighbour{}, fdb: map[MAC][]FDBEntry{}}
		some(10, func() { m.routes = append(m.routes, hold(claim(r.IntN(3)))) })
		for _, w := range want.Routes { // some of it is right already
			if r.IntN(3) == 0 {
				m.routes = slices.Insert(m.routes, r.IntN(len(m.routes)+1), haveRoute{Route: w, claim: ours})
			}
		}
		some(3, func() { m.surplus = append(m.surplus, hold(ours)) })
		some(6, func() { a := addr(); m.neighs[a] = haveNeighbour{Neighbour{a, mac()}, r.IntN(2) == 0} })
		some(8, func() {
			if f := (FDBEntry{mac(), addr()}); !slices.Contains(m.fdb[f.MAC], f) {
				m.fdb[f.MAC] = append(m.fdb[f.MAC], f)
			}
		})
		foreignRoutes := func() (routes []haveRoute) {
			for _, r := range m.routes {
				if r.claim == foreign {
					routes = append(routes, r)
				}
			}
			return routes
		}
		before := fmt.Sprintf("round %d: have %+v\nwant %v", round, have(m), want)
		foreignBefore := foreignRoutes()
		freeBefore := map[netip.Prefix]int{}
		for _, r := range m.routes {
			if r.claim == free {
				freeBefore[r.Dst]++
			}
		}

		m.apply(t, diff(want, have(m)))

		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("%s\nnow %+v\n%s", before, have(m), fmt.Sprintf(format, args...))
		}
		if !slices.Equal(foreignRoutes(), foreignBefore) {
			fail("foreign routes were touched")
		}
		taken := map[netip.Prefix]bool{}
		for _, r := range foreignBefore {
			taken[r.Dst] = true
		}
		wanted := map[netip.Prefix]Route{}
		for _, w := range want.Routes {
			wanted[w.Dst] = w
		}
		own, nobodys := map[netip.Prefix]int{}, map[netip.Prefix]int{}
		for _, r := range m.routes {
			switch w, ok := wanted[r.Dst]; {
			case r.claim == ours && (!ok || r.Route != w || r.odd):
				fail("the stale route %v is there", r.Route)
			case r.claim == ours:
				own[r.Dst]++
			case r.claim == free:
				nobodys[r.Dst]++
			}
		}
		for _, w := range want.Routes {
			if n := own[w.Dst]; n > 1 || n == 0 && !taken[w.Dst] {
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
		if len(m.surplus) > 0 {
			fail("there is surplus")
		}
		for _, n := range want.Neighbours {
			if m.neighs[n.IP] != (haveNeighbour{n, true}) {
				fail("the neighbour %v is %v", n, m.neighs[n.IP])
			}
		}
		permanent := 0
		for _, n := range m.neighs {
			if n.permanent {
				permanent++
			}
		}
		if permanent != len(want.Neighbours) {
			fail("%d permanent neighbours", permanent)
		}
		entries := 0
		for _, f := range m.fdb {
			entries += len(f)
		}
		for _, f := range want.FDB {
			if !slices.Equal(m.fdb[f.MAC], []FDBEntry{f}) {
				fail("the FDB entry %v is %v", f, m.fdb[f.MAC])
			}
		}
		if entries != len(want.FDB) {
			fail("%d FDB entries", entries)
		}
		for _, c := range diff(want, have(m)) {
			if c.op != conflict || !taken[c.route.Dst] {
				fail("and yet there is still to do: %v", c)
			}
		}
	}
}

func BenchmarkDiff(b *testing.B) {
	// 8,000 peers, all as they ought to be: what each notification costs.
	var want State
	h := have{neighs: map[netip.Addr]haveNeighbour{}, fdb: map[MAC][]FDBEntry{}}
	for i := range 8000 {
		a, m := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		r := Route{Dst: netip.PrefixFrom(a, 24), Via: a, Dev: "flannel.1", OnLink: true}
		n, f := Neighbour{a, m}, FDBEntry{m, a}
		want.Routes, want.Neighbours, want.FDB = append(want.Routes, r), append(want.Neighbours, n), append(want.FDB, f)
		h.routes, h.neighs[a], h.fdb[m] = append(h.routes, haveRoute{Route: r}), haveNeighbour{n, true}, []FDBEntry{f}
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(diff(want, h)) > 0 {
			b.Fatal("there is something to do")
		}
	}
}
