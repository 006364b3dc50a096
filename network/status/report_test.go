package status

import (
	"slices"
	"testing"
)

// Only what two looks have both shown is wrong.
func TestSince(t *testing.T) {
	first, second := goodReport(6), goodReport(7)
	lacks := func(r *Report, peer int, entry *string, how, text string) {
		*entry, r.Peers[peer].Problems = how, append(r.Peers[peer].Problems, text)
		r.Well = false
	}
	lacks(&first, 0, &first.Peers[0].Route, "missing", "the route is missing")
	lacks(&second, 0, &second.Peers[0].Route, "missing", "the route is missing")
	lacks(&first, 2, &first.Peers[2].FDB, "missing", "the FDB entry is missing")     // put right since
	lacks(&second, 4, &second.Peers[4].Route, "wrong", "another route is there")     // new
	lacks(&second, 6, &second.Peers[6].Neighbour, "missing", "the neighbour is new") // of a new peer
	lacks(&second, 0, &second.Peers[0].FDB, "missing", "the FDB entry is missing")   // new, beside the route
	first.Problems, second.Problems = []string{"one", "two"}, []string{"two", "three"}
	second.Since(first)
	if p := second.Peers[0]; p.Route != "missing" || p.FDB != right || !slices.Equal(p.Problems, []string{"the route is missing"}) {
		t.Errorf("what was there both times: %+v", p)
	}
	for i, p := range second.Peers[1:] {
		if p.Route != right || p.FDB != right && p.FDB != none || p.Neighbour != right && p.Neighbour != none || len(p.Problems) > 0 {
			t.Errorf("peer %d: %+v", i+1, p)
		}
	}
	if !slices.Equal(second.Problems, []string{"two"}) || second.Summary.Wrong != 1 || second.Well {
		t.Errorf("%q, %+v, well: %v", second.Problems, second.Summary, second.Well)
	}
	first, second = goodReport(2), goodReport(2)
	second.Problems, second.Well = []string{"a moment's"}, false
	if second.Since(first); !second.Well {
		t.Errorf("%+v", second)
	}
}
