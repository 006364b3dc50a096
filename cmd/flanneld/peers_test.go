package main

import (
	"strings"
	"testing"
)

// A peer that changes, whatever it is that changes: within a second of the
// write the kernel has the new entries and no old ones.
func TestPeersChange(t *testing.T) {
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`, `{"Type": "udp"}`} {
		typ := typeOf(backend)
		t.Run(backend, func(t *testing.T) {
			needTUN(t, backend)
			c, s := newCluster(t)
			h := c.Node("h1", s)
			reserve(c, h, 1)
			a := audit(c, h)
			a.configure(configOf(backend))
			a.ready(t, "the start")
			put := func(n int, ip string, mac int) { fake{ip, mac}.put(c, typ, n) }
			remove := func(n int) { c.DeleteLease(fakeKey(n)) }
			for _, step := range []struct {
				name   string
				change func()
			}{
				{"peers appear", func() { putFakes(c, typ, fakes()) }},
				{"another MAC, near", func() { put(11, near+"111", 111) }},
				{"another MAC, far", func() { put(14, far+"14", 114) }},
				{"another address, near", func() { put(11, near+"121", 111) }},
				{"another address, far", func() { put(14, far+"114", 114) }},
				{"another MAC and address, near", func() { put(11, near+"131", 211) }},
				{"another MAC and address, far", func() { put(14, far+"214", 214) }},
				{"the MAC and the address it had at first", func() { put(14, far+"14", 14) }},
				{"nearer", func() { put(14, near+"114", 14) }},
				{"farther", func() { put(11, far+"11", 211) }},
				{"nearer with another MAC", func() { put(11, near+"111", 11) }},
				{"farther with another MAC", func() { put(14, far+"14", 114) }},
				{"two near swap MACs", func() { put(11, near+"111", 12); put(12, near+"112", 11) }},
				{"two far swap MACs", func() { put(15, far+"15", 16); put(16, far+"16", 15) }},
				{"one near and one far swap MACs", func() { put(11, near+"111", 16); put(15, far+"15", 12) }},
				{"two near exchange addresses", func() { put(12, near+"113", 11); put(13, near+"112", 13) }},
				{"two far exchange addresses", func() { put(15, far+"16", 12); put(16, far+"15", 15) }},
				{"one near and one far exchange addresses", func() { put(13, far+"16", 13); put(15, near+"112", 12) }},
				{"two exchange subnets", func() { put(13, near+"112", 12); put(15, far+"16", 13) }},
				{"a circle of MACs", func() { put(14, far+"14", 15); put(15, far+"16", 114); put(16, far+"15", 13) }},
				{"another subnet", func() { remove(16); put(26, far+"15", 13) }},
				{"another subnet, the old one not yet gone", func() { put(36, far+"15", 13) }},
				{"and now it has", func() { remove(26) }},
				{"a lease that is another backend's", func() { fake{far + "15", 13}.put(c, "ipsec", 36) }},
				{"is its own again", func() { put(36, far+"15", 13) }},
				{"a lease that cannot be read", func() { c.PutLease(fakeKey(36), "{", 0) }},
				{"can be read again", func() { put(36, far+"15", 13) }},
				{"one leaves", func() { remove(14) }},
				{"one comes where it was", func() { put(14, far+"99", 99) }},
				{"its MAC comes elsewhere", func() { put(44, far+"98", 15) }},
				{"all leave", func() {
					for key := range c.Leases() {
						if key != fakeKey(1) {
							c.DeleteLease(key)
						}
					}
				}},
				{"all come back", func() { putFakes(c, typ, fakes()) }},
			} {
				step.change()
				a.await(t, within, step.name)
			}
			if !h.Daemon.Running() {
				t.Error("it has ended")
			}
		})
	}
}

// With DirectRouting a peer is direct while the host's own routes lead to it
// without a gateway, and behind VXLAN while they do not, both ways, also when its
// MAC or address changes in between.
func TestPeersMove(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	a := audit(c, h)
	a.configure(configOf(`{"Type": "vxlan", "DirectRouting": true}`))
	putFakes(c, "vxlan", fakes())
	a.ready(t, "the start")
	set := func(what, script string, lines ...string) {
		t.Helper()
		sh(h, script)
		for _, line := range lines {
			if old, gone := strings.CutPrefix(line, "-"); gone {
				a.drop(old)
			} else {
				a.add(line)
			}
		}
		a.await(t, within, what)
	}
	const detour = "route 172.30.0.111 via 172.30.0.1 dev eth0 proto static"
	set("one through the router", "ip route add 172.30.0.111/32 via 172.30.0.1 proto static", detour)
	fake{near + "111", 111}.put(c, "vxlan", 11)
	a.await(t, within, "its MAC changes there")
	set("direct again", "ip route del 172.30.0.111/32", "-"+detour)
	const half = "route 172.30.0.96/27 via 172.30.0.1 dev eth0 proto static"
	set("all near ones through the router", "ip route add 172.30.0.96/27 via 172.30.0.1 proto static", half)
	const back = "route 172.30.0.112 dev eth0 proto static scope link"
	set("one of them direct", "ip route add 172.30.0.112/32 dev eth0 proto static", back)
	set("it is no more", "ip route del 172.30.0.112/32", "-"+back)
	set("all direct again", "ip route del 172.30.0.96/27", "-"+half)
	const addr, connected = "addr eth0 172.31.0.1/24", "route 172.31.0.0/24 dev eth0 proto kernel scope link src 172.31.0.1"
	set("the far ones are on the link as well", "ip addr add 172.31.0.1/24 dev eth0", addr, connected)
	fake{far + "15", 115}.put(c, "vxlan", 14)
	fake{far + "14", 114}.put(c, "vxlan", 15)
	a.await(t, within, "two change there")
	set("they are far again", "ip addr del 172.31.0.1/24 dev eth0", "-"+addr, "-"+connected)
	const hole = "route blackhole 172.30.0.113 proto static"
	set("one is not to be reached", "ip route add blackhole 172.30.0.113/32 proto static", hole)
	set("it is again", "ip route del 172.30.0.113/32", "-"+hole)
}
