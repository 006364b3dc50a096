package backend_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flanneld/backend"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

var seed = flag.Uint64("seed", 0, "of TestPaths; 0 is another one each time")

// newPaths are paths as of vxlan with direct routes: the MAC's last byte is in
// the BackendData, and 0 is unreadable.
func newPaths() *backend.Paths {
	return &backend.Paths{
		Filter: backend.Filter{Host: host, Type: "vxlan", Own: own.Subnet},
		To: func(peer *subnet.Lease, view kernel.Host) (backend.Path, error) {
			switch {
			case view.OnLink(peer.PublicIP, "eth0"):
				return backend.Path{Route: &kernel.Route{Dst: peer.Subnet, Via: peer.PublicIP, Dev: "eth0"}}, nil
			case peer.BackendData[0] == 0:
				return backend.Path{}, errors.New("unreadable")
			}
			mac := kernel.MAC{2, 0, 0, 0, 0, peer.BackendData[0]}
			return backend.Path{
				Route:     &kernel.Route{Dst: peer.Subnet, Via: peer.Subnet.Addr(), Dev: "flannel.1"},
				Neighbour: &kernel.Neighbour{IP: peer.Subnet.Addr(), MAC: mac},
				FDB:       &kernel.FDBEntry{MAC: mac, Dst: peer.PublicIP},
			}, nil
		},
	}
}

// Whatever sets came before, what comes of one is what comes of it alone; and of
// a lease that stays, the same pointers.
func TestPaths(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to repeat: -seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, 0))
	views := []kernel.Host{
		kernel.NewHost(),
		kernel.NewHost(kernel.HostRoute{Dst: netip.MustParsePrefix("192.0.2.0/28"), Dev: "eth0", OnLink: true}),
	}
	revision := uint64(0)
	fresh := func(i int) *subnet.Lease {
		l := lease(fmt.Sprintf("10.1.%d.0/24", i), fmt.Sprintf("192.0.2.%d", 2+r.IntN(30)), "vxlan")
		if r.IntN(20) == 0 {
			l.BackendType = "udp"
		}
		// Few MACs in some rounds, so that they meet, and all different in others.
		l.BackendData = []byte{byte(i)}
		if r.IntN(8) == 0 {
			l.BackendData = []byte{byte(r.IntN(5))}
		}
		revision++
		l.Revision = revision
		return l
	}
	paths := newPaths()
	set := make([]*subnet.Lease, 80) // by subnet, two for each, nil where there is none
	view := views[0]
	var before kernel.State
	for round := range 3000 {
		edits := r.IntN(3)
		if r.IntN(50) == 0 {
			edits = 200
		}
		for range edits {
			i := r.IntN(len(set))
			if set[i] = nil; r.IntN(3) > 0 && (i%2 == 0 || r.IntN(10) == 0) {
				set[i] = fresh(i / 2)
				set[i].Subnet = netip.PrefixFrom(set[i].Subnet.Addr(), 24+i%2)
			}
		}
		seen := view
		if r.IntN(20) == 0 {
			view = views[r.IntN(2)]
		}
		var leases []*subnet.Lease
		for _, l := range set {
			if l != nil {
				leases = append(leases, l)
			}
		}
		var got, want kernel.State
		faults := fmt.Sprint(paths.Set(&got, leases, view))
		wanted := fmt.Sprint(newPaths().Set(&want, leases, view))
		if d := cmp.Diff(want.String()+wanted, got.String()+faults); d != "" {
			t.Fatalf("round %d, %v (-alone +after others):\n%s", round, leases, d)
		}
		neighbours := map[netip.Addr]bool{}
		for _, n := range got.Neighbours {
			if neighbours[n.IP] {
				t.Fatalf("round %d: two neighbours %v", round, n.IP)
			}
			neighbours[n.IP] = true
		}
		// In another view all is worked out anew.
		if edits == 0 && view == seen && len(got.FDB) == len(before.FDB) {
			for i := range got.FDB {
				if got.FDB[i] != before.FDB[i] && *got.FDB[i] == *before.FDB[i] {
					t.Fatalf("round %d: the entry %v is another although it is the same", round, got.FDB[i])
				}
			}
		}
		before = got
	}
}

// What one change among 8,000 leases costs before the kernel is looked at.
func BenchmarkPaths(b *testing.B) {
	paths := newPaths()
	paths.Host.Network = netip.MustParsePrefix("10.0.0.0/8")
	paths.To = func(peer *subnet.Lease, _ kernel.Host) (backend.Path, error) {
		return backend.Path{Route: &kernel.Route{Dst: peer.Subnet}, FDB: &kernel.FDBEntry{MAC: kernel.MAC(peer.BackendData), Dst: peer.PublicIP}}, nil
	}
	var leases []*subnet.Lease
	for i := range 8000 {
		l := lease(fmt.Sprintf("10.%d.%d.0/24", 2+i>>8, i&255), "192.0.2.2", "vxlan")
		l.BackendData = []byte{2, 0, 0, 0, byte(i >> 8), byte(i)}
		leases = append(leases, l)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		set := append([]*subnet.Lease(nil), leases...)
		changed := *leases[i%8000]
		set[i%8000] = &changed
		var want kernel.State
		if faults := paths.Set(&want, set, kernel.Host{}); len(want.FDB) < 8000 || len(faults) > 0 {
			b.Fatal(len(want.FDB), faults)
		}
	}
}
