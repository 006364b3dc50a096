package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// interleaved makes packets of several connections in an order that depends on
// the seed, most of which could be joined with others of their connection, some of
// which not. No two have the same data.
func interleaved(h ip4, n int, seed uint64) (all [][]byte) {
	r := rand.New(rand.NewPCG(seed, 2))
	type flow struct {
		seq   uint32
		id    uint16
		size  int
		flags byte
	}
	flows := make([]flow, 8)
	for i := range flows {
		flows[i] = flow{id: uint16(r.Uint32()), seq: r.Uint32(), size: 100 + 200*(i%4), flags: ack}
	}
	for len(all) < n {
		i := r.IntN(len(flows))
		f := &flows[i]
		p := h
		port := uint16(1000 + i)
		size, options := f.size, []byte(nil)
		t := tcp4{from: port, to: 2000, ack: 1, window: 100}
		odd := func(p []byte) []byte { return p }
		count := 1 + r.IntN(4) // in a row
		switch r.IntN(15) {    // what makes the first one stand out
		case 0:
			size = r.IntN(f.size) // shorter, maybe empty
		case 1:
			size = f.size + 1 + r.IntN(300) // longer
		case 2:
			t.flags = psh
		case 3:
			t.flags, t.urgent = urg, 3
		case 4:
			t.flags = []byte{syn, fin, rst, ece, cwr}[r.IntN(5)]
		case 5:
			p.options = []byte{94, 4, byte(i), 2}
		case 6:
			options = timestamps(r.Uint32(), 5)
		case 7:
			p.tos = byte(r.Uint32())
		case 8:
			p.ttl -= byte(r.IntN(5))
		case 9:
			f.seq += uint32(r.IntN(3000)) // something is missing
		case 10:
			p.frag = dontFragment
		case 11:
			p.frag = 0x8000 // a flag that means nothing
		case 12: // a flag of TCP's that is newer than others
			if i%2 == 0 {
				odd = func(p []byte) []byte { payloadOf(p)[12] |= 1; return seal(p) }
			}
		case 13: // UDP without a checksum
			if i%2 == 1 {
				odd = func(p []byte) []byte { payloadOf(p)[6], payloadOf(p)[7] = 0, 0; return p }
			}
		case 14: // more behind a datagram than belongs to it
			if i%2 == 1 {
				odd = func(p []byte) []byte {
					p = append(p, 1, 2, 3, 4)
					binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
					sealHeader(p)
					return p
				}
			}
		}
		for j := range count {
			if j == 1 {
				// Those after the first are as usual again.
				p, size, options, odd = h, f.size, nil, func(p []byte) []byte { return p }
				t.flags, t.urgent = 0, 0
			}
			p.id = f.id
			f.id++
			data := noise(size, r.Uint64())
			var packet []byte
			if i%2 == 0 {
				t.seq, t.flags, t.options = f.seq, t.flags|ack, options
				f.seq += uint32(size)
				packet = odd(p.tcp(t, data))
			} else {
				packet = odd(p.udp(port, 2000, data))
			}
			// A first fragment belongs to its connection, and those that follow
			// come right after it.
			if len(packet) > 400 && r.IntN(20) == 0 && p.frag == 0 && p.options == nil {
				all = append(all, inFragments(packet, 200)...)
			} else {
				all = append(all, packet)
			}
		}
	}
	return all
}

// Packets of several connections come in one burst, mixed. The order of each
// connection stays, whatever can be joined.
func TestUDPOrder(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) {
			u := newUDPNet(t, wire)
			for seed := range uint64(10) {
				u.carriesInAll(fmt.Sprintf("burst %d", seed), interleaved(toContainer, chunk, seed)[:chunk])
			}
			for seed := range uint64(10) {
				packets := interleaved(toPeer, chunk, seed)[:chunk]
				u.carriesOut(fmt.Sprintf("burst %d", seed), packets)
				got := u.peerGets(len(packets), func() { u.held(func() { u.from.packets(packets...) }) })
				if err := compare(each(packets, func(p []byte) []byte { return forwarded(p, 2) }), packetsOf(got)); err != nil {
					t.Errorf("burst %d, held, from the container: %v", seed, err)
				}
			}
		})
	}
}

// What a packet that may be fragmented is identified by stays, though others of
// its connection could be joined with it but for that: else fragments of two
// packets could be taken for those of one.
func TestUDPIdentification(t *testing.T) {
	u := newUDPNet(t, "whole")
	for _, c := range []struct {
		what string
		id   func(i int) uint16
	}{
		{"up by one, past the largest", func(i int) uint16 { return uint16(65530 + i) }},
		{"up by two", func(i int) uint16 { return uint16(2 * i) }},
		{"down by one", func(i int) uint16 { return uint16(1000 - i) }},
		{"all alike", func(int) uint16 { return 7 }},
		{"all 0", func(int) uint16 { return 0 }},
		{"anything", func(i int) uint16 { return uint16(40503 * (i + 1)) }},
		{"with a gap", func(i int) uint16 { return uint16(i + i/5) }},
		{"with one twice", func(i int) uint16 { return uint16(i - i/10) }},
	} {
		var segments, datagrams [][]byte
		for i := range 20 {
			h := toContainer
			h.id = c.id(i)
			segments = append(segments, h.tcp(tcp4{from: 1000, to: 2000, seq: uint32(500 * i), ack: 1, flags: ack, window: 100}, noise(500, uint64(i))))
			datagrams = append(datagrams, h.udp(1000, 2000, noise(500, uint64(i))))
		}
		u.carriesInAll("segments with identifications that go "+c.what, segments)
		u.carriesInAll("datagrams with identifications that go "+c.what, datagrams)
	}
}
