package udp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

func addr(s string) uint32 { return prefix.Uint(netip.MustParseAddr(s)) }

func TestTable(t *testing.T) {
	table := newTable([]*subnet.Lease{
		lease("10.1.75.0/24", "192.0.2.2", "udp"),
		lease("10.1.76.0/22", "192.0.2.3", "udp"),
		lease("10.1.77.0/24", "192.0.2.4", "udp"),
	})
	for _, tc := range []struct{ dst, host string }{
		{"10.1.75.0", "192.0.2.2"},
		{"10.1.75.255", "192.0.2.2"},
		{"10.1.76.0", "192.0.2.3"},
		{"10.1.79.255", "192.0.2.3"},
		{"10.1.77.1", "192.0.2.4"}, // the longer prefix wins
		{"10.1.74.255", ""},
		{"10.1.80.0", ""},
		{"0.0.0.0", ""},
		{"255.255.255.255", ""},
	} {
		host, ok := table.lookup(addr(tc.dst))
		switch {
		case tc.host == "" && ok:
			t.Errorf("%s is at %v, want nowhere", tc.dst, addrOf(host))
		case tc.host != "" && (!ok || addrOf(host).String() != tc.host):
			t.Errorf("%s is at %v (%v), want %s", tc.dst, addrOf(host), ok, tc.host)
		}
	}
	if !table.knows(addr("192.0.2.3")) || table.knows(addr("192.0.2.5")) {
		t.Error("knows is wrong about 192.0.2.3 or 192.0.2.5")
	}
}

func TestEmptyTable(t *testing.T) {
	for _, table := range []*table{{}, newTable(nil)} {
		if _, ok := table.lookup(addr("10.1.75.0")); ok || table.knows(addr("192.0.2.2")) {
			t.Error("it has a host")
		}
	}
}

// A lookup finds what a search through all leases finds.
func TestTableProperty(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	network := netip.MustParsePrefix("10.0.0.0/8")
	for range 200 {
		seen := map[netip.Prefix]bool{}
		var leases []*subnet.Lease
		for range r.IntN(30) {
			bits := 10 + r.IntN(21)
			p := prefix.Nth(network, bits, r.Uint64N(prefix.Count(network, bits)))
			if !seen[p] {
				seen[p] = true
				leases = append(leases, lease(p.String(), fmt.Sprintf("192.0.2.%d", len(leases)+1), "udp"))
			}
		}
		table := newTable(leases)
		for range 200 {
			dst := prefix.FromUint(addr("10.0.0.0") + r.Uint32N(1<<24))
			if len(leases) > 0 && r.IntN(2) == 0 {
				dst = prefix.Last(leases[r.IntN(len(leases))].Subnet)
			}
			var want netip.Addr
			longest := -1
			for _, l := range leases {
				if l.Subnet.Contains(dst) && l.Subnet.Bits() > longest {
					want, longest = l.PublicIP, l.Subnet.Bits()
				}
			}
			host, ok := table.lookup(prefix.Uint(dst))
			if ok != want.IsValid() || ok && addrOf(host) != want {
				t.Fatalf("%v is at %v (%v), want %v; leases %v", dst, addrOf(host), ok, want, leases)
			}
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	network := netip.MustParsePrefix("10.0.0.0/8")
	var leases []*subnet.Lease
	for i := range 8000 {
		l := lease("10.0.0.0/24", "192.0.2.1", "udp")
		l.Subnet = prefix.Nth(network, 24, uint64(i))
		leases = append(leases, l)
	}
	table := newTable(leases)
	dst := addr("10.0.0.1")
	b.ReportAllocs()
	for i := range b.N {
		if _, ok := table.lookup(dst + uint32(i%8000)<<8); !ok {
			b.Fatal("not found")
		}
	}
}
