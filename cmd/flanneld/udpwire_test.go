package main

import (
	"slices"
	"testing"
)

// packetsOfAKind have something in common that a failure is to name.
type packetsOfAKind struct {
	what string
	all  [][]byte
}

// shapes are packets of every kind and size, from one end of the network to the
// other. h is the header they begin with.
func shapes(h ip4, mtu int) (kinds []packetsOfAKind) {
	add := func(what string, packets ...[]byte) {
		i := slices.IndexFunc(kinds, func(k packetsOfAKind) bool { return k.what == what })
		if i < 0 {
			i, kinds = len(kinds), append(kinds, packetsOfAKind{what: what})
		}
		kinds[i].all = append(kinds[i].all, packets...)
	}
	h.id = 1
	for size := 20; size <= mtu; size++ {
		h.id++
		if size%3 == 0 {
			h.frag = dontFragment
		} else {
			h.frag = 0
		}
		data := noise(size-20, uint64(size))
		unknown := h
		unknown.proto = 253 // for experiments (RFC 3692)
		add("an unknown protocol", unknown.with(data))
		if size >= 28 {
			add("UDP", h.udp(1000, 2000, data[8:]))
			add("ICMP", h.icmp(size, data[8:]))
		}
		if size >= 40 {
			add("TCP", h.tcp(tcp4{from: 1000, to: 2000, seq: 7 * uint32(size), ack: 3, flags: byte(size), window: uint16(size), urgent: uint16(size % 5)}, data[20:]))
		}
	}
	h.frag = 0
	for i := range 60 {
		h.id++
		h.tos, h.ttl = byte(4*i), byte(200-i)
		noChecksum := h.udp(1001, 2000, noise(100+i, 1))
		noChecksum[26], noChecksum[27] = 0, 0
		add("UDP without checksum", noChecksum)
		withOptions := h
		withOptions.options = append([]byte{94, 4, 1, 2}, make([]byte, i%10*4)...) // for experiments (RFC 4727), then end of list
		add("IP options", withOptions.udp(1002, 2000, noise(100+i, 2)))
		add("IP options", withOptions.tcp(tcp4{from: 1002, to: 2000, seq: uint32(i) * 100, flags: ack, window: 100}, noise(100, uint64(i))))
		add("TCP options", h.tcp(tcp4{from: 1003, to: 2000, seq: uint32(i) * 100, flags: ack, window: 100, options: timestamps(uint32(i/20), 9)}, noise(100, uint64(i))))
	}
	for _, size := range []int{mtu - 20 - mtu%8, 64, 8} {
		h.id++
		add("fragments", inFragments(h.udp(1004, 2000, noise(min(8000, 100*size), 3)), size)...)
		h.id++
		add("fragments", inFragments(h.tcp(tcp4{from: 1004, to: 2000, flags: ack}, noise(1000, 3)), size)...)
	}
	return kinds
}

// Whatever a container sends comes out as one datagram for each packet, and what
// a peer sends as one datagram for each packet arrives in the container, both as
// they were.
func TestUDPWireFormat(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) {
			u := newUDPNet(t, wire)
			for _, kind := range shapes(toPeer, u.mtu) {
				u.carriesOut(kind.what, kind.all)
			}
			for _, kind := range shapes(toContainer, u.mtu) {
				u.carriesInAll(kind.what, kind.all)
			}
		})
	}
}
