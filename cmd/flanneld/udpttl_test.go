package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// fault is an ICMP error that came to the container.
type fault struct {
	from      netip.Addr
	typ, code byte
	mtu       int
	quoted    []byte
}

// fault reads an ICMP error.
func (u *udpNet) fault(p []byte) (f fault, ok bool) {
	u.t.Helper()
	if p[9] != unix.IPPROTO_ICMP {
		return f, false
	}
	m := payloadOf(p)
	f = fault{netip.AddrFrom4([4]byte(p[12:16])), m[0], m[1], int(binary.BigEndian.Uint16(m[6:])), m[8:]}
	if f.typ != 3 && f.typ != 11 {
		return f, false
	}
	if err := checkPacket(p, 576); err != nil { // RFC 1812, section 4.3.2.3
		u.t.Errorf("an ICMP error: %v: %s", err, describe(p))
	}
	return f, true
}

// is returns an error unless the fault is this one, about a packet as it is when
// the host's kernel has forwarded it.
func (f fault) is(typ, code byte, mtu int, about []byte) error {
	about = forwarded(about, 1)
	quoted := about[:min(len(about), 576-20-8)]
	switch {
	case f.from != netip.MustParseAddr("10.1.1.0"):
		return fmt.Errorf("an ICMP error is from %v and not flannel0", f.from)
	case f.typ != typ || f.code != code || f.mtu != mtu:
		return fmt.Errorf("an ICMP error is of type %d, code %d, MTU %d instead of %d, %d, %d", f.typ, f.code, f.mtu, typ, code, mtu)
	case string(f.quoted) != string(quoted):
		return fmt.Errorf("an ICMP error quotes\n%s\ninstead of\n%s", describe(f.quoted), describe(quoted))
	}
	return nil
}

// A packet whose time to live ends at flanneld, or that no host has the subnet of,
// is answered as by a router.
func TestUDPAnswers(t *testing.T) {
	u := newUDPNet(t, "whole")
	nobody := netip.MustParseAddr("10.1.77.5")
	for _, test := range []struct {
		what      string
		ttl       byte
		dst       netip.Addr
		typ, code byte
	}{
		{"time to live ends", 2, outside, 11, 0}, // one router is the host's kernel
		{"nobody has the subnet", 64, nobody, 3, 0},
	} {
		h := toPeer
		h.ttl, h.dst = test.ttl, test.dst
		withOptions := h
		withOptions.options = []byte{94, 4, 1, 2}
		for _, p := range [][]byte{
			h.udp(1000, 2000, []byte("small")), h.udp(1000, 2000, noise(u.mtu-28, 1)), withOptions.udp(1000, 2000, noise(1000, 1)),
			h.tcp(tcp4{from: 1000, to: 2000, seq: 1, flags: syn}, nil), h.icmp(1, noise(56, 1)), h.with(nil),
		} {
			all := u.containerGets(1, func() { u.from.packets(p) })
			if len(all) != 1 {
				t.Errorf("%s: %d packets came to the container instead of an answer to %s", test.what, len(all), describe(p))
				continue
			}
			if f, ok := u.fault(all[0].packet); !ok {
				t.Errorf("%s: what came is no ICMP error: %s", test.what, describe(all[0].packet))
			} else if err := f.is(test.typ, test.code, 0, p); err != nil {
				t.Errorf("%s: %v", test.what, err)
			}
		}
		// What must not be answered (RFC 1122, section 3.2.2): an ICMP error, and a
		// fragment that is not the first. An answer to the last shows that no other
		// is on its way.
		icmpError := h
		icmpError.proto = unix.IPPROTO_ICMP
		last := h.udp(1000, 2000, []byte("last"))
		unanswered := append(inFragments(h.udp(1000, 2000, noise(100, 1)), 48)[1:],
			icmpError.with(append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, h.udp(1, 2, nil)...)), icmpError.with(append([]byte{11, 0, 0, 0, 0, 0, 0, 0}, h.udp(1, 2, nil)...)))
		all := u.containerGets(1, func() { u.from.packets(append(unanswered, last)...) })
		if len(all) != 1 {
			t.Errorf("%s: %d answers to packets of which one may be answered", test.what, len(all))
		} else if f, _ := u.fault(all[0].packet); f.is(test.typ, test.code, 0, last) != nil {
			t.Errorf("%s: %v", test.what, f.is(test.typ, test.code, 0, last))
		}
	}
	// With one more, the packet arrives with its last.
	h := toPeer
	h.ttl = 3
	u.carriesOut("time to live ends at the peer", [][]byte{h.udp(1000, 2000, []byte("last but one"))})
}

// answersSuper has send send a super-packet of TCP whose parts are answered by
// ICMP errors of this kind.
func (u *udpNet) answersSuper(typ, code byte, mtu int, super []byte, send func()) {
	u.t.Helper()
	answers := u.containerGets(1, send)
	if len(answers) == 0 {
		u.t.Errorf("there is no answer of type %d to a super-packet", typ)
	}
	for _, a := range answers {
		f, ok := u.fault(a.packet)
		if !ok {
			u.t.Errorf("what came is no ICMP error: %s", describe(a.packet))
			continue
		}
		// What it quotes is a part of it, or the beginning of the whole: for who
		// has sent it, addresses, ports and sequence number count.
		seq := binary.BigEndian.Uint32(f.quoted[24:]) - binary.BigEndian.Uint32(super[24:])
		if f.typ != typ || f.code != code || f.mtu != mtu || f.from != netip.MustParseAddr("10.1.1.0") ||
			string(f.quoted[12:24]) != string(super[12:24]) || int(seq) >= len(super) {
			u.t.Errorf("an ICMP error of type %d, code %d, MTU %d from %v quotes %s", f.typ, f.code, f.mtu, f.from, describe(f.quoted))
		}
	}
}

// A super-packet's time to live ends as that of the packets it stands for.
func TestUDPAnswersSuperPacket(t *testing.T) {
	u := newUDPNet(t, "whole")
	h := toPeer
	h.ttl = 2
	super := h.tcp(tcp4{from: 1000, to: 2000, seq: 1, flags: ack, window: 100}, noise(30000, 1))
	got := u.peerGets(0, func() {
		u.answersSuper(11, 0, 0, super, func() { u.from.super(super, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 1400}) })
	})
	if len(got) > 0 {
		t.Errorf("%d packets came to the peer, such as %s", len(got), describe(got[0].packet))
	}
	h.ttl = 3
	super = h.tcp(tcp4{from: 1000, to: 2000, seq: 1, flags: ack, window: 100}, noise(30000, 1))
	got = u.peerGets(30, func() { u.from.super(super, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 1000}) })
	if err := compare(each(inSegments(super, 1000), func(p []byte) []byte { return forwarded(p, 2) }), packetsOf(got)); err != nil {
		t.Error(err)
	}
}

// floods sends 5,000 packets that all call for an answer, and returns how many
// came, and how many flanneld may have sent meanwhile: 50 at once and 1,000 a
// second, as Linux does.
func (u *udpNet) floods(packet []byte) (answers, allowed int) {
	u.t.Helper()
	start := time.Now()
	all := u.containerGets(0, func() {
		u.from.packets(slices.Repeat([][]byte{packet}, 5000)...)
		// Queues on the way overflow, so the packet that shows that all before it
		// are dealt with has to be sent until it arrives.
		u.peer.clear()
		last := u.mark(toPeer)
		lab.Eventually(u.t, patience, "a packet after the flood", func() error {
			u.from.packets(last)
			if len(u.peer.seen()) == 0 {
				return errors.New("none")
			}
			return nil
		})
	})
	for _, a := range all {
		if _, ok := u.fault(a.packet); ok {
			answers++
		}
	}
	return answers, 50 + int(time.Since(start)/time.Millisecond) + 1
}

// However many packets call for an answer, no more than a few get one.
func TestUDPAnswersAreFew(t *testing.T) {
	u := newUDPNet(t, "whole")
	expires, lost := toPeer, toPeer
	expires.ttl = 2
	lost.dst = netip.MustParseAddr("10.1.77.5")
	for _, h := range []ip4{expires, lost} {
		answers, allowed := u.floods(h.udp(1000, 2000, noise(100, 1)))
		if answers < 10 || answers > allowed {
			t.Errorf("to packets with TTL %d for %v %d answers came, where at most %d may have been sent", h.ttl, h.dst, answers, allowed)
		}
	}
}
