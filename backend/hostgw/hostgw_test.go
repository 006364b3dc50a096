package hostgw

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flanneld/backend"
	"flanneld/pkg/extif"
	"flanneld/pkg/jsonfields"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

var host = backend.Host{
	Interface: extif.Interface{
		Name: "eth0", Index: 2, MTU: 1400, Addr: netip.MustParseAddr("192.0.2.1"),
		Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.101/24")},
	},
	PublicIP: netip.MustParseAddr("192.0.2.1"),
	Network:  netip.MustParsePrefix("10.1.0.0/16"),
}

func lease(prefix, publicIP string) *subnet.Lease {
	return &subnet.Lease{
		Subnet: netip.MustParsePrefix(prefix),
		Attrs:  subnet.Attrs{PublicIP: netip.MustParseAddr(publicIP), BackendType: Type},
	}
}

func TestPlan(t *testing.T) {
	view := kernel.NewHost(
		kernel.HostRoute{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eth0"},
		kernel.HostRoute{Dst: netip.MustParsePrefix("192.0.2.0/24"), Dev: "eth0", OnLink: true},
		kernel.HostRoute{Dst: netip.MustParsePrefix("198.51.100.0/24"), Dev: "eth1", OnLink: true},
	)
	elsewhere := lease("10.1.5.0/24", "192.0.2.5")
	elsewhere.BackendType = "vxlan"
	state, errs := hostgw{host}.Plan(netip.MustParsePrefix("10.1.1.0/24"))([]*subnet.Lease{
		lease("10.1.1.0/24", "192.0.2.1"),
		lease("10.1.2.0/24", "192.0.2.2"),
		lease("10.1.3.0/24", "203.0.113.3"),
		lease("10.1.4.0/24", "198.51.100.4"),
		elsewhere,
		lease("10.1.6.0/24", "192.0.2.6"),
		lease("10.1.7.0/24", "192.0.2.6"),
	}, view)
	var faults []string
	for _, err := range errs {
		faults = append(faults, err.Error())
	}
	if d := cmp.Diff(`route 10.1.2.0/24 via 192.0.2.2 dev eth0
route 10.1.6.0/24 via 192.0.2.6 dev eth0
route 10.1.7.0/24 via 192.0.2.6 dev eth0
`, state.String()); d != "" {
		t.Errorf("state (-want +got):\n%s", d)
	}
	const reason = "): it cannot be reached: its address is not on the link of eth0, which host-gw needs; vxlan with DirectRouting does without"
	if d := cmp.Diff([]string{
		"leaving out the lease of 10.1.3.0/24 (held by 203.0.113.3" + reason,
		"leaving out the lease of 10.1.4.0/24 (held by 198.51.100.4" + reason,
		"leaving out the lease of 10.1.5.0/24 (held by 192.0.2.5): its backend is vxlan, this host's is host-gw",
	}, faults); d != "" {
		t.Errorf("faults (-want +got):\n%s", d)
	}
}

func TestPlanOfNothing(t *testing.T) {
	if state, faults := (hostgw{host}).Plan(netip.MustParsePrefix("10.1.1.0/24"))(nil, kernel.Host{}); state.String() != "" || faults != nil {
		t.Errorf("%v, %v", state, faults)
	}
}

func TestOpen(t *testing.T) {
	fields, err := jsonfields.Parse([]byte(`{"Port":1}`))
	if err != nil {
		t.Fatal(err)
	}
	open, err := Parse(fields)
	if err != nil {
		t.Fatal(err)
	}
	if got := fields.Unknown(); len(got) != 1 {
		t.Errorf("fields unknown to host-gw: %v, want Port", got)
	}
	for publicIP, want := range map[string]string{
		"192.0.2.1":   "",
		"192.0.2.101": "", // a further address of the interface
		"192.0.2.2":   "cannot use the public IP 192.0.2.2",
		"203.0.113.1": "it is no address of eth0 (192.0.2.1)",
	} {
		h := host
		h.PublicIP = netip.MustParseAddr(publicIP)
		b, err := open(h)
		switch {
		case want != "":
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("with the public IP %s: %v, want %q", publicIP, err, want)
			}
		case err != nil:
			t.Errorf("with the public IP %s: %v", publicIP, err)
		case b.MTU() != 1400 || b.Data() != nil:
			t.Errorf("MTU %d, BackendData %s", b.MTU(), b.Data())
		}
	}
}
