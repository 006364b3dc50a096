package rtnl_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/rtnl"
)

// The tests of this file talk to the real kernel, on a host made of a network
// namespace.
func TestMain(m *testing.M) { lab.Main(m) }

// host is a host 172.30.0.2 with the VXLAN device vx0, and a socket there.
type host struct {
	*lab.Host
	t         *testing.T
	vx0, eth0 int32
	socket    *rtnl.Socket
}

func newHost(t *testing.T) *host {
	t.Helper()
	if err := lab.Tools("ip", "bridge"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	h := &host{Host: l.Host("h1", l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))), t: t}
	h.Run("sh", "-ec", `
		ip link add vx0 type vxlan id 7 dev eth0 dstport 8472 nolearning
		ip addr add 10.1.1.0/32 dev vx0
		ip link set vx0 up`)
	l.Must(h.Do(func() (err error) {
		for name, index := range map[string]*int32{"vx0": &h.vx0, "eth0": &h.eth0} {
			dev, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			*index = int32(dev.Index)
		}
		h.socket, err = rtnl.Open()
		return err
	}))
	t.Cleanup(func() { h.socket.Close() })
	return h
}

// do makes the requests, of which none may fail.
func (h *host) do(b *rtnl.Batch) {
	h.t.Helper()
	if err := h.socket.Do(b, func(i int, err error) { h.t.Errorf("request %d: %v", i, err) }); err != nil {
		h.t.Fatal(err)
	}
}

// shows compares what a command prints, sorted and without IDs of next hops
// that are not asked for, with the lines wanted.
func (h *host) shows(command string, want ...string) {
	h.t.Helper()
	got := []string{}
	for _, line := range strings.Split(h.Run(strings.Fields(command)...), "\n") {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			got = append(got, line)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got, cmp.Transformer("lines", func(s []string) string { return strings.Join(s, "\n") })); d != "" {
		h.t.Errorf("%s (-want +got):\n%s", command, d)
	}
}

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// What is written is what ip and bridge show, and what is read.
func TestEntries(t *testing.T) {
	h := newHost(t)
	mac := rtnl.MAC{2, 0, 0, 0, 0, 9}
	route := rtnl.Route{Dst: pfx("10.1.2.0/24"), Table: unix.RT_TABLE_MAIN, Protocol: 102, Type: unix.RTN_UNICAST, Gateway: ip("10.1.2.0"), Link: h.vx0, OnLink: true}
	link := rtnl.Route{Dst: pfx("10.1.4.0/24"), Table: unix.RT_TABLE_MAIN, Protocol: 102, Type: unix.RTN_UNICAST, Scope: unix.RT_SCOPE_LINK, Link: h.vx0}
	hop := rtnl.NextHop{ID: 7, Protocol: 102, Gateway: ip("172.30.0.9"), Link: h.eth0}
	onLink := rtnl.NextHop{ID: 1 << 31, Protocol: 102, Gateway: ip("10.1.5.0"), Link: h.vx0, OnLink: true}
	through := rtnl.Route{Dst: pfx("10.1.5.0/24"), Table: unix.RT_TABLE_MAIN, Protocol: 102, Type: unix.RTN_UNICAST, NextHop: 1 << 31}
	metric := rtnl.Route{Dst: pfx("0.0.0.0/0"), Table: 300, Protocol: 102, Type: unix.RTN_UNICAST, Metric: 5, Gateway: ip("172.30.0.9"), Link: h.eth0}

	var b rtnl.Batch
	b.ReplaceRoute(route)
	b.ReplaceRoute(link)
	b.AddNextHop(hop)
	b.AddNextHop(onLink)
	b.ReplaceRoute(through)
	b.ReplaceRoute(metric)
	b.ReplaceNeighbour(rtnl.Neighbour{Link: h.vx0, IP: ip("10.1.2.0"), MAC: mac})
	b.ReplaceFDB(rtnl.FDBEntry{Link: h.vx0, MAC: mac, Dst: ip("192.0.2.1")})
	h.do(&b)
	h.shows("ip route show proto 102",
		"10.1.2.0/24 via 10.1.2.0 dev vx0 onlink", "10.1.4.0/24 dev vx0 scope link", "10.1.5.0/24 nhid 2147483648 via 10.1.5.0 dev vx0 onlink")
	h.shows("ip route show table 300", "default via 172.30.0.9 dev eth0 proto 102 metric 5")
	h.shows("ip nexthop", "id 7 via 172.30.0.9 dev eth0 scope link proto 102", "id 2147483648 via 10.1.5.0 dev vx0 scope link proto 102 onlink")
	h.shows("ip neigh show nud permanent", "10.1.2.0 dev vx0 lladdr 02:00:00:00:00:09 PERMANENT")
	h.shows("bridge fdb show dev vx0", "02:00:00:00:00:09 dst 192.0.2.1 self permanent")

	// Whatever else the kernel shows of it, the next hop is named.
	through.Gateway, through.Link, through.OnLink = onLink.Gateway, onLink.Link, true
	var routes []rtnl.Route
	h.must(h.socket.Routes(unix.RT_TABLE_MAIN, func(r rtnl.Route) {
		if r.Protocol == 102 {
			routes = append(routes, r)
		}
	}))
	compare(t, "routes", routes, route, link, through)
	routes = nil
	h.must(h.socket.Routes(300, func(r rtnl.Route) { routes = append(routes, r) }))
	compare(t, "routes of table 300", routes, metric)
	h.Sysctl("net/ipv4/nexthop_compat_mode", "0")
	routes = nil
	h.must(h.socket.Routes(unix.RT_TABLE_MAIN, func(r rtnl.Route) {
		if r.NextHop != 0 {
			routes = append(routes, r)
		}
	}))
	compare(t, "routes without the object's content", routes, rtnl.Route{Dst: through.Dst, Table: through.Table, Protocol: 102, Type: unix.RTN_UNICAST, NextHop: 1 << 31})
	var hops []rtnl.NextHop
	h.must(h.socket.NextHops(func(n rtnl.NextHop) { hops = append(hops, n) }))
	compare(t, "next hops", hops, hop, onLink)
	var neighs []rtnl.Neighbour
	h.must(h.socket.Neighbours(h.vx0, func(n rtnl.Neighbour) {
		if n.Permanent {
			neighs = append(neighs, n)
		}
	}))
	compare(t, "neighbours", neighs, rtnl.Neighbour{Link: h.vx0, IP: ip("10.1.2.0"), MAC: mac, Permanent: true})
	var fdb []rtnl.FDBEntry
	h.must(h.socket.FDB(h.vx0, func(f rtnl.FDBEntry) { fdb = append(fdb, f) }))
	compare(t, "FDB", fdb, rtnl.FDBEntry{Link: h.vx0, MAC: mac, Dst: ip("192.0.2.1")})

	// Replaced in place, and deleted.
	b.Reset()
	route.Gateway = ip("10.1.3.0")
	b.ReplaceRoute(route)
	b.ReplaceNeighbour(rtnl.Neighbour{Link: h.vx0, IP: ip("10.1.2.0"), MAC: rtnl.MAC{2, 0, 0, 0, 0, 8}})
	b.ReplaceFDB(rtnl.FDBEntry{Link: h.vx0, MAC: mac, Dst: ip("192.0.2.2")})
	b.DeleteRoute(link)
	b.DeleteRoute(through)
	b.DeleteNextHop(1 << 31)
	h.do(&b)
	h.shows("ip route show proto 102", "10.1.2.0/24 via 10.1.3.0 dev vx0 onlink")
	h.shows("ip neigh show nud permanent", "10.1.2.0 dev vx0 lladdr 02:00:00:00:00:08 PERMANENT")
	h.shows("bridge fdb show dev vx0", "02:00:00:00:00:09 dst 192.0.2.2 self permanent")
	h.Run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", "192.0.2.3")
	h.Run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", "192.0.2.4", "port", "99")
	b.Reset()
	b.DeleteRoute(route)
	b.DeleteRoute(metric)
	b.DeleteNextHop(7)
	b.DeleteNeighbour(h.vx0, ip("10.1.2.0"))
	b.DeleteFDB(rtnl.FDBEntry{Link: h.vx0, MAC: mac})
	b.DeleteFDB(rtnl.FDBEntry{Link: h.vx0}) // all destinations
	h.do(&b)
	h.shows("ip route show proto 102")
	h.shows("ip nexthop")
	h.shows("ip neigh show nud permanent")
	h.shows("bridge fdb show dev vx0")
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func compare[T any](t *testing.T, what string, got []T, want ...T) {
	t.Helper()
	lines := func(all []T) (lines []string) {
		for _, e := range all {
			lines = append(lines, fmt.Sprintf("%+v", e))
		}
		slices.Sort(lines)
		return lines
	}
	if d := cmp.Diff(lines(want), lines(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// What has more to it than the types say is marked.
func TestOthers(t *testing.T) {
	h := newHost(t)
	h.Sysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
	h.Run("sh", "-ec", `
		ip route add 10.2.1.0/24 via 172.30.0.9 src 172.30.0.2
		ip route add 10.2.2.0/24 via 172.30.0.9 mtu 1000
		ip route add 10.2.3.0/24 nexthop via 172.30.0.8 nexthop via 172.30.0.9
		ip route add 10.2.4.0/24 via inet6 fe80::1 dev eth0
		ip route add blackhole 10.2.5.0/24 proto 102
		ip route add 10.2.6.0/24 tos 0x10 via 172.30.0.9
		ip nexthop add id 1 blackhole
		ip nexthop add id 2 via 172.30.0.9 dev eth0
		ip nexthop add id 3 group 2
		ip nexthop add id 4 via fe80::1 dev eth0
		bridge fdb add 02:00:00:00:00:01 dev vx0 dst 192.0.2.1 port 99
		bridge fdb add 02:00:00:00:00:02 dev vx0 dst 192.0.2.1 vni 99
		bridge fdb add 02:00:00:00:00:03 dev vx0 dst 192.0.2.1 via eth0
		bridge fdb add 02:00:00:00:00:04 dev vx0 dst 192.0.2.1 dynamic
		bridge fdb add 02:00:00:00:00:05 dev vx0 dst 192.0.2.1 static`)
	var got []string
	h.must(h.socket.Routes(unix.RT_TABLE_MAIN, func(r rtnl.Route) {
		if pfx("10.2.0.0/16").Contains(r.Dst.Addr()) {
			got = append(got, fmt.Sprintf("%v other %v multipath %v via %v type %d tos %d", r.Dst, r.Other, r.Multipath, r.Via, r.Type, r.TOS))
		}
	}))
	h.must(h.socket.NextHops(func(n rtnl.NextHop) {
		got = append(got, fmt.Sprintf("next hop %d other %v IPv6 %v", n.ID, n.Other, n.IPv6))
	}))
	h.must(h.socket.FDB(h.vx0, func(f rtnl.FDBEntry) { got = append(got, fmt.Sprintf("FDB %d other %v", f.MAC[5], f.Other)) }))
	compare(t, "all", got,
		"10.2.1.0/24 other true multipath false via false type 1 tos 0",
		"10.2.2.0/24 other true multipath false via false type 1 tos 0",
		"10.2.3.0/24 other false multipath true via false type 1 tos 0",
		"10.2.4.0/24 other true multipath false via true type 1 tos 0",
		"10.2.5.0/24 other false multipath false via false type 6 tos 0",
		"10.2.6.0/24 other false multipath false via false type 1 tos 16",
		"next hop 1 other true IPv6 false", "next hop 2 other false IPv6 false", "next hop 3 other true IPv6 false", "next hop 4 other true IPv6 true",
		"FDB 1 other true", "FDB 2 other true", "FDB 3 other true", "FDB 4 other true", "FDB 5 other false")
}

// Of many requests each that fails is named, with the kernel's reason, and the
// others are made.
func TestFailures(t *testing.T) {
	h := newHost(t)
	var b rtnl.Batch
	want := map[int]bool{}
	for i := range 1000 {
		r := rtnl.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 32), Protocol: 102, Type: unix.RTN_UNICAST, Gateway: ip("172.30.0.9"), Link: h.eth0}
		if i%3 == 0 || i > 800 {
			r.Gateway, want[i] = ip("192.0.2.1"), true // which is not on the link
		}
		b.ReplaceRoute(r)
	}
	got := map[int]bool{}
	h.must(h.socket.Do(&b, func(i int, err error) {
		got[i] = true
		var refusal *rtnl.Error
		if !errors.As(err, &refusal) || !errors.Is(err, unix.ENETUNREACH) || refusal.Text == "" {
			t.Errorf("request %d: %v", i, err)
		}
	}))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("failed (-want +got):\n%s", d)
	}
	there := 0
	h.must(h.socket.Routes(unix.RT_TABLE_MAIN, func(r rtnl.Route) {
		if r.Protocol == 102 {
			there++
		}
	}))
	if there != 1000-len(want) {
		t.Errorf("%d routes are there, want %d", there, 1000-len(want))
	}
}

// Notices tell of what others have done, and not of what was done through the
// socket itself, as far as the kernel tells the two apart.
func TestNotices(t *testing.T) {
	h := newHost(t)
	var notices *rtnl.Notices
	h.must(h.Do(func() (err error) {
		notices, err = rtnl.Subscribe(h.socket, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, 32, 9999)
		return err
	}))
	seen := make(chan string, 100)
	ended := make(chan error)
	go func() {
		for {
			if err := notices.Receive(func(m rtnl.Message) {
				switch m.Type {
				case unix.RTM_NEWROUTE:
					if r, ok := rtnl.ParseRoute(m.Data); ok && r.Table == unix.RT_TABLE_MAIN {
						seen <- "route " + r.Dst.String()
					}
				case unix.RTM_NEWNEXTHOP:
					if n, ok := rtnl.ParseNextHop(m.Data); ok {
						seen <- fmt.Sprintf("next hop %d", n.ID)
					}
				case unix.RTM_NEWNEIGH:
					if n, ok := rtnl.ParseNeighbour(m.Data); ok && n.Link == h.vx0 {
						seen <- "neighbour " + n.IP.String()
					} else if f, ok := rtnl.ParseFDB(m.Data); ok && f.Link == h.vx0 {
						seen <- "FDB " + f.Dst.String()
					}
				case unix.RTM_NEWADDR, unix.RTM_DELADDR:
					if a, ok := rtnl.ParseAddress(m.Data); ok {
						seen <- fmt.Sprintf("address %v %v", a.Prefix, a.Peer)
					}
				case unix.RTM_NEWLINK, unix.RTM_DELLINK:
					if l, ok := rtnl.ParseLink(m.Data); ok && l.Name != "eth0" {
						seen <- fmt.Sprintf("link %s %s up %v mtu %d", l.Name, l.Kind, l.Up, l.MTU)
					}
				}
			}); err != nil {
				ended <- err
				return
			}
		}
	}()
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			select {
			case got := <-seen:
				if got != w {
					t.Errorf("got notice of %q, want %q", got, w)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("no notice of %q", w)
			}
		}
	}
	var b rtnl.Batch
	b.AddNextHop(rtnl.NextHop{ID: 5, Protocol: 102, Gateway: ip("172.30.0.9"), Link: h.eth0})
	b.ReplaceRoute(rtnl.Route{Dst: pfx("10.2.1.0/24"), Protocol: 102, Type: unix.RTN_UNICAST, NextHop: 5})
	b.ReplaceNeighbour(rtnl.Neighbour{Link: h.vx0, IP: ip("10.1.2.0"), MAC: rtnl.MAC{2, 0, 0, 0, 0, 9}})
	b.ReplaceFDB(rtnl.FDBEntry{Link: h.vx0, MAC: rtnl.MAC{2, 0, 0, 0, 0, 9}, Dst: ip("192.0.2.1")})
	h.do(&b)
	expect("FDB 192.0.2.1")
	h.Run("sh", "-ec", `
		ip nexthop add id 6 via 172.30.0.8 dev eth0
		ip route add 10.2.2.0/24 nhid 6
		ip neigh add 10.1.3.0 lladdr 02:00:00:00:00:08 dev vx0 nud permanent
		bridge fdb add 02:00:00:00:00:08 dev vx0 dst 192.0.2.2
		ip addr add 10.1.1.1/32 dev vx0
		ip addr add 10.1.1.2 peer 10.1.1.3 dev vx0
		ip link set vx0 mtu 1400
		ip link set vx0 down`)
	expect("next hop 6", "route 10.2.2.0/24", "neighbour 10.1.3.0", "FDB 192.0.2.2", "address 10.1.1.1/32 invalid IP",
		"address 10.1.1.2/32 10.1.1.3", "route 10.1.1.3/32", "link vx0 vxlan up true mtu 1400")
	h.must(notices.Interrupt())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive ended with %v", err)
	}
	h.must(notices.Close())
}

// Whatever a message holds, reading it does no harm.
func FuzzParse(f *testing.F) {
	f.Add([]byte{unix.AF_INET, 24, 0, 0, 254, 102, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 1, 2, 0})
	f.Add([]byte{unix.AF_BRIDGE, 0, 0, 0, 3, 0, 0, 0, 128, 0, 2, 0, 10, 0, 2, 0, 2, 0, 0, 0, 0, 9, 0, 0, 8, 0, 1, 0, 192, 0, 2, 1})
	f.Add([]byte{0, 0, 1, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 3, 0, 'v', 'x', '0', 0, 12, 0, 18, 0, 8, 0, 1, 0, 't', 'u', 'n', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := rtnl.ParseRoute(b); ok && !r.Dst.IsValid() {
			t.Errorf("the route %+v", r)
		}
		if n, ok := rtnl.ParseNextHop(b); ok && n.ID == 0 {
			t.Errorf("the next hop %+v", n)
		}
		if n, ok := rtnl.ParseNeighbour(b); ok && !n.IP.Is4() {
			t.Errorf("the neighbour %+v", n)
		}
		rtnl.ParseFDB(b)
		rtnl.ParseLink(b)
		if a, ok := rtnl.ParseAddress(b); ok && !a.Prefix.IsValid() {
			t.Errorf("the address %+v", a)
		}
	})
}
