package udp

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// What is no packet of a peer goes no further and is counted.
func TestInboundDrops(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			nodes := startNodes(t, k, "127.0.0.1")
			peers := loopbackSockets(t, "127.0.0.9", "127.0.0.4")
			closeAtEnd(t, peers...)
			peer, stranger := peers[0], peers[1]
			good := segment(unix.IPPROTO_UDP, "10.1.9.5", "10.1.0.7", 1, 0, []byte("payload"))
			ect := edit(bytes.Clone(good), func(p []byte) { p[1] = 0xb8 | ect0 })
			largest := segment(unix.IPPROTO_UDP, "10.1.9.5", "10.1.0.7", 1, 0, make([]byte, testMTU-28))
			oversize := segment(unix.IPPROTO_UDP, "10.1.9.5", "10.1.0.7", 1, 0, make([]byte, testMTU-27))
			for _, d := range []struct {
				from *socket
				tos  byte
				size int
				data []byte
			}{
				{stranger, 0, 0, good},
				{stranger, 0, len(good), bytes.Repeat(good, 5)},
				{stranger, 0, 0, nil},
				{peer, 0, 0, good[:len(good)-1]},
				{peer, 0, 0, append(bytes.Clone(good), 0)},
				{peer, 0, 0, []byte("\x60not IPv4, but long enough for it")},
				{peer, 0, 0, nil},
				{peer, 0, 30, bytes.Repeat(good, 3)}, // 35 bytes each: cut elsewhere, it is none
				{peer, 0, 0, oversize},
				{peer, 0xb8 | ce, 0, good}, // which does not know the mark
				{peer, ce, 0, ect},
				{peer, 0, 0, largest},
				{peer, 0, 0, good},
			} {
				if d.size == 0 {
					d.size = len(d.data)
				}
				sendSegments(t, d.from, nodes[0].sock.port, d.tos, d.size, d.data)
			}
			marked := edit(bytes.Clone(ect), func(p []byte) { p[1] |= ce })
			expectSame(t, "packets", [][]byte{marked, largest, good}, nodes[0].arrive(t, 3))
			expectCounters(t, "receiver", &nodes[0].count, Counters{
				Received: 3, ReceivedBytes: uint64(2*len(good) + testMTU),
				UnknownPeer: 7, Malformed: 8, Oversize: 1, Congested: 1,
			})
			if b := nodes[0].dev.take(t, make([]byte, readSize), false); b != nil {
				t.Errorf("one more is written: %x", b)
			}
		})
	}
}

// A device that does not take packets loses those, and each is counted.
func TestInboundWriteErrors(t *testing.T) {
	nodes := restNodes(t, offload, "127.0.0.1", "127.0.0.2")
	m, packets := super(unix.IPPROTO_TCP, "10.1.0.5", "10.1.1.7", 1, 1000, make([]byte, 5000))
	nodes[0].dev.give(t, m)
	carryAll(t, nodes[0].out.carry)
	unix.Close(nodes[1].dev.fd)
	awaitInput(t, nodes[1].sock.fd)
	carryAll(t, nodes[1].in.carry)
	if got, want := nodes[1].count.snapshot(), (Counters{WriteErrors: uint64(len(packets))}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	again := newTestDevice(t, true) // for the path to close
	nodes[1].dev.fd = again.fd
}

// Whatever a peer sends, nothing panics, and what is written are the whole IPv4
// packets in it, single or in super-packets that stand for just them.
func FuzzInbound(f *testing.F) {
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		_, packets := super(protocol, "10.1.0.5", "10.1.1.7", 1, 100, make([]byte, 350))
		f.Add(bytes.Join(packets, nil), uint16(len(packets[0])), byte(ce))
		f.Add(bytes.Join(packets, nil), uint16(len(packets[0])), byte(0))
	}
	f.Add(testPacket("10.1.0.5", "10.1.1.7", 64, unix.IPPROTO_UDP, []byte("payload")), uint16(0), byte(0))
	f.Add([]byte{}, uint16(1), byte(0))
	n := restNodes(f, offload, "127.0.0.1")[0]
	buf := make([]byte, readSize)
	f.Fuzz(func(t *testing.T, message []byte, size uint16, tos byte) {
		if len(message) > maxMessage {
			t.Skip()
		}
		var want, got [][]byte
		before := n.count.snapshot()
		message = bytes.Clone(message)
		for first, rest := cut(message, int(size)); len(first) > 0; first, rest = cut(rest, int(size)) {
			if p := bytes.Clone(first); whole(p) && len(p) <= testMTU {
				if inner, ok := congestion(p[1], tos); ok {
					if inner != p[1] { // else it stays as it is, byte by byte
						setTOS(p, inner)
					}
					want = append(want, p)
				}
			}
			n.in.packet(first, tos) // as carry does
		}
		n.in.join.Flush()
		for m := n.dev.take(t, buf, false); m != nil; m = n.dev.take(t, buf, false) {
			packets, _ := unjoin(t, m)
			got = append(got, packets...)
		}
		after := n.count.snapshot()
		if int(after.Received-before.Received) != len(got) {
			t.Errorf("%d packets are written, counted are %d", len(got), after.Received-before.Received)
		}
		for _, p := range append(want[:len(want):len(want)], got...) {
			canonical(p)
		}
		expectSame(t, "packets", want, got)
	})
}

// canonical makes checksums that are right but for the other way to write 0 those
// which the kernel makes.
func canonical(p []byte) {
	if !rightChecksums(p) {
		return
	}
	at := []int{10}
	if p[9] == unix.IPPROTO_TCP && len(p) >= headerLen(p)+18 {
		at = append(at, headerLen(p)+16)
	}
	for _, at := range at {
		if binary.BigEndian.Uint16(p[at:]) == 0xffff {
			p[at], p[at+1] = 0, 0
		}
	}
}
