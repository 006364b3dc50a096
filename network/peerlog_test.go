package network

import (
	"fmt"
	"net/netip"
	"testing"

	"flanneld/subnet"
)

func TestComparePeers(t *testing.T) {
	lease := func(n int, ip string) *subnet.Lease {
		return &subnet.Lease{
			Subnet: netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", n)),
			Attrs:  subnet.Attrs{PublicIP: netip.MustParseAddr(ip), BackendType: "vxlan"},
		}
	}
	own := lease(5, "192.0.2.5")
	one, two, moved := lease(1, "192.0.2.1"), lease(9, "192.0.2.9"), lease(1, "192.0.2.11")
	other := lease(9, "192.0.2.9")
	other.BackendData = []byte(`{"VtepMAC":"02:00:00:00:00:09"}`)
	renewed := *one
	renewed.Revision = 7
	all := func(l ...*subnet.Lease) []*subnet.Lease { return l }
	for _, test := range []struct {
		before, now []*subnet.Lease
		want        string // empty where nothing has changed
	}{
		{all(own), all(own), ""},
		{all(one, own), all(&renewed, own), ""},
		{all(one), all(one, own), ""},
		{all(own), all(one, own), "Peer 10.1.1.0/24 (held by 192.0.2.1) has come; 1 peer now"},
		{all(own, two), all(one, own), "Peer 10.1.1.0/24 (held by 192.0.2.1) has come, 10.1.9.0/24 (held by 192.0.2.9) has gone; 1 peer now"},
		{all(one, own, two), all(moved, own, two), "Peer 10.1.1.0/24 (held by 192.0.2.1) has moved to 192.0.2.11; 2 peers now"},
		{all(own, two), all(own, other), `Peer 10.1.9.0/24 (held by 192.0.2.9) has changed: backend vxlan {"VtepMAC":"02:00:00:00:00:09"}; 1 peer now`},
		{all(lease(1, "192.0.2.1"), lease(2, "192.0.2.2"), lease(3, "192.0.2.3")), all(moved, lease(4, "192.0.2.4")), "Peers: 1 have come, 2 have gone, 1 have changed; 2 peers now"},
		{all(one, two), all(lease(2, "192.0.2.2"), lease(3, "192.0.2.3"), lease(4, "192.0.2.4"), lease(5, "192.0.2.5"), lease(6, "192.0.2.6")), "Peers: 4 have come, 2 have gone; 4 peers now"},
	} {
		c := comparePeers(own.Subnet, test.before, test.now)
		if len(c.changes) == 0 != (test.want == "") || test.want != "" && c.String() != test.want {
			t.Errorf("%v, then %v: %v, %v\nwant %q", test.before, test.now, c.changes, c, test.want)
		}
	}
}
