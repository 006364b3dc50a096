package kernel

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"flanneld/pkg/lab"
)

// awaitComparison waits for one with numbers as in want among those after the
// first so many, and returns how many there were up to it.
func awaitComparison(t *testing.T, r *runner, after int, want Comparison) (upTo int) {
	t.Helper()
	lab.Eventually(t, within, "a comparison", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		var all string
		for i, c := range r.all[after:] {
			diff := cmp.Diff(want, c, cmpopts.IgnoreFields(Comparison{}, "Took", "Failed", "Faults"))
			if diff == "" && c.Took > 0 {
				upTo = after + i + 1
				return nil
			}
			all += fmt.Sprintf("took %v, (-want +got):\n%s\n", c.Took, diff)
		}
		return fmt.Errorf("there were %s", all)
	})
	return upTo
}

// Each comparison says why it was made, what it has changed, and how much of what
// is wanted is there.
func TestRunTellsOfComparisons(t *testing.T) {
	h := newHost(t)
	s := vxlanState(t, h, 3)
	r := startPlan(t, h, func(s State, _ Host) (State, []error) { return s, []error{errors.New("a fault")} })
	r.set(s)
	none, some := Entries{Wanted: 3, Programmed: 3}, Entries{Wanted: 3, Programmed: 3, Changed: 3}
	n := awaitComparison(t, r, 0, Comparison{Cause: Start, Whole: true, Device: true,
		Routes: Entries{Wanted: 4, Programmed: 4, Changed: 4}, Neighbours: some, FDB: some})
	if n != 1 {
		t.Errorf("the first comparison is the %dth", n)
	}

	for _, harm := range []string{"ip route del 10.1.2.0/24", "ip route add 10.1.77.0/24 dev eth0 proto 102"} {
		sh(h, harm)
		n = awaitComparison(t, r, n, Comparison{Cause: Notice, Whole: true,
			Routes: Entries{Wanted: 4, Programmed: 4, Changed: 1, Repaired: 1}, Neighbours: none, FDB: none})
	}
	sh(h, "bridge fdb del 02:00:00:00:01:02 dev flannel.1")
	n = awaitComparison(t, r, n, Comparison{Cause: Notice, Whole: true,
		Routes: Entries{Wanted: 4, Programmed: 4}, Neighbours: none, FDB: Entries{Wanted: 3, Programmed: 3, Changed: 1, Repaired: 1}})
	sh(h, "ip link set flannel.1 mtu 1300")
	n = awaitComparison(t, r, n, Comparison{Cause: Notice, Whole: true, Device: true,
		Routes: Entries{Wanted: 4, Programmed: 4}, Neighbours: none, FDB: none})

	// In the way of one route; what has failed is tried again by itself.
	sh(h, "ip route replace 10.1.3.0/24 via 172.16.16.33 proto static")
	inTheWay := Entries{Wanted: 4, Programmed: 3, Failed: 1}
	n = awaitComparison(t, r, n, Comparison{Cause: Notice, Whole: true, Routes: inTheWay, Neighbours: none, FDB: none})
	for range 2 { // the first as there may be room now, where ours was taken away
		n = awaitComparison(t, r, n, Comparison{Cause: Retry, Whole: true, Routes: inTheWay, Neighbours: none, FDB: none})
	}

	// A peer less: its entries alone are looked at.
	s.Routes, s.Neighbours, s.FDB = s.Routes[:3], s.Neighbours[:2], s.FDB[:2]
	r.set(s)
	awaitComparison(t, r, n, Comparison{Cause: Input, Routes: Entries{Wanted: 3, Programmed: 2, Failed: 1, Changed: 1},
		Neighbours: Entries{Wanted: 2, Programmed: 2, Changed: 1}, FDB: Entries{Wanted: 2, Programmed: 2, Changed: 1}})

	// What there was to do and could not be.
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.all {
		if len(c.Faults) != 1 || len(c.Failed) != c.Routes.Failed {
			t.Errorf("%+v", c)
		}
	}
}

// What the input has changed is no repair, also where the kernel tells of something
// else at the same time.
func TestRunTellsRepairsApart(t *testing.T) {
	h := newHost(t)
	s := vxlanState(t, h, 20)
	r := start(t, h)
	routes, few := s.Routes, s
	few.Routes = routes[:1]
	r.set(few)
	awaitComparison(t, r, 0, Comparison{Cause: Start, Whole: true, Device: true,
		Routes: Entries{Wanted: 1, Programmed: 1, Changed: 1}, Neighbours: Entries{Wanted: 20, Programmed: 20, Changed: 20}, FDB: Entries{Wanted: 20, Programmed: 20, Changed: 20}})
	for i := 2; i <= 20; i++ { // each time a route is added, and one taken away
		next := s
		next.Routes = routes[:i]
		sh(h, "ip route del 10.1.2.0/24")
		r.set(next)
		lab.Eventually(t, within, "the routes", func() error {
			r.mu.Lock()
			defer r.mu.Unlock()
			changed, repaired := 0, 0
			for _, c := range r.all {
				changed, repaired = changed+c.Routes.Changed, repaired+c.Routes.Repaired
			}
			if changed != i+i-1 || repaired != i-1 {
				return fmt.Errorf("%d routes changed, %d repaired after %d were added and %d taken away", changed, repaired, i, i-1)
			}
			return nil
		})
	}
}

// What was not made is no repair: a next hop that goes between reading and writing
// takes the write with it, without a failure.
func TestCountRepairs(t *testing.T) {
	kept, fresh := &Route{Dst: pfx("10.1.2.0/24"), Dev: "eth0"}, &Route{Dst: pfx("10.1.3.0/24"), Dev: "eth0"}
	neigh, fdb := &Neighbour{IP: ip("10.1.2.0")}, &FDBEntry{MAC: MAC{2, 0, 0, 0, 0, 1}}
	before := State{Routes: []*Route{kept}, Neighbours: []*Neighbour{neigh}, FDB: []*FDBEntry{fdb}}
	want := before
	want.Routes = []*Route{kept, fresh}
	surplus := &haveRoute{Route: Route{Dst: pfx("10.1.9.0/24")}}
	r := reconciler[State]{want: before}
	for _, made := range []bool{true, false} {
		var c Comparison
		r.countRepairs(&c, want, []change{
			{op: clearFDB, fdb: fdb, made: made}, {op: setFDB, fdb: fdb, made: made}, {op: setNeigh, neigh: neigh, made: made},
			{op: setRoute, route: kept, made: made}, {op: setRoute, route: fresh, made: made}, {op: delRoute, old: surplus, made: made},
		})
		got := [3]int{c.Routes.Repaired, c.Neighbours.Repaired, c.FDB.Repaired}
		if want := map[bool][3]int{true: {2, 1, 1}}[made]; got != want {
			t.Errorf("made: %v: %v repaired, want %v", made, got, want)
		}
	}
}

// Without the device nothing that hangs on it is programmed.
func TestRunTellsOfMissingDevice(t *testing.T) {
	h := newHost(t)
	r := start(t, h)
	r.set(State{
		Device: &Device{Name: "flannel0", MTU: 1472, Addr: ip("10.1.1.0")},
		Routes: []*Route{{Dst: pfx("10.1.0.0/16"), Dev: "flannel0"}, {Dst: pfx("10.2.0.0/16"), Via: ip("172.16.16.7"), Dev: "eth0"}},
	})
	awaitComparison(t, r, 0, Comparison{Cause: Start, Whole: true, Routes: Entries{Wanted: 2, Programmed: 1, Failed: 1, Changed: 1}})
}
