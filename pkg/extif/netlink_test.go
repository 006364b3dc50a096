package extif

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newNamespace moves the test into a network namespace of its own. The thread
// is never given back, so that it ends with the test and the namespace with it.
func newNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
}

// TestKernel reads real interfaces, addresses and routes.
func TestKernel(t *testing.T) {
	newNamespace(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"left", "right"} {
		must(netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400}, PeerName: name + "-end",
		}))
		for _, end := range []string{name, name + "-end"} {
			l, err := netlink.LinkByName(end)
			must(err)
			must(netlink.LinkSetUp(l))
		}
	}
	link := func(name string) int {
		l, err := netlink.LinkByName(name)
		must(err)
		return l.Attrs().Index
	}
	addr := func(name, cidr string, scope int) {
		t.Helper()
		a, err := netlink.ParseAddr(cidr)
		must(err)
		a.Scope = scope
		l, err := netlink.LinkByName(name)
		must(err)
		must(netlink.AddrAdd(l, a))
	}
	choose := func(opts Options, want string) {
		t.Helper()
		got, err := Choose(opts)
		switch {
		case err != nil && err.Error() != want:
			t.Errorf("%+v: error\n  %v\nwant\n  %s", opts, err, want)
		case err == nil && got.Name+" "+got.Addr.String() != want:
			t.Errorf("%+v: chose %s %s, want %s", opts, got.Name, got.Addr, want)
		}
	}
	route := func(r netlink.Route) {
		t.Helper()
		_, r.Dst, _ = net.ParseCIDR("0.0.0.0/0")
		must(netlink.RouteReplace(&r))
	}
	ip := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

	choose(Options{}, "there is no IPv4 default route to choose the interface by; name it with --iface; "+
		"there are: lo (no IPv4 address, down), left-end (no IPv4 address), left (no IPv4 address), right-end (no IPv4 address), right (no IPv4 address)")

	addr("left", "10.50.1.9/24", unix.RT_SCOPE_LINK)
	addr("left", "10.51.1.1/24", unix.RT_SCOPE_UNIVERSE)
	addr("left", "10.51.1.2/24", unix.RT_SCOPE_UNIVERSE) // secondary
	addr("right", "10.52.1.1/24", unix.RT_SCOPE_UNIVERSE)
	choose(Options{Ifaces: []string{"left"}}, "left 10.51.1.1")
	choose(Options{Ifaces: []string{"10.51.1.2"}}, "left 10.51.1.2")
	choose(Options{CanReach: netip.MustParseAddr("10.52.1.77")}, "right 10.52.1.1")
	choose(Options{CanReach: netip.MustParseAddr("10.99.1.77")}, "--iface-can-reach=10.99.1.77: the kernel has no route to it (network is unreachable); "+
		"there are: lo (no IPv4 address, down), left-end (no IPv4 address), left (10.50.1.9, 10.51.1.1, 10.51.1.2), right-end (no IPv4 address), right (10.52.1.1)")

	s, err := look(netip.Addr{})
	must(err)
	left := s.named("left")
	if want := []address{
		{prefix: netip.MustParsePrefix("10.50.1.9/24")},
		{prefix: netip.MustParsePrefix("10.51.1.1/24"), global: true},
		{prefix: netip.MustParsePrefix("10.51.1.2/24"), global: true, secondary: true},
	}; !slices.Equal(left.addrs, want) {
		t.Errorf("addresses of left read as %v, want %v", left.addrs, want)
	}
	if left.mtu != 1400 || !left.up || left.loopback || strings.Count(left.mac, ":") != 5 {
		t.Errorf("left read as %+v", *left)
	}
	if lo := s.named("lo"); !lo.loopback || lo.up || lo.mac != "" {
		t.Errorf("lo read as %+v", *lo)
	}

	route(netlink.Route{LinkIndex: link("right"), Gw: ip("10.52.1.254"), Priority: 100})
	choose(Options{}, "right 10.52.1.1")
	route(netlink.Route{LinkIndex: link("left"), Gw: ip("10.51.1.254"), Priority: 50})
	choose(Options{}, "left 10.51.1.1")
	choose(Options{CanReach: netip.MustParseAddr("203.0.113.1")}, "left 10.51.1.1")

	// Several next hops: the first counts.
	route(netlink.Route{Priority: 10, MultiPath: []*netlink.NexthopInfo{
		{LinkIndex: link("right"), Gw: ip("10.52.1.254")},
		{LinkIndex: link("left"), Gw: ip("10.51.1.254")},
	}})
	choose(Options{}, "right 10.52.1.1")

	// A default route that goes nowhere is none.
	route(netlink.Route{Type: unix.RTN_UNREACHABLE, Priority: 5})
	choose(Options{}, "right 10.52.1.1")
}
