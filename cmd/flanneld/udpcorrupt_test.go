package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// corruptions are what may become of a packet on a bad line. Those that are not
// dropped anyway arrive with a checksum that is wrong.
var corruptions = []struct {
	what  string
	spoil func(p []byte) []byte
	// tcp and udp say for which packets it is a corruption, and gone that nothing
	// of the packet may arrive, not even as it is.
	tcp, udp, gone bool
}{
	{what: "another byte of data", tcp: true, udp: true, spoil: func(p []byte) []byte { p[len(p)-1] ^= 1; return p }},
	{what: "another byte at the beginning of the data", tcp: true, udp: true, spoil: func(p []byte) []byte { p[len(p)-100] ^= 0x80; return p }},
	{what: "another checksum", tcp: true, spoil: func(p []byte) []byte { p[20+16] ^= 0x55; return p }},
	{what: "another checksum", udp: true, spoil: func(p []byte) []byte { p[20+6] ^= 0x55; return p }},
	{what: "the checksum 0", tcp: true, spoil: func(p []byte) []byte { p[20+16], p[20+17] = 0, 0; return p }},
	{what: "the checksum of the pseudo header", tcp: true, spoil: func(p []byte) []byte { binary.BigEndian.PutUint16(p[20+16:], sum16(pseudo(p, len(p)-20))); return p }},
	{what: "the checksum of the pseudo header", udp: true, spoil: func(p []byte) []byte { binary.BigEndian.PutUint16(p[20+6:], sum16(pseudo(p, len(p)-20))); return p }},
	{what: "another sequence number", tcp: true, spoil: func(p []byte) []byte { p[20+4] ^= 1; return p }},
	{what: "another acknowledgement", tcp: true, spoil: func(p []byte) []byte { p[20+8] ^= 1; return p }},
	{what: "another window", tcp: true, spoil: func(p []byte) []byte { p[20+14] ^= 1; return p }},
	{what: "a flag more", tcp: true, spoil: func(p []byte) []byte { p[20+13] ^= psh; return p }},
	{what: "another port", tcp: true, udp: true, spoil: func(p []byte) []byte { p[20] ^= 1; return p }},
	{what: "another source", tcp: true, udp: true, spoil: func(p []byte) []byte { p[15] ^= 1; sealHeader(p); return p }},
	{what: "a TCP header that is too short", tcp: true, spoil: func(p []byte) []byte { p[20+12] = 4 << 4; return p }},
	{what: "a TCP header that is longer than the packet", tcp: true, spoil: func(p []byte) []byte {
		binary.BigEndian.PutUint16(p[2:], 45)
		p[20+12] = 15 << 4
		sealHeader(p)
		return p[:45]
	}},
	{what: "its end cut off", tcp: true, udp: true, spoil: func(p []byte) []byte {
		binary.BigEndian.PutUint16(p[2:], 300)
		sealHeader(p)
		return p[:300]
	}},
	{what: "its end cut off within the TCP header", tcp: true, spoil: func(p []byte) []byte {
		binary.BigEndian.PutUint16(p[2:], 30)
		sealHeader(p)
		return p[:30]
	}},
	{what: "its end cut off within the UDP header", udp: true, spoil: func(p []byte) []byte {
		binary.BigEndian.PutUint16(p[2:], 25)
		sealHeader(p)
		return p[:25]
	}},
	{what: "another checksum in the header", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte { p[10] ^= 1; return p }},
	{what: "another time to live", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte { p[8] ^= 1; return p }},
	{what: "another TOS", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte { p[1] ^= 4; return p }},
	{what: "another identification", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte { p[5] ^= 4; return p }},
	{what: "a length that is too large", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)+1))
		sealHeader(p)
		return p
	}},
	{what: "a length that is too small", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)-1))
		sealHeader(p)
		return p
	}},
	{what: "a UDP length that is too large", udp: true, spoil: func(p []byte) []byte { p[20+5]++; return p }},
	{what: "a UDP length that is too small", udp: true, spoil: func(p []byte) []byte { p[20+5]--; return p }},
	{what: "a UDP length below the header's", udp: true, spoil: func(p []byte) []byte { p[20+4], p[20+5] = 0, 7; return p }},
	{what: "the version 6", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte { p[0] = 6<<4 | 5; sealHeader(p); return p }},
	{what: "a header that is too short", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte { p[0] = 4<<4 | 4; return p }},
	{what: "a header that is longer than the packet's", tcp: true, udp: true, gone: true, spoil: func(p []byte) []byte { p[0] = 4<<4 | 15; return p }},
}

// One packet of a run that would be joined is corrupt. It never gets to the
// container as one that is sound, on its own or in another; all others arrive.
func TestUDPCorrupt(t *testing.T) {
	const run = 12
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) {
			u := newUDPNet(t, wire)
			id := uint16(0)
			packets := func(tcp bool, size int) (all [][]byte) {
				for i := range run {
					h := toContainer
					id++
					h.id, h.frag = id, dontFragment
					if tcp {
						all = append(all, h.tcp(tcp4{from: 1000, to: 2000, seq: uint32(size * i), ack: 1, flags: ack, window: 100}, noise(size, uint64(i))))
					} else {
						all = append(all, h.udp(1000, 2000, noise(size, uint64(i))))
					}
				}
				return all
			}
			for _, c := range corruptions {
				for _, tcp := range []bool{true, false} {
					if tcp && !c.tcp || !tcp && !c.udp {
						continue
					}
					for _, at := range []int{0, run / 2, run - 1} {
						sound := packets(tcp, 600)
						all := slices.Clone(sound)
						bad := c.spoil(slices.Clone(all[at]))
						all[at] = bad
						sound = slices.Delete(sound, at, at+1)
						what := fmt.Sprintf("packet %d of %d with %s (TCP: %v)", at, run, c.what, tcp)
						u.survives(what, all, sound, bad, c.gone)
					}
				}
			}
		})
	}
}

// survives sends packets of which one is bad, joined and in a burst, and has the
// others arrive.
func (u *udpNet) survives(what string, all, sound [][]byte, bad []byte, gone bool) {
	u.t.Helper()
	for _, way := range []struct {
		name string
		send func()
	}{
		{"joined", func() { u.peer.send(u.h.Addr(), joined(all)...) }},
		{"in a burst", func() { u.held(func() { u.peer.send(u.h.Addr(), singly(all)...) }) }},
	} {
		var rest [][]byte
		for _, a := range u.containerGets(len(sound), way.send) {
			// As the bad one was sent it may arrive, for the container to find out.
			if gone || string(a.packet) != string(forwarded(bad, 1)) {
				rest = append(rest, a.packet)
			}
		}
		if err := compare(each(sound, func(p []byte) []byte { return forwarded(p, 1) }), rest); err != nil {
			u.t.Errorf("%s, %s: %v", what, way.name, err)
		}
	}
}

// What a program in the container receives is what was sent, where one datagram of
// a run is corrupt.
func TestUDPCorruptDatagram(t *testing.T) {
	u := newUDPNet(t, "whole")
	var conn *net.UDPConn
	u.Must(u.c.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(u.c.Addr(), 2000)))
		return err
	}))
	defer conn.Close()
	h := toContainer
	h.dst = u.c.Addr()
	for at := range 10 {
		var all [][]byte
		for i := range 10 {
			p := h.udp(1000, 2000, append(noise(500, uint64(i)), byte(i)))
			if i == at {
				p[100] ^= 1
			}
			all = append(all, p)
		}
		u.peer.send(u.h.Addr(), append(joined(all), datagram{data: h.udp(1000, 2000, []byte("last"))})...)
		var got []int
		for {
			buf := make([]byte, 1000)
			conn.SetReadDeadline(time.Now().Add(patience))
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("with datagram %d corrupt: after %v: %v", at, got, err)
			}
			if string(buf[:n]) == "last" {
				break
			}
			got = append(got, int(buf[n-1]))
			if n != 501 || string(buf[:n-1]) != string(noise(500, uint64(buf[n-1]))) {
				t.Errorf("with datagram %d corrupt: one of %d bytes is not what was sent", at, n)
			}
		}
		want := slices.Delete([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, at, at+1)
		if !slices.Equal(got, want) {
			t.Errorf("with datagram %d corrupt, %v arrived", at, got)
		}
	}
}
