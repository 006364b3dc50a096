package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// The tests of the udp backend's packet path look at packets from outside: what a
// container sends, byte by byte, against what its peer gets, and the other way
// round. Here is the lab that they share; udppeer_test.go is the peer,
// udpview_test.go how packets are seen and sent as they are, udppackets_test.go
// how they are made and judged.

// Addresses that nobody answers from: one that the test takes packets at in the
// container, and one in the subnet of the peer by hand.
var (
	inside  = netip.MustParseAddr("10.1.1.200")
	outside = netip.MustParseAddr("10.1.2.200")
)

// toPeer and toContainer are headers to begin with.
var (
	toPeer      = ip4{ttl: 64, src: inside, dst: outside}
	toContainer = ip4{ttl: 64, src: outside, dst: inside}
)

// wires are how packets may cross between hosts: as veth pairs do it, where
// super-packets stay whole, and as a network does, in packets of the MTU's size.
var wires = []string{"whole", "cut"}

// setWire makes the pair of devices of a host's eth0 such a wire.
func setWire(t *testing.T, l *lab.Lab, h *lab.Host, wire string) {
	t.Helper()
	if wire == "cut" {
		offloads(t, l.Router, h.Name+"-eth0", false, false)
		offloads(t, h.Node, "eth0", false, true)
	}
}

// joinBy is join with such a wire, which is there before the daemon starts and
// looks at what the device can do.
func joinBy(t *testing.T, c *cluster.Cluster, s *lab.Segment, n int, wire string) (*cluster.Node, *lab.Container) {
	t.Helper()
	h := c.Node(fmt.Sprintf("h%d", n), s)
	setWire(t, c.Lab, h.Host, wire)
	reserve(c, h, n)
	h.Start()
	h.AwaitReady()
	return h, h.AddContainer("c")
}

// udpNet is a host with flanneld and a container, and a peer by hand.
type udpNet struct {
	*cluster.Cluster
	t       *testing.T
	segment *lab.Segment
	h       *cluster.Node
	c       *lab.Container
	mtu     int
	peer    *byHand
	// in has what arrives for the address inside, and from is where that sends.
	in    *inbox
	from  *injector
	marks int
}

// newUDPNet makes the host with 10.1.1.0/24 and the peer with 10.1.2.0/24.
func newUDPNet(t *testing.T, wire string) *udpNet {
	t.Helper()
	needTUN(t, "udp")
	c, s := newCluster(t)
	return udpNetOn(t, c, s, s, wire)
}

// udpNetOn is newUDPNet with the peer on a segment of its own.
func udpNetOn(t *testing.T, c *cluster.Cluster, s, ofPeer *lab.Segment, wire string) *udpNet {
	t.Helper()
	c.SetConfig(configOf(`{"Type": "udp"}`))
	u := &udpNet{Cluster: c, t: t, segment: s, peer: peerByHand(t, c, ofPeer, 2)}
	setWire(t, c.Lab, u.peer.Host, wire)
	u.h, u.c = joinBy(t, c, s, 1, wire)
	u.mtu = u.h.Env().MTU
	// What the host hands to the container is cut on its way, as by a plain device,
	// and gets those checksums that the host has left to be made. So the test sees
	// packets, and a wrong checksum only if nobody has vouched for it.
	offloads(t, u.h.Node, "veth-c", false, false)
	u.h.Run("ip", "neigh", "replace", inside.String(), "lladdr", macOf(t, u.c.Node, "eth0").String(), "dev", "docker0", "nud", "permanent")
	u.in = tap(t, u.c.Node, "eth0", func(p []byte) bool { return len(p) >= 20 && netip.AddrFrom4([4]byte(p[16:20])) == inside })
	u.from = inject(t, u.c.Node, "eth0", macOf(t, u.h.Node, "docker0"))
	return u
}

// held has the daemon stand still while f sends, so that it finds everything at
// once, as on a busy host.
func (u *udpNet) held(f func()) {
	u.t.Helper()
	u.h.Daemon.Pause()
	f()
	u.h.Daemon.Continue()
}

// mark is a packet that is like no other.
func (u *udpNet) mark(h ip4) []byte {
	u.marks++
	h.proto = 254 // for experiments (RFC 3692)
	return h.with(binary.BigEndian.AppendUint32([]byte("mark"), uint32(u.marks)))
}

// arrivals runs send and waits for so many packets in the inbox, and for one more
// that mark sends, so that whatever was too much has come as well.
func (u *udpNet) arrivals(b *inbox, n int, send func(), mark []byte, sendMark func([]byte)) []arrival {
	u.t.Helper()
	b.clear()
	send()
	// What is missing, the caller tells. Where something was before, nobody has to
	// wait so long again.
	wait := patience
	if u.t.Failed() {
		wait /= 20
	}
	b.await(wait, func(all []arrival) bool { return len(all) >= n })
	sendMark(mark)
	at := -1
	all, ok := b.await(patience, func(all []arrival) bool {
		at = slices.IndexFunc(all, func(a arrival) bool {
			return len(a.packet) == len(mark) && string(a.packet[20:]) == string(mark[20:])
		})
		return at >= 0
	})
	if !ok {
		u.t.Fatalf("the packet that was sent after all others has not come, but %d others", len(all))
	}
	return slices.Delete(all, at, at+1)
}

// peerGets runs send, which has so many packets leave for the peer, and returns
// what the peer gets, which has to be one whole packet a datagram.
func (u *udpNet) peerGets(n int, send func()) []arrival {
	u.t.Helper()
	all := u.arrivals(&u.peer.inbox, n, send, u.mark(toPeer), func(p []byte) { u.from.packets(p) })
	for _, a := range all {
		if want := netip.AddrPortFrom(u.h.Addr(), udpPort); a.from != want {
			u.t.Errorf("the peer got a packet from %v instead of %v: %s", a.from, want, describe(a.packet))
		}
		if err := checkPacket(a.packet, u.mtu); err != nil {
			u.t.Errorf("the peer got what is no packet: %v: %s", err, describe(a.packet))
		}
	}
	return all
}

// containerGets runs send, which has so many packets leave for the container, and
// returns what the container gets.
func (u *udpNet) containerGets(n int, send func()) []arrival {
	u.t.Helper()
	return u.arrivals(u.in, n, send, u.mark(toContainer), func(p []byte) { u.peer.send(u.h.Addr(), datagram{data: p}) })
}

// settle waits until all that has been sent has come to its end.
func (u *udpNet) settle() {
	u.t.Helper()
	u.peerGets(0, func() {})
	u.containerGets(0, func() {})
}

// patience is for what takes no time, but on a busy machine.
const patience = 10 * time.Second

// chunk is how many packets at a time the queues on the way hold for sure.
const chunk = 200

// carriesOut sends packets from the container and has the peer get each of them
// as it is, but for two routers: the host's kernel and flanneld.
func (u *udpNet) carriesOut(what string, packets [][]byte) {
	u.t.Helper()
	for part := range slices.Chunk(packets, chunk) {
		got := u.peerGets(len(part), func() { u.from.packets(part...) })
		if err := compare(each(part, func(p []byte) []byte { return forwarded(p, 2) }), packetsOf(got)); err != nil {
			u.t.Errorf("%s, from the container: %v", what, err)
		}
	}
}

// carriesIn sends datagrams from the peer and has the container get these packets
// as they are, but for one router, the host's kernel.
func (u *udpNet) carriesIn(what string, packets [][]byte, send func()) {
	u.t.Helper()
	got := u.containerGets(len(packets), send)
	if err := compare(each(packets, func(p []byte) []byte { return forwarded(p, 1) }), packetsOf(got)); err != nil {
		u.t.Errorf("%s, from the peer: %v", what, err)
	}
}

// carriesInAll is carriesIn by each way in which packets come from a peer: one at
// a time, in a burst, and joined by the kernel to messages of many.
func (u *udpNet) carriesInAll(what string, packets [][]byte) {
	u.t.Helper()
	to := u.h.Addr()
	for part := range slices.Chunk(packets, chunk) {
		u.carriesIn(what+", one at a time", part, func() { u.peer.send(to, singly(part)...) })
		u.carriesIn(what+", in a burst", part, func() { u.held(func() { u.peer.send(to, singly(part)...) }) })
		u.carriesIn(what+", joined", part, func() { u.held(func() { u.peer.send(to, joined(part)...) }) })
	}
}
