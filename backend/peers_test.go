package backend_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"flanneld/backend"
	"flanneld/subnet"
)

func lease(prefix, publicIP, backendType string) *subnet.Lease {
	return &subnet.Lease{
		Subnet: netip.MustParsePrefix(prefix),
		Attrs:  subnet.Attrs{PublicIP: netip.MustParseAddr(publicIP), BackendType: backendType},
	}
}

var (
	host = backend.Host{Network: netip.MustParsePrefix("10.1.0.0/16"), PublicIP: netip.MustParseAddr("192.0.2.1")}
	own  = lease("10.1.1.0/24", "192.0.2.1", "vxlan")
)

func TestPeers(t *testing.T) {
	peer := lease("10.1.2.0/24", "192.0.2.2", "vxlan")
	const leaving = "leaving out the lease of "
	for _, test := range []struct {
		name   string
		leases []*subnet.Lease
		peers  []*subnet.Lease
		faults []string
	}{
		{name: "none"},
		{name: "own alone", leases: []*subnet.Lease{own}},
		{name: "own and a peer", leases: []*subnet.Lease{own, peer}, peers: []*subnet.Lease{peer}},
		{name: "own not there yet", leases: []*subnet.Lease{peer}, peers: []*subnet.Lease{peer}},
		// For the moment of a change of address the store has the old one.
		{name: "own with another address", leases: []*subnet.Lease{lease("10.1.1.0/24", "192.0.2.99", "udp"), peer}, peers: []*subnet.Lease{peer}},
		{name: "a reservation is a peer too", leases: []*subnet.Lease{peer}, peers: []*subnet.Lease{peer}},
		{name: "another size", leases: []*subnet.Lease{lease("10.1.16.0/20", "192.0.2.2", "vxlan")}, peers: []*subnet.Lease{lease("10.1.16.0/20", "192.0.2.2", "vxlan")}},
		{name: "two of one host", leases: []*subnet.Lease{peer, lease("10.1.3.0/24", "192.0.2.2", "vxlan")},
			peers: []*subnet.Lease{peer, lease("10.1.3.0/24", "192.0.2.2", "vxlan")}},
		{name: "outside", leases: []*subnet.Lease{lease("10.2.2.0/24", "192.0.2.2", "vxlan")},
			faults: []string{leaving + "10.2.2.0/24 (held by 192.0.2.2): it lies outside the network 10.1.0.0/16"}},
		{name: "larger than the network", leases: []*subnet.Lease{lease("10.0.0.0/8", "192.0.2.2", "vxlan")},
			faults: []string{leaving + "10.0.0.0/8 (held by 192.0.2.2): it lies outside the network 10.1.0.0/16"}},
		{name: "around the own subnet", leases: []*subnet.Lease{lease("10.1.0.0/23", "192.0.2.2", "vxlan")},
			faults: []string{leaving + "10.1.0.0/23 (held by 192.0.2.2): it overlaps this host's own subnet 10.1.1.0/24"}},
		{name: "within the own subnet", leases: []*subnet.Lease{lease("10.1.1.128/25", "192.0.2.2", "vxlan")},
			faults: []string{leaving + "10.1.1.128/25 (held by 192.0.2.2): it overlaps this host's own subnet 10.1.1.0/24"}},
		{name: "own address", leases: []*subnet.Lease{lease("10.1.2.0/24", "192.0.2.1", "vxlan")},
			faults: []string{leaving + "10.1.2.0/24 (held by 192.0.2.1): it bears this host's own address, but this host uses 10.1.1.0/24"}},
		{name: "other backend", leases: []*subnet.Lease{lease("10.1.2.0/24", "192.0.2.2", "host-gw")},
			faults: []string{leaving + "10.1.2.0/24 (held by 192.0.2.2): its backend is host-gw, this host's is vxlan"}},
		{name: "one bad keeps nobody else out", leases: []*subnet.Lease{lease("10.2.2.0/24", "192.0.2.9", "vxlan"), own, peer}, peers: []*subnet.Lease{peer},
			faults: []string{leaving + "10.2.2.0/24 (held by 192.0.2.9): it lies outside the network 10.1.0.0/16"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			peers, errs := backend.Filter{Host: host, Type: "vxlan", Own: own.Subnet}.Peers(test.leases)
			var faults []string
			for _, err := range errs {
				faults = append(faults, err.Error())
			}
			equal := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
			if d := cmp.Diff(test.peers, peers, equal, addr, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("peers (-want +got):\n%s", d)
			}
			if d := cmp.Diff(test.faults, faults); d != "" {
				t.Errorf("faults (-want +got):\n%s", d)
			}
		})
	}
}

func TestOwnerDevice(t *testing.T) {
	for _, test := range []struct {
		name, kind string
		own        bool
	}{
		{"flannel.1", "vxlan", true},
		{"flannel.9999999", "vxlan", true},
		{"flannel.1", "bridge", false},
		{"flannel.", "vxlan", false},
		{"flannel.v6", "vxlan", false},
		{"flannel-v6.1", "vxlan", false},
		{"myflannel.1", "vxlan", false},
		{"flannelx1", "vxlan", false},
		{"vxlan0", "vxlan", false},
		{"flannel0", "tun", true},
		{"flannel0", "vxlan", false},
		{"flannel1", "tun", false},
		{"tun0", "tun", false},
		{"docker0", "bridge", false},
	} {
		if got := backend.Owner.Device(test.name, test.kind); got != test.own {
			t.Errorf("%s of kind %s: %v", test.name, test.kind, got)
		}
	}
}
