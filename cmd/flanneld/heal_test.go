package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// harm is something that is done to the kernel's state by hand.
type harm struct{ name, script string }

// flushRoutes deletes all routes of flanneld's. (ip route flush of iproute2 6.1
// spells out a route's gateway beside its next-hop object, which the kernel
// takes for a contradiction.)
const flushRoutes = "ip route show proto 102 | while read dst rest; do ip route del $dst; done"

// Routes that each backend with plain routes has, here 10.1.11.0/24.
var routeHarms = []harm{
	{"a direct route deleted", "ip route del 10.1.11.0/24"},
	{"a direct route to another gateway", "ip route replace 10.1.11.0/24 via 172.30.0.112 proto 102"},
	{"a direct route to another gateway, by nobody", "ip route replace 10.1.11.0/24 via 172.30.0.112"},
	{"a direct route to the same gateway, by nobody", "ip route replace 10.1.11.0/24 via 172.30.0.111"},
	{"a direct route with an MTU and a source", "ip route change 10.1.11.0/24 via 172.30.0.111 proto 102 mtu 1000 src 172.30.0.3"},
	{"a direct route a blackhole", "ip route replace blackhole 10.1.11.0/24"},
	{"a direct route a blackhole with the mark", "ip route replace blackhole 10.1.11.0/24 proto 102"},
	{"a direct route unreachable", "ip route del 10.1.11.0/24; ip route add unreachable 10.1.11.0/24 proto 102"},
	{"another route before", "ip route prepend 10.1.11.0/24 via 172.30.0.112"},
	{"another route behind", "ip route append 10.1.11.0/24 via 172.30.0.112 proto 102"},
	{"a route with a metric beside", "ip route add 10.1.11.0/24 via 172.30.0.112 metric 50 proto 102"},
	{"several routes with metrics and no other", `
		ip route del 10.1.11.0/24
		ip route add 10.1.11.0/24 via 172.30.0.112 metric 50 proto 102
		ip route add 10.1.11.0/24 via 172.30.0.113 metric 60 proto 102`},
	{"a route with a TOS beside", "ip route add 10.1.11.0/24 tos 0x10 via 172.30.0.112 proto 102"},
	{"several gateways", "ip route replace 10.1.11.0/24 proto 102 nexthop via 172.30.0.111 nexthop via 172.30.0.112"},
	{"a route to a subnet without a lease", "ip route add 10.1.60.0/24 via 172.30.0.112 proto 102"},
	{"a route to half a subnet", "ip route add 10.1.11.128/25 via 172.30.0.112 proto 102"},
	{"a route out of the network", "ip route add 203.0.113.0/24 via 172.30.0.112 proto 102"},
	{"a route through a next-hop object of somebody's", "ip nexthop replace id 700 via 172.30.0.112 dev eth0; ip route replace 10.1.11.0/24 nhid 700 proto 102; ip nexthop del id 700"},
	{"all routes flushed", flushRoutes},
	// Where there are none, nothing is flushed.
	{"all next-hop objects flushed", "ip nexthop flush proto 102"},
	{"next-hop objects added that no route uses", "ip nexthop add id 4000000 via 172.30.0.112 dev eth0 proto 102; ip nexthop add id 4000001 group 4000000 proto 102"},
	// The default route goes with it, and is not flanneld's to put back.
	{"eth0 down and up", "ip link set eth0 down; ip link set eth0 up; ip route add default via 172.30.0.1"},
}

// What a vxlan host has besides: a peer 10.1.14.0/24 behind the router, at
// 172.31.0.14, with the MAC 02:00:00:00:00:0e.
var vxlanHarms = []harm{
	{"a route deleted", "ip route del 10.1.14.0/24"},
	{"a route to another gateway", "ip route replace 10.1.14.0/24 via 10.1.15.0 dev flannel.1 onlink proto 102"},
	{"a route to another gateway, by nobody", "ip route replace 10.1.14.0/24 via 10.1.15.0 dev flannel.1 onlink"},
	{"a route out of another interface", "ip route replace 10.1.14.0/24 via 172.30.0.1 proto 102"},
	{"a route a blackhole", "ip route replace blackhole 10.1.14.0/24"},
	{"a route with a metric in its place", "ip route del 10.1.14.0/24; ip route add 10.1.14.0/24 via 10.1.15.0 dev flannel.1 onlink metric 50 proto 102"},
	{"a route of somebody's on our device", "ip route add 10.1.60.0/24 dev flannel.1 proto static"},
	{"a neighbour deleted", "ip neigh del 10.1.14.0 dev flannel.1"},
	{"a neighbour with another MAC", "ip neigh replace 10.1.14.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent"},
	{"a neighbour with a peer's MAC", "ip neigh replace 10.1.14.0 lladdr 02:00:00:00:00:0f dev flannel.1 nud permanent"},
	{"a neighbour reachable instead of permanent", "ip neigh replace 10.1.14.0 lladdr 02:00:00:00:00:0e dev flannel.1 nud reachable"},
	{"a neighbour reachable with another MAC", "ip neigh replace 10.1.14.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud reachable"},
	{"a neighbour without a lease", "ip neigh add 10.1.60.0 lladdr 02:00:00:00:00:60 dev flannel.1 nud permanent"},
	{"all neighbours flushed", "ip neigh flush dev flannel.1 nud permanent"},
	{"an FDB entry deleted", "bridge fdb del 02:00:00:00:00:0e dev flannel.1"},
	{"an FDB entry to another host", "bridge fdb replace 02:00:00:00:00:0e dev flannel.1 dst 172.31.0.15"},
	{"an FDB entry to another VNI", "bridge fdb replace 02:00:00:00:00:0e dev flannel.1 dst 172.31.0.14 vni 9"},
	{"an FDB entry to another port", "bridge fdb replace 02:00:00:00:00:0e dev flannel.1 dst 172.31.0.14 port 99"},
	{"an FDB entry without a lease", "bridge fdb add 02:00:00:00:00:60 dev flannel.1 dst 172.31.0.60"},
	// The kernel allows a second destination for a group address only.
	{"an FDB entry with two destinations", `
		bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.31.0.14
		bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.31.0.15`},
	{"all FDB entries flushed", "bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1; done"},
	{"the device deleted", "ip link del flannel.1"},
	{"the device deleted and made again otherwise", "ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dev eth0 dstport 4789"},
	{"the device deleted and its name taken by another kind", "ip link del flannel.1; ip link add flannel.1 type vxlan id 2 dev eth0 dstport 8472 external || ip link add flannel.1 type vxlan external dstport 4789"},
	{"the device down", "ip link set flannel.1 down"},
	{"the device down and up", "ip link set flannel.1 down; ip link set flannel.1 up"},
	{"the device renamed", "ip link set flannel.1 down; ip link set flannel.1 name flannel.5; ip link set flannel.5 up"},
	{"another device of ours", "ip link add flannel.9 type vxlan id 9 dev eth0 dstport 8472; ip link set flannel.9 up; ip route add 10.1.60.0/24 dev flannel.9"},
	{"the address removed", "ip addr del 10.1.1.0/32 dev flannel.1"},
	{"the address made a wide one", "ip addr flush dev flannel.1; ip addr add 10.1.1.0/16 dev flannel.1"},
	{"an address added", "ip addr add 10.1.1.1/24 dev flannel.1"},
	{"an address added that is no subnet's", "ip addr add 192.0.2.1/32 dev flannel.1"},
	{"the MAC changed", "ip link set flannel.1 address 02:00:00:00:00:99"},
	{"the MTU changed", "ip link set flannel.1 mtu 1300"},
	{"the MTU too small for IPv4", "ip link set flannel.1 mtu 68"}, // 67 is not allowed
	{"all flushed", `
		` + flushRoutes + `
		ip neigh flush dev flannel.1 nud permanent
		bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1; done
		ip nexthop flush proto 102`},
	{"all at once", `
		ip link set flannel.1 down
		ip link set flannel.1 address 02:00:00:00:00:98 mtu 1200
		ip addr flush dev flannel.1
		ip link set eth0 down
		` + flushRoutes + `
		ip link set eth0 up
		ip route add default via 172.30.0.1`},
}

var udpHarms = []harm{
	{"the route deleted", "ip route del 10.1.0.0/16"},
	{"the route elsewhere", "ip route replace 10.1.0.0/16 via 172.30.0.1"},
	{"the route a blackhole", "ip route replace blackhole 10.1.0.0/16 proto 102"},
	{"the route with a metric", "ip route del 10.1.0.0/16; ip route add 10.1.0.0/16 dev flannel0 metric 50 proto 102"},
	{"a route to a subnet", "ip route add 10.1.11.0/24 via 172.30.0.111 proto 102"},
	{"all routes flushed", flushRoutes},
	{"the device down", "ip link set flannel0 down"},
	{"the device down and up", "ip link set flannel0 down; ip link set flannel0 up"},
	{"the device deleted", "ip link del flannel0"},
	{"the address removed", "ip addr del 10.1.1.0/32 dev flannel0"},
	{"an address added", "ip addr add 10.1.1.1/24 dev flannel0"},
	{"the MTU changed", "ip link set flannel0 mtu 1300"},
	{"another device of ours", "ip link add flannel.9 type vxlan id 9 dev eth0 dstport 8472; ip link set flannel.9 up"},
	{"eth0 down and up, and the route gone", "ip link set eth0 down; ip route del 10.1.0.0/16; ip link set eth0 up; ip route add default via 172.30.0.1"},
}

// What hands do to the kernel's state while flanneld runs is put right within
// healing, and then containers reach each other.
func TestHealing(t *testing.T) {
	for _, test := range []struct {
		backend string
		mtu     int
		harms   [][]harm
	}{
		{`{"Type": "vxlan"}`, 1450, [][]harm{vxlanHarms}},
		{`{"Type": "vxlan", "DirectRouting": true}`, 1450, [][]harm{routeHarms, vxlanHarms}},
		{`{"Type": "host-gw"}`, 1500, [][]harm{routeHarms}},
		{`{"Type": "udp"}`, 1472, [][]harm{udpHarms}},
	} {
		t.Run(test.backend, func(t *testing.T) {
			needTUN(t, test.backend)
			c, s := newCluster(t)
			h1 := c.Node("h1", s)
			reserve(c, h1, 1)
			a := audit(c, h1)
			a.configure(configOf(test.backend))
			putFakes(c, typeOf(test.backend), fakes())
			a.ready(t, "the start")
			c1 := h1.AddContainer("c")
			h2, c2 := join(c, s, 2)
			a.await(t, within, "a real peer")
			for _, harms := range test.harms {
				for _, harm := range harms {
					if err := heal(a, harm); err != nil {
						t.Errorf("%s: %v", harm.name, err)
						startOver(t, a) // one harm is not to hide another
					}
				}
			}
			reach(t, c1, c2, c2.Addr(), c1.Addr(), test.mtu)
			reach(t, c2, c1, c1.Addr(), c2.Addr(), test.mtu)
			for _, h := range []*cluster.Node{h1, h2} {
				if !h.Daemon.Running() {
					t.Errorf("%v does not run any more", h.Daemon)
				}
			}
		})
	}
}

// heal does the harm twice and waits until it is put right.
func heal(a *auditor, harm harm) error {
	a.c.Helper()
	// First with flanneld held, so that it meets all the harm at once and it is
	// certain that there was some.
	a.h.Daemon.Pause()
	_, err := a.h.Exec("sh", "-ec", harm.script)
	hurt := a.check() != nil
	a.h.Daemon.Continue()
	if err != nil {
		return err
	}
	if !hurt && harm.script != "ip nexthop flush proto 102" {
		return errors.New("no harm was done")
	}
	if err := lab.Poll(healing, "with all done at once", a.check); err != nil {
		return err
	}
	// Then with flanneld at work, which may be quicker than the next command, so
	// that this then fails.
	_, _ = a.h.Exec("sh", "-c", harm.script)
	return lab.Poll(healing, "with flanneld at work", a.check)
}

// startOver takes away what there is of flanneld's and starts it anew.
func startOver(t *testing.T, a *auditor) {
	t.Helper()
	a.h.Stop()
	_, _ = a.h.Exec("sh", "-c", "for d in flannel0 flannel.1 flannel.5 flannel.9; do ip link del $d; done; "+flushRoutes+"; ip nexthop flush proto 102")
	a.ready(t, "starting over")
}

// While eth0 is down the host's own routes are gone, so that no peer is on its
// link; what is harmed then is put right by what can be had then, and with eth0
// back all is as it was.
func TestHealingWithoutInterface(t *testing.T) {
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`} {
		t.Run(backend, func(t *testing.T) {
			c, s := newCluster(t)
			h := c.Node("h1", s)
			reserve(c, h, 1)
			a := audit(c, h)
			a.configure(configOf(backend))
			putFakes(c, typeOf(backend), fakes())
			a.ready(t, "the start")

			before := slices.Clone(a.others)
			sh(h, "ip link set eth0 down")
			a.others = nil
			for _, line := range before {
				if !strings.HasPrefix(line, "route ") {
					a.add(strings.Replace(line, "link eth0 up", "link eth0 down", 1))
				}
			}
			a.await(t, healing, "eth0 is down")
			if typeOf(backend) == "vxlan" {
				for _, script := range []string{"ip route del 10.1.14.0/24", "ip neigh flush dev flannel.1 nud permanent", "ip link set flannel.1 mtu 1300"} {
					sh(h, script)
					a.await(t, healing, script)
				}
			}
			sh(h, "ip link set eth0 up; ip route add default via 172.30.0.1")
			a.others = before
			a.await(t, healing, "eth0 is up again")
		})
	}
}
