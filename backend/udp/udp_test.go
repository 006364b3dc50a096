package udp

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"flanneld/backend"
	"flanneld/pkg/extif"
	"flanneld/pkg/jsonfields"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

func lease(prefix, publicIP, backendType string) *subnet.Lease {
	return &subnet.Lease{
		Subnet: netip.MustParsePrefix(prefix),
		Attrs:  subnet.Attrs{PublicIP: netip.MustParseAddr(publicIP), BackendType: backendType},
	}
}

func testHost(addr string) backend.Host {
	a := netip.MustParseAddr(addr)
	return backend.Host{
		Interface: extif.Interface{Name: "eth0", MTU: 1500, Addr: a},
		PublicIP:  a,
		Network:   netip.MustParsePrefix("10.1.0.0/16"),
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct{ text, wrong string }{
		{`{}`, ""},
		{`{"Port": 7890}`, ""},
		{`{"port": 1}`, ""},
		{`{"Port": 65535}`, ""},
		{`{"Port": null}`, ""},
		{`{"Port": 0}`, "Port is 0"},
		{`{"Port": 65536}`, "Port is 65536"},
		{`{"Port": "8285"}`, `Port is "8285"`},
		{`{"Port": 1.5}`, "Port is 1.5"},
	} {
		fields, err := jsonfields.Parse([]byte(tc.text))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(fields)
		switch {
		case tc.wrong == "" && err != nil:
			t.Errorf("%s: %v", tc.text, err)
		case tc.wrong != "" && (err == nil || !strings.Contains(err.Error(), tc.wrong)):
			t.Errorf("%s: error %v, want one with %q", tc.text, err, tc.wrong)
		}
		if unknown := fields.Unknown(); len(unknown) > 0 {
			t.Errorf("%s: unknown fields %v", tc.text, unknown)
		}
	}
}

func TestPlan(t *testing.T) {
	own := lease("10.1.74.0/24", "192.0.2.1", "udp")
	b := &Backend{host: testHost("192.0.2.1"), port: defaultPort}
	want := "link flannel0 mtu 1472 addr 10.1.74.0/32\nroute 10.1.0.0/16 dev flannel0\n"

	state, faults := b.Plan(own.Subnet)([]*subnet.Lease{
		own,
		lease("10.1.75.0/24", "192.0.2.2", "udp"),
		lease("10.1.76.0/24", "192.0.2.3", "vxlan"),
	}, kernel.Host{})
	if diff := cmp.Diff(want, state.String()); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	if len(faults) != 1 || !strings.Contains(faults[0].Error(), "10.1.76.0/24") {
		t.Errorf("faults are %v, want one about the vxlan lease", faults)
	}
	if b.Data() != nil {
		t.Errorf("Data is %s, want none", b.Data())
	}
}

// Peers must be in the table before the set is handed on, as that is what leads
// to synced; and a set that nobody takes must not hold up a later one. When packets
// are carried no longer, or again, the last set is handed on once more.
func TestFollow(t *testing.T) { synctest.Test(t, testFollow) }

func testFollow(t *testing.T) {
	own := lease("10.1.74.0/24", "192.0.2.1", "udp")
	one, two := lease("10.1.75.0/24", "192.0.2.2", "udp"), lease("10.1.76.0/24", "192.0.2.3", "udp")
	other := lease("10.1.77.0/24", "192.0.2.4", "host-gw")
	b := open(testHost("192.0.2.1"), defaultPort)
	ctx, stop := context.WithCancel(context.Background())
	leases, inputs := make(chan []*subnet.Lease), make(chan []*subnet.Lease)
	ended := make(chan error)
	go func() { ended <- b.follow(ctx, *own, leases, inputs) }()

	b.enter(state{})
	synctest.Wait()
	select {
	case got := <-inputs:
		t.Errorf("handed on %v, and there was no set yet", got)
	default:
	}
	leases <- []*subnet.Lease{own, one}
	leases <- []*subnet.Lease{own, one, two, other}
	if got := <-inputs; len(got) != 4 {
		t.Errorf("handed on %v, want the later set", got)
	}
	b.enter(state{lost: errDeviceLost})
	if got := <-inputs; len(got) != 4 {
		t.Errorf("handed on %v when the device was lost, want the last set", got)
	}
	table := b.table.Load()
	for _, tc := range []struct {
		ip   string
		want bool
	}{{"192.0.2.1", false}, {"192.0.2.2", true}, {"192.0.2.3", true}, {"192.0.2.4", false}} {
		if got := table.knows(addr(tc.ip)); got != tc.want {
			t.Errorf("%s in the table: %v, want %v", tc.ip, got, tc.want)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("follow returned %v when ctx ended", err)
	}
}
