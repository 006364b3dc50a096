package main

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// The values of the ECN field (RFC 3168).
const (
	notECT = 0
	ect1   = 1
	ect0   = 2
	ce     = 3
)

// combined is what becomes of the ECN field of a packet, by that of the datagram
// it came in: figure 4 of RFC 6040, by [inner][outer]. -1 drops the packet.
var combined = [4][4]int{
	notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: -1},
	ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
	ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
	ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
}

// Each datagram bears the TOS byte of the packet in it, so that routers on the way
// treat it alike, and may mark it where the packet may be marked.
func TestUDPTOSOut(t *testing.T) {
	u := newUDPNet(t, "whole")
	bears := func(what string, all []arrival, tos func(p []byte) byte) {
		t.Helper()
		var wrong []string
		for _, a := range all {
			if want := tos(a.packet); a.tos != want || a.packet[1] != want {
				wrong = append(wrong, fmt.Sprintf("%#02x: the datagram has %#02x, the packet in it %#02x", want, a.tos, a.packet[1]))
			}
		}
		if len(wrong) > 0 {
			t.Errorf("%s, %d of %d with another TOS, such as %s", what, len(wrong), len(all), wrong[0])
		}
	}
	// The TOS is in the payload too.
	inPayload := func(p []byte) byte { return p[len(p)-1] }
	var packets [][]byte
	for tos := range 256 {
		h := toPeer
		h.tos, h.id = byte(tos), uint16(tos)
		packets = append(packets, h.udp(1000, 2000, []byte{byte(tos)}))
	}
	for _, burst := range []bool{false, true} {
		for i := 0; i < len(packets); i += 128 {
			part := packets[i : i+128]
			all := u.peerGets(len(part), func() {
				if burst {
					u.held(func() { u.from.packets(part...) })
				} else {
					u.from.packets(part...)
				}
			})
			if err := compare(each(part, func(p []byte) []byte { return forwarded(p, 2) }), packetsOf(all)); err != nil {
				t.Error(err)
			}
			bears("a packet", all, inPayload)
		}
	}
	for _, tos := range []byte{0, ect0, ect1, ce, 0x28 | ect0, 0xb8, 0xff} {
		h := toPeer
		h.tos, h.id = tos, 1000
		super := h.tcp(tcp4{from: 1000, to: 2000, seq: 1, flags: ack, window: 100}, noise(20000, 1))
		all := u.peerGets(20, func() { u.from.super(super, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 1000}) })
		if err := compare(each(inSegments(super, 1000), func(p []byte) []byte { return forwarded(p, 2) }), packetsOf(all)); err != nil {
			t.Error(err)
		}
		bears("a segment of a super-packet", all, func([]byte) byte { return tos })
	}
}

// What a router on the way has marked, the container sees, as RFC 6040 says.
func TestUDPECNIn(t *testing.T) {
	u := newUDPNet(t, "whole")
	// sent are datagrams with packets of all combinations, and want what the
	// container is to get of them.
	type table struct {
		sent []datagram
		want [][]byte
	}
	add := func(tab *table, inner, outer byte, build func(h ip4) []byte) {
		h := toContainer
		h.id = uint16(len(tab.sent))
		h.tos = 0x48 | inner
		// The DSCP of the datagram is that of the network between the hosts only.
		tab.sent = append(tab.sent, datagram{data: build(h), tos: 0x28 | outer})
		if ecn := combined[inner][outer]; ecn >= 0 {
			h.tos = 0x48 | byte(ecn)
			tab.want = append(tab.want, build(h))
		}
	}
	arrive := func(what string, tab table) {
		t.Helper()
		u.carriesIn(what+", one at a time", tab.want, func() { u.peer.send(u.h.Addr(), tab.sent...) })
		u.carriesIn(what+", in a burst", tab.want, func() { u.held(func() { u.peer.send(u.h.Addr(), tab.sent...) }) })
	}
	var alone, datagrams, segments table
	for inner := range byte(4) {
		for outer := range byte(4) {
			add(&alone, inner, outer, func(h ip4) []byte {
				return h.udp(1000+uint16(inner), 2000+uint16(outer), []byte{inner, outer})
			})
			// Of one flow, so that they would be joined but for what differs here.
			for i := range byte(3) {
				add(&datagrams, inner, outer, func(h ip4) []byte { return h.udp(3000, 2000, []byte{inner, outer, i}) })
				add(&segments, inner, outer, func(h ip4) []byte {
					return h.tcp(tcp4{from: 3000, to: 2000, seq: 100 * uint32(h.id), flags: ack, window: 100}, noise(100, uint64(h.id)))
				})
			}
		}
	}
	arrive("all combinations", alone)
	arrive("all combinations in a flow of datagrams", datagrams)
	arrive("all combinations in a TCP connection", segments)
	// Joined by the kernel on the way, which keeps those of one TOS together.
	for inner := range byte(4) {
		for outer := range byte(4) {
			var tab table
			for i := range 20 {
				add(&tab, inner, outer, func(h ip4) []byte {
					return h.tcp(tcp4{from: 3000, to: 2000, seq: 500 * uint32(i), flags: ack, window: 100}, noise(500, uint64(i)))
				})
			}
			var packets [][]byte
			for _, d := range tab.sent {
				packets = append(packets, d.data)
			}
			message := joined(packets)
			for i := range message {
				message[i].tos = 0x28 | outer
			}
			u.carriesIn(fmt.Sprintf("ECN %d in %d, joined", inner, outer), tab.want, func() { u.peer.send(u.h.Addr(), message...) })
		}
	}
}
