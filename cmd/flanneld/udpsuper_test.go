package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// superPackets are what a sender's kernel may hand on in one piece: as much as an
// IPv4 packet holds, cut into parts of any size, and with any flags.
func superPackets(h ip4, mtu int) (kinds []superPacket) {
	const most = 65535
	h.frag = dontFragment
	tcp := func(what string, t tcp4, mss, data int) {
		h.id += 1000
		t.from, t.to, t.seq, t.ack, t.window = 1000, 2000, 0xffffff00, 5, 100 // the sequence number wraps
		t.flags |= ack
		kinds = append(kinds, superPacket{what, h.tcp(t, noise(data, uint64(data))), offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, mss}})
	}
	for _, mss := range []int{1, 8, 88, 100, 536, 1000, mtu - 40 - 12, mtu - 40} {
		size := min(most-40-12, 700*mss)
		tcp(fmt.Sprintf("all that fits in segments of %d bytes", mss), tcp4{}, mss, size-size%mss)
		tcp(fmt.Sprintf("all that fits in segments of %d bytes, and a byte", mss), tcp4{}, mss, size-size%mss-mss+1)
		tcp(fmt.Sprintf("two segments of %d bytes", mss), tcp4{}, mss, 2*mss)
		for _, n := range []int{63, 64, 65, 127, 128, 129} {
			if data := n * mss; data > mss && data < most-52 {
				tcp(fmt.Sprintf("%d segments of %d bytes", n, mss), tcp4{}, mss, data)
			}
		}
		tcp(fmt.Sprintf("timestamps in segments of %d bytes", mss), tcp4{options: timestamps(8, 9)}, min(mss, mtu-52), size-12)
	}
	for _, flags := range []byte{fin, psh, fin | psh, ece, urg, ece | psh | fin, rst} {
		tcp(fmt.Sprintf("the flags %#02x", flags), tcp4{flags: flags, urgent: 7}, 1000, 10500)
	}
	// CWR is the first segment's alone, where the kernel was told of it.
	for _, flags := range []byte{cwr, cwr | ece | fin | psh} {
		tcp(fmt.Sprintf("the flags %#02x", flags), tcp4{flags: flags}, 1000, 10500)
		kinds[len(kinds)-1].how.kind |= unix.VIRTIO_NET_HDR_GSO_ECN
	}
	h.frag, h.tos = 0, 0x2a
	tcp("segments that may be fragmented", tcp4{}, 1000, 30000)
	h.id = 65530 - 1000
	tcp("identifications that wrap", tcp4{}, 1000, 30000)
	h.options = []byte{94, 4, 1, 2}
	tcp("IP options", tcp4{}, 1000, 30000)
	return kinds
}

type superPacket struct {
	what   string
	packet []byte
	how    offload
}

// A super-packet of any shape comes out as the packets it stands for, and none is
// lost.
func TestUDPSuperPackets(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) {
			u := newUDPNet(t, wire)
			for _, s := range superPackets(toPeer, u.mtu) {
				want := each(inSegments(s.packet, s.how.size), func(p []byte) []byte { return forwarded(p, 2) })
				got := u.peerGets(len(want), func() { u.from.super(s.packet, s.how) })
				if err := compare(want, packetsOf(got)); err != nil {
					t.Errorf("%s: %v", s.what, err)
				}
			}
			// One with small segments, as many as can be, among others.
			small := toPeer.tcp(tcp4{from: 1000, to: 2000, seq: 1, flags: ack}, noise(60000, 1))
			large := toPeer.tcp(tcp4{from: 1001, to: 2000, seq: 1, flags: ack}, noise(60000, 2))
			single := toPeer.tcp(tcp4{from: 1002, to: 2000, seq: 1, flags: ack}, noise(100, 2))
			want := slices.Concat(inSegments(large, 1400), inSegments(small, 100), [][]byte{single}, inSegments(large, 1000), [][]byte{single}, inSegments(small, 90))
			got := u.peerGets(len(want), func() {
				u.held(func() {
					u.from.super(large, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 1400})
					u.from.super(small, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 100})
					u.from.packets(single)
					u.from.super(large, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 1000})
					u.from.packets(single)
					u.from.super(small, offload{unix.VIRTIO_NET_HDR_GSO_TCPV4, 90})
				})
			})
			if err := compare(each(want, func(p []byte) []byte { return forwarded(p, 2) }), packetsOf(got)); err != nil {
				t.Errorf("mixed super-packets: %v", err)
			}
		})
	}
}

// The parts of such super-packets, as a peer sends them, arrive as they are,
// whatever is joined on the way.
func TestUDPSuperPacketsIn(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) {
			u := newUDPNet(t, wire)
			for _, s := range superPackets(toContainer, u.mtu) {
				parts := inSegments(s.packet, s.how.size)
				u.carriesInAll(s.what, parts[:min(len(parts), chunk)])
			}
		})
	}
}

// Datagrams that a program hands to the kernel in one piece come out as the
// datagrams they are, in order.
func TestUDPSegmentedDatagrams(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) { segmentedDatagrams(t, newUDPNet(t, wire)) })
	}
}

func segmentedDatagrams(t *testing.T, u *udpNet) {
	var conn *net.UDPConn
	u.Must(u.c.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(outside, 2000)))
		return err
	}))
	defer conn.Close()
	for _, size := range []int{1, 8, 100, 500, 1000, 1443, 1444} {
		for _, n := range []int{2, 3, 44, 45, 63, 64} {
			for _, last := range []int{size, (size + 1) / 2, 1} {
				data := noise((n-1)*size+last, uint64(n))
				if len(data) > 65507 {
					continue
				}
				u.Must(control(conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) }))
				got := u.peerGets(n, func() {
					if _, err := conn.Write(data); err != nil {
						t.Fatal(err)
					}
				})
				if len(got) != n {
					t.Errorf("%d datagrams of %d bytes, the last of %d: %d came", n, size, last, len(got))
					continue
				}
				for i, part := range slices.Collect(slices.Chunk(data, size)) {
					p := got[i].packet
					l4 := payloadOf(p)
					if p[9] != unix.IPPROTO_UDP || p[8] != 62 || string(l4[8:]) != string(part) || int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
						t.Errorf("%d datagrams of %d bytes, the last of %d: number %d is %s", n, size, last, i, describe(p))
						break
					}
				}
			}
		}
	}
}
