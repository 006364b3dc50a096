package main

import (
	"errors"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// narrow is the MTU of a link far from the host, and narrowed what is left of it
// for packets of containers.
const (
	narrow   = 1300
	narrowed = narrow - 28
)

// narrowSegment is a segment behind the router to which larger packets do not
// pass. The way back is not narrow.
func narrowSegment(c *cluster.Cluster) *lab.Segment {
	c.Helper()
	s := c.Segment("b", netip.MustParsePrefix("172.31.0.0/24"))
	c.Router.Run("ip", "link", "set", "dev", "b", "mtu", strconv.Itoa(narrow))
	return s
}

// A packet that may be fragmented arrives, however large. One that may not is
// answered by the size that fits, as by a router.
func TestUDPPathMTU(t *testing.T) {
	needTUN(t, "udp")
	c, s := newCluster(t)
	u := udpNetOn(t, c, s, narrowSegment(c), "whole")
	mayFragment := func(when string) {
		t.Helper()
		var packets [][]byte
		h := toPeer
		for _, size := range []int{narrowed - 1, narrowed, narrowed + 1, 1300, 1301, u.mtu - 1, u.mtu} {
			h.id++
			packets = append(packets, h.udp(1000, 2000, noise(size-28, uint64(size))))
		}
		u.carriesOut("packets that may be fragmented, "+when, packets)
	}
	mayFragment("at first")

	h := toPeer
	h.frag = dontFragment
	fits := h.udp(1000, 2000, noise(narrowed-28, 1))
	u.carriesOut("a packet that fits", [][]byte{fits})
	for _, size := range []int{u.mtu, narrowed + 1} {
		large := h.udp(1000, 2000, noise(size-28, uint64(size)))
		// The first ones may go to find out what fits.
		u.in.clear()
		var first arrival
		lab.Eventually(t, patience, "an answer to a packet that is too large", func() error {
			u.from.packets(large)
			for _, a := range u.in.seen() {
				first = a
				return nil
			}
			return errors.New("none has come")
		})
		u.settle()
		for _, a := range append(u.containerGets(1, func() { u.from.packets(large) }), first) {
			if f, ok := u.fault(a.packet); !ok {
				t.Errorf("what came is no ICMP error: %s", describe(a.packet))
			} else if err := f.is(3, 4, narrowed, large); err != nil {
				t.Errorf("with %d bytes: %v", size, err)
			}
		}
		if got := u.peerGets(0, func() { u.from.packets(large) }); len(got) > 0 {
			t.Errorf("a packet of %d bytes that must not be fragmented reached the peer", size)
		}
		u.settle() // with its answer
	}
	super := h.tcp(tcp4{from: 1000, to: 2000, seq: 1, flags: ack, window: 100}, noise(20*1400, 1))
	got := u.peerGets(0, func() {
		u.answersSuper(3, 4, narrowed, super, func() { u.from.super(super, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 1400}) })
	})
	if len(got) > 0 {
		t.Errorf("%d packets of a super-packet of parts that are too large reached the peer", len(got))
	}
	u.carriesOut("a packet that fits, again", [][]byte{fits})
	mayFragment("when it is known what fits")

	answers, allowed := u.floods(h.udp(1000, 2000, noise(u.mtu-28, 1)))
	if answers < 10 || answers > allowed {
		t.Errorf("%d answers came to packets that are too large, where at most %d may have been sent", answers, allowed)
	}
}

// TCP learns at once what fits, and all arrives.
func TestUDPPathMTUTransfer(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) { transferByNarrowPath(t, wire) })
	}
}

func transferByNarrowPath(t *testing.T, wire string) {
	needTUN(t, "udp")
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "udp"}`))
	_, c1 := joinBy(t, c, s, 1, wire)
	_, c2 := joinBy(t, c, narrowSegment(c), 2, wire)
	lab.EventuallyPing(t, patience, c1, c2.Addr(), lab.Echo{})
	for _, to := range [][2]*lab.Container{{c1, c2}, {c2, c1}} {
		start := time.Now()
		if _, err := lab.Transfer(to[0], to[1], to[1].Addr(), 4<<20); err != nil {
			t.Error(err)
		}
		// It would take longer if TCP had to find out by itself, after timeouts.
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("a transfer from %s took %v", to[0].Name, took)
		}
	}
	for _, size := range []int{1472, 4000} {
		if _, err := c1.Ping(c2.Addr(), lab.Echo{Count: 3, Size: size}); err != nil {
			t.Errorf("with %d bytes, to be fragmented: %v", size, err)
		}
	}
	if _, err := c1.Ping(c2.Addr(), lab.Echo{Count: 3, Size: narrowed, DF: true}); err != nil {
		t.Error(err)
	}
}
