package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/gso"
)

// segment makes a TCP or UDP packet with right checksums.
func segment(protocol byte, src, dst string, id uint16, seq uint32, payload []byte) []byte {
	l4 := make([]byte, 8, 20+len(payload))
	sum := 6
	if protocol == unix.IPPROTO_TCP {
		l4, sum = l4[:20], 16
		binary.BigEndian.PutUint32(l4[4:], seq)
		l4[12], l4[13] = 5<<4, 0x10 // ACK
		l4[14] = 0xff
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(payload)))
	}
	binary.BigEndian.PutUint16(l4, 1000)
	binary.BigEndian.PutUint16(l4[2:], 2000)
	p := edit(testPacket(src, dst, 64, protocol, append(l4, payload...)), func(p []byte) {
		binary.BigEndian.PutUint16(p[4:], id)
		p[6] = dontFragment
	})
	pseudo := append(bytes.Clone(p[12:20]), 0, protocol)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(p)-ipHeader))
	binary.BigEndian.PutUint16(p[ipHeader+sum:], checksum(append(pseudo, p[ipHeader:]...)))
	return p
}

// super makes a super-packet, the message by which a kernel gives it to the device,
// and the packets it stands for.
func super(protocol byte, src, dst string, id uint16, size int, payload []byte) (message []byte, packets [][]byte) {
	h := gso.Header{Flags: gso.NeedsChecksum, Type: gso.UDP, Headers: 28, Size: uint16(size), Start: 20, Offset: 6}
	if protocol == unix.IPPROTO_TCP {
		h.Type, h.Headers, h.Offset = gso.TCP4, 40, 16
	}
	whole := segment(protocol, src, dst, id, 5000, payload)
	for n := 0; n < len(payload); n += size {
		packets = append(packets, segment(protocol, src, dst, id+uint16(n/size), 5000+uint32(n), payload[n:min(n+size, len(payload))]))
	}
	return vnet(h, whole), packets
}

// hop is a packet after one hop more.
func hop(p []byte) []byte {
	return edit(bytes.Clone(p), func(p []byte) { p[8]-- })
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Packets of all sizes, of one flow or of many, single or as super-packets, to one
// host or several, arrive as they were but for the TTL, and are counted once.
func TestPath(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			nodes := startNodes(t, k, "127.0.0.1", "127.0.0.2", "127.0.0.3")
			r := rand.New(rand.NewPCG(7, 8))
			dst := []string{1: "10.1.1.7", 2: "10.1.2.8"}
			var sent, received [3]Counters
			for range 60 {
				want := make([][][]byte, len(nodes))
				size := 1 + r.IntN(testMTU-40)
				for range 1 + r.IntN(100) {
					to := 1 + r.IntN(10)/9
					protocol := []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[r.IntN(5)/4]
					var packets [][]byte
					switch r.IntN(20) {
					case 0: // a super-packet
						var m []byte
						m, packets = super(protocol, "10.1.0.5", dst[to], uint16(r.Uint32()), 200+r.IntN(testMTU-240), randomBytes(r, 1+r.IntN(20000)))
						nodes[0].dev.give(t, m)
					case 1: // of no flow
						p := testPacket("10.1.0.5", dst[to], 64, byte(r.Uint32()), randomBytes(r, r.IntN(testMTU-20)))
						packets = [][]byte{p}
						nodes[0].dev.give(t, plain(p))
					case 2: // without its checksum, and padded
						p := segment(protocol, "10.1.0.5", dst[to], uint16(r.Uint32()), r.Uint32(), randomBytes(r, r.IntN(testMTU-40)))
						packets = [][]byte{bytes.Clone(p)}
						offset := map[byte]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6}[protocol]
						pseudo := append(bytes.Clone(p[12:20]), 0, protocol, byte((len(p)-20)>>8), byte(len(p)-20))
						binary.BigEndian.PutUint16(p[20+offset:], ^checksum(pseudo))
						nodes[0].dev.give(t, append(vnet(gso.Header{Flags: gso.NeedsChecksum, Start: 20, Offset: uint16(offset)}, p), make([]byte, r.IntN(4))...))
					default: // one of many of a size
						p := segment(protocol, "10.1.0.5", dst[to], uint16(r.Uint32()), r.Uint32(), randomBytes(r, size))
						packets = [][]byte{p}
						nodes[0].dev.give(t, plain(p))
					}
					for _, p := range packets {
						p = hop(p)
						want[to] = append(want[to], p)
						sent[0].Sent++
						sent[0].SentBytes += uint64(len(p))
						received[to].Received++
						received[to].ReceivedBytes += uint64(len(p))
					}
				}
				for i, n := range nodes[1:] {
					expectSame(t, dst[i+1], want[i+1], n.arrive(t, len(want[i+1])))
				}
			}
			expectCounters(t, "sender", &nodes[0].count, sent[0])
			expectCounters(t, "receiver", &nodes[1].count, received[1])
			expectCounters(t, "other receiver", &nodes[2].count, received[2])
		})
	}
}

// Both directions at once, and a path that is idle between.
func TestPathBothWays(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			nodes := startNodes(t, k, "127.0.0.1", "127.0.0.2")
			hosts := []string{"10.1.0.5", "10.1.1.7"}
			for round := range 50 {
				var want [2][][]byte
				for i := range 60 {
					for from := range 2 {
						p := segment(unix.IPPROTO_UDP, hosts[from], hosts[1-from], uint16(i), 0, make([]byte, 8+round))
						nodes[from].dev.give(t, plain(p))
						want[1-from] = append(want[1-from], hop(p))
					}
				}
				for i, n := range nodes {
					expectSame(t, hosts[i], want[i], n.arrive(t, len(want[i])))
				}
			}
		})
	}
}

// A super-packet crosses in few messages, and is joined again.
func TestPathJoins(t *testing.T) {
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		nodes := restNodes(t, offload, "127.0.0.1", "127.0.0.2")
		m, packets := super(protocol, "10.1.0.5", "10.1.1.7", 100, 1000, make([]byte, 30500))
		nodes[0].dev.give(t, m)
		carryAll(t, nodes[0].out.carry)
		awaitInput(t, nodes[1].sock.fd)
		carryAll(t, nodes[1].in.carry)
		buf := make([]byte, readSize)
		got, joined := unjoin(t, nodes[1].dev.take(t, buf, true))
		for i := range packets {
			packets[i] = hop(packets[i])
		}
		expectSame(t, "super-packet", packets, got)
		if !joined {
			t.Errorf("protocol %d: it is not one again", protocol)
		}
		count := nodes[0].count.snapshot()
		if count.Sent != 31 || count.SentMessages != (Batches{5: 1}) {
			t.Errorf("protocol %d: sender %+v, want 31 packets in one message", protocol, count)
		}
	}
}

// When run has returned, all is closed; and newPath that fails closes nothing that
// is not its own.
func TestNewPathFails(t *testing.T) {
	s := loopbackSockets(t, "127.0.0.1")[0]
	closeAtEnd(t, s)
	for _, tc := range []struct{ dev, sock int }{{-1, s.fd}, {s.fd, -1}} {
		_, err := newPath(&device{fd: tc.dev}, &socket{fd: tc.sock}, addrOf(1), testMTU, nil, new(counters))
		if !errors.Is(err, unix.EBADF) {
			t.Errorf("with a file that is not open: %v", err)
		}
		if _, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFD, 0); err != nil {
			t.Fatalf("the file that is open was closed: %v", err)
		}
	}
}

// Each slot holds the largest packet, and none reaches into another.
func TestNewSlots(t *testing.T) {
	memory, slots, err := newSlots(3, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	for i, want := range []int{maxPacket, maxPacket, maxPacket, 1000} {
		if len(slots[i]) != want {
			t.Fatalf("slot %d has %d bytes, want %d", i, len(slots[i]), want)
		}
		for k := range slots[i] {
			slots[i][k] = byte(i + 1)
		}
	}
	for i, s := range slots {
		if bytes.Count(s, []byte{byte(i + 1)}) != len(s) {
			t.Errorf("slot %d was overwritten", i)
		}
		if cap(s) != len(s) {
			t.Errorf("slot %d of %d bytes can grow to %d", i, len(s), cap(s))
		}
	}
}

func TestDescribe(t *testing.T) {
	for _, tc := range []struct {
		cuts, joins, datagrams bool
		want                   string
	}{
		{true, true, true, "up to 64 KiB of TCP or datagrams at once"},
		{true, true, false, "up to 64 KiB of TCP at once; the kernel lacks segmentation of datagrams on TUN devices (Linux 6.2)"},
		{true, false, true, "up to 64 KiB of TCP or datagrams at once to peers; the kernel lacks UDP_GRO (Linux 5.0)"},
		{false, true, true, "up to 64 KiB of TCP or datagrams at once from peers; the kernel lacks UDP_SEGMENT (Linux 4.18)"},
		{false, false, false, "packets one by one; the kernel lacks UDP_SEGMENT and UDP_GRO (Linux 5.0) and segmentation of datagrams on TUN devices (Linux 6.2)"},
	} {
		p := &path{dev: &device{datagrams: tc.datagrams}, sock: &socket{cuts: tc.cuts, joins: tc.joins}}
		if got := p.describe(); got != tc.want || strings.Contains(got, "\n") {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

// roundTrip carries a message to another node and out of its device, and returns
// how many bytes of packets came there.
func roundTrip(t testing.TB, from, to *testNode, message, buf []byte, packets uint64) {
	from.dev.give(t, message)
	want := to.count.received.Load() + packets
	if err := from.out.carry(); err != nil {
		t.Fatal(err)
	}
	for to.count.received.Load() < want {
		if err := to.in.carry(); err == unix.EAGAIN {
			awaitInput(t, to.sock.fd)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for to.dev.take(t, buf, false) != nil {
	}
}

// Nothing is allocated for a packet, on either way.
func TestNoAllocations(t *testing.T) {
	for _, k := range kinds {
		nodes := restNodes(t, k, "127.0.0.1", "127.0.0.2")
		m, packets := super(unix.IPPROTO_TCP, "10.1.0.5", "10.1.1.7", 100, 1432, make([]byte, 60000))
		single := plain(segment(unix.IPPROTO_UDP, "10.1.0.5", "10.1.1.7", 7, 0, make([]byte, 100)))
		buf := make([]byte, readSize)
		for name, f := range map[string]func(){
			"super-packet": func() { roundTrip(t, nodes[0], nodes[1], m, buf, uint64(len(packets))) },
			"packet":       func() { roundTrip(t, nodes[0], nodes[1], single, buf, 1) },
		} {
			if n := testing.AllocsPerRun(200, f); n > 0 {
				t.Errorf("%v: %v allocations for a %s", k, n, name)
			}
		}
	}
}

// BenchmarkPath carries a super-packet over the loopback interface, by both ways.
func BenchmarkPath(b *testing.B) {
	for _, k := range kinds {
		b.Run(k.String(), func(b *testing.B) {
			nodes := restNodes(b, k, "127.0.0.1", "127.0.0.2")
			m, packets := super(unix.IPPROTO_TCP, "10.1.0.5", "10.1.1.7", 100, 1432, make([]byte, 60000))
			buf := make([]byte, readSize)
			b.SetBytes(60000)
			b.ReportAllocs()
			for b.Loop() {
				roundTrip(b, nodes[0], nodes[1], m, buf, uint64(len(packets)))
			}
		})
	}
}

// BenchmarkPacket does so with a single small packet.
func BenchmarkPacket(b *testing.B) {
	nodes := restNodes(b, offload, "127.0.0.1", "127.0.0.2")
	m := plain(segment(unix.IPPROTO_UDP, "10.1.0.5", "10.1.1.7", 7, 0, make([]byte, 100)))
	buf := make([]byte, readSize)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip(b, nodes[0], nodes[1], m, buf, 1)
	}
}
