package main

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// What is not one whole IPv4 packet of a peer, and of a size the device has room
// for, goes nowhere: neither into the container nor to the host by flannel0.
func TestUDPDrops(t *testing.T) {
	u := newUDPNet(t, "whole")
	onDevice := tap(t, u.h.Node, "flannel0", func(p []byte) bool { return len(p) >= 24 })
	stranger := &byHand{Host: u.Host("stranger", u.segment), t: t}
	stranger.conn = stranger.socket(t)

	h := toContainer
	sound := func() []byte { return h.udp(1000, 2000, noise(100, 1)) }
	changed := func(change func(p []byte)) []byte {
		p := sound()
		change(p)
		return p
	}
	length := func(n int) []byte {
		return changed(func(p []byte) { binary.BigEndian.PutUint16(p[2:], uint16(n)); sealHeader(p) })
	}
	for _, test := range []struct {
		what string
		from *byHand
		data []byte
	}{
		{"a packet of a stranger", stranger, sound()},
		{"nothing", u.peer, nil},
		{"a byte", u.peer, []byte{0x45}},
		{"less than a header", u.peer, sound()[:19]},
		{"a header only that says more", u.peer, sound()[:20]},
		{"a packet with a byte less", u.peer, sound()[:127]},
		{"a packet with a byte more", u.peer, append(sound(), 0)},
		{"two packets", u.peer, append(sound(), sound()...)},
		{"a packet that says it has a byte less", u.peer, length(127)},
		{"a packet that says it has a byte more", u.peer, length(129)},
		{"a packet that says it has no byte", u.peer, length(0)},
		{"a packet that says it has less than its header", u.peer, length(19)},
		{"a header shorter than is allowed", u.peer, changed(func(p []byte) { p[0] = 0x44 })},
		{"no header", u.peer, changed(func(p []byte) { p[0] = 0x40 })},
		{"a header longer than the packet", u.peer, func() []byte { p := h.with(nil); p[0] = 0x46; return p }()},
		{"IPv6", u.peer, append([]byte{6 << 4, 0, 0, 0, 0, 0, 59, 64}, make([]byte, 32)...)},
		{"an IPv4 packet that says it is IPv6", u.peer, changed(func(p []byte) { p[0] = 0x65 })},
		{"text", u.peer, []byte("GET / HTTP/1.1\r\nHost: flannel\r\n\r\n")},
		{"Ethernet", u.peer, append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, sound()...)},
		{"a packet with a byte more than the MTU", u.peer, h.udp(1000, 2000, noise(u.mtu-28+1, 1))},
		{"a packet of 9000 bytes", u.peer, h.udp(1000, 2000, noise(9000-28, 1))},
		{"a packet as large as can be", u.peer, h.udp(1000, 2000, noise(65507-28, 1))},
		{"TCP with a byte more than the MTU", u.peer, h.tcp(tcp4{from: 1000, to: 2000, flags: ack}, noise(u.mtu-40+1, 1))},
	} {
		for _, among := range []int{0, 3} {
			// Among sound ones, which arrive. They get longer, so that nothing joins
			// them, and can be counted on flannel0.
			var all []datagram
			var want [][]byte
			for i := range among {
				p := h.udp(1000, 2000, noise(100+i, uint64(i)))
				all, want = append(all, datagram{data: p}), append(want, p)
			}
			onDevice.clear()
			u.carriesIn(fmt.Sprintf("%s among %d packets", test.what, among), want, func() {
				u.held(func() {
					u.peer.send(u.h.Addr(), all...)
					test.from.send(u.h.Addr(), datagram{data: test.data})
				})
			})
			// The mark comes by flannel0 as well, after all others.
			got, _ := onDevice.await(patience, func(all []arrival) bool {
				return len(all) > 0 && string(all[len(all)-1].packet[20:24]) == "mark"
			})
			if err := compare(want, packetsOf(got[:max(0, len(got)-1)])); err != nil {
				t.Errorf("%s among %d packets, by flannel0: %v", test.what, among, err)
			}
		}
	}
	// Joined with sound ones by the kernel, which does not look inside.
	for _, spoil := range []func(p []byte){
		func(p []byte) { p[0] = 0x65 },
		func(p []byte) { p[0] = 0x4f; binary.BigEndian.PutUint16(p[2:], 50) },
		func(p []byte) { binary.BigEndian.PutUint16(p[2:], 127); sealHeader(p) },
		func(p []byte) { binary.BigEndian.PutUint16(p[2:], 2000); sealHeader(p) },
	} {
		h.frag = dontFragment
		packets := [][]byte{sound(), changed(spoil), sound(), changed(spoil), changed(spoil), sound()}
		u.carriesIn("sound packets joined with others", [][]byte{sound(), sound(), sound()}, func() { u.peer.send(u.h.Addr(), joined(packets)...) })
	}
	// None of that has done harm.
	u.carriesInAll("afterwards", [][]byte{sound(), h.udp(1000, 2000, noise(u.mtu-28, 1))})
	u.carriesOut("afterwards", [][]byte{toPeer.udp(1000, 2000, noise(u.mtu-28, 1))})
}
