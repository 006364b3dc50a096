package udp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

func TestGroup(t *testing.T) {
	big := maxMessage/2 + 1
	for _, tc := range []struct {
		name  string
		hosts string // one letter a datagram
		sizes []int
		most  int
		want  []group
	}{
		{"none", "", nil, 64, nil},
		{"one", "a", []int{100}, 64, []group{{0, 1, 100}}},
		{"same size", "aaa", []int{100, 100, 100}, 64, []group{{0, 3, 300}}},
		{"shorter last", "aaaa", []int{100, 100, 50, 50}, 64, []group{{0, 3, 250}, {3, 1, 50}}},
		{"longer", "aa", []int{50, 100}, 64, []group{{0, 1, 50}, {1, 1, 100}}},
		{"two hosts", "aabba", []int{100, 100, 100, 100, 100}, 64, []group{{0, 2, 200}, {2, 2, 200}, {4, 1, 100}}},
		{"at most two", "aaa", []int{100, 100, 100}, 2, []group{{0, 2, 200}, {2, 1, 100}}},
		{"no groups", "aa", []int{100, 100}, 1, []group{{0, 1, 100}, {1, 1, 100}}},
		{"too large together", "aa", []int{big, big}, 64, []group{{0, 1, big}, {1, 1, big}}},
	} {
		var datagrams []datagram
		for i, size := range tc.sizes {
			datagrams = append(datagrams, datagram{host: uint32(tc.hosts[i]), data: make([]byte, size)})
		}
		got := groupBy(nil, datagrams, tc.most)
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(group{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// What is grouped, joined as the kernel does and cut again is what it was, in
// order, and no group breaks the kernel's rules.
func TestGroupAndCut(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		sizes := []int{20 + r.IntN(1500), 20 + r.IntN(1500), 20 + r.IntN(9000)}
		var datagrams []datagram
		for range r.IntN(200) {
			d := datagram{host: uint32(r.IntN(100)) / 95, data: make([]byte, sizes[r.IntN(100)/90*r.IntN(3)])}
			binary.BigEndian.PutUint32(d.data, r.Uint32())
			datagrams = append(datagrams, d)
		}
		most := []int{1, 2, maxSegments}[r.IntN(3)]
		var again []datagram
		for _, g := range groupBy(nil, datagrams, most) {
			members := datagrams[g.first : g.first+g.n]
			var message []byte
			for _, d := range members {
				message = append(message, d.data...)
			}
			if g.n > most || len(message) > maxMessage || len(message) != g.bytes {
				t.Fatalf("group of %d with %d bytes: %+v", g.n, len(message), g)
			}
			for first, rest := cut(message, len(members[0].data)); len(first) > 0; first, rest = cut(rest, len(members[0].data)) {
				again = append(again, datagram{members[0].host, first})
			}
		}
		same := func(a, b datagram) bool { return a.host == b.host && bytes.Equal(a.data, b.data) }
		if !slices.EqualFunc(datagrams, again, same) {
			t.Fatalf("grouped by at most %d, %d datagrams come back as %d, or changed", most, len(datagrams), len(again))
		}
	}
}

// loopbackSockets opens sockets on addresses of the loopback interface, with
// one port, as hosts of a cluster have it.
func loopbackSockets(t testing.TB, addrs ...string) (sockets []*socket) {
	t.Helper()
	for range 10 {
		probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := probe.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		probe.Close()
		for _, a := range addrs {
			s, err := openSocket(netip.AddrPortFrom(netip.MustParseAddr(a), port))
			if err != nil {
				break
			}
			sockets = append(sockets, s)
		}
		if len(sockets) == len(addrs) {
			return sockets
		}
		for _, s := range sockets {
			s.close()
		}
		sockets = nil
	}
	t.Fatal("no port is free on all of ", addrs)
	return nil
}

// testTunnel stands for a TUN device: a batch put into in is read by the path,
// a packet the path writes comes out of out.
type testTunnel struct {
	in     chan [][]byte
	out    chan []byte
	closed chan struct{}
}

func newTestTunnel() *testTunnel {
	return &testTunnel{make(chan [][]byte, 10), make(chan []byte, 10000), make(chan struct{})}
}

func (d *testTunnel) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	select {
	case batch := <-d.in:
		for i, packet := range batch {
			sizes[i] = copy(bufs[i][offset:], packet)
		}
		return len(batch), nil
	case <-d.closed:
		return 0, os.ErrClosed
	}
}

func (d *testTunnel) Write(bufs [][]byte, offset int) (n int, err error) {
	for _, b := range bufs {
		d.out <- bytes.Clone(b[offset:])
	}
	return len(bufs), nil
}

func (d *testTunnel) pending() bool { return len(d.in) > 0 }
func (d *testTunnel) close() error  { close(d.closed); return nil }

// testNode is a packet path between a testTunnel and a socket on loopback.
type testNode struct {
	*testTunnel
	sock  *socket
	count counters
}

// startNodes starts a path per address; all know each other, the i-th with the
// subnet 10.1.<i>.0/24, and the host 127.0.0.9 besides, which is not there.
func startNodes(t *testing.T, offload bool, addrs ...string) (nodes []*testNode) {
	leases := []*subnet.Lease{lease("10.1.9.0/24", "127.0.0.9", "udp")}
	for i, a := range addrs {
		l := lease("10.1.0.0/24", a, "udp")
		l.Subnet = prefix.Nth(netip.MustParsePrefix("10.1.0.0/16"), 24, uint64(i))
		leases = append(leases, l)
	}
	var hosts atomic.Pointer[table]
	hosts.Store(newTable(leases))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	var paths []*path
	for _, s := range loopbackSockets(t, addrs...) {
		n := &testNode{testTunnel: newTestTunnel(), sock: s}
		if !offload {
			s.cuts, s.joins = false, false
			raw, _ := s.conn.SyscallConn()
			raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 0) })
		}
		p, err := newPath(n, s, leases[0].Subnet.Addr(), &hosts, &n.count)
		if err != nil {
			t.Fatal(err)
		}
		if p.icmp != nil { // nothing of a test is to leave the loopback interface
			p.icmp.close()
			p.icmp = nil
		}
		nodes, paths = append(nodes, n), append(paths, p)
		go func() { ended <- p.run(ctx) }()
	}
	t.Cleanup(func() {
		stop()
		for range addrs {
			if err := <-ended; !errors.Is(err, context.Canceled) && !errors.Is(err, errDeviceLost) && !errors.Is(err, net.ErrClosed) {
				t.Errorf("run returned %v", err)
			}
		}
		for _, p := range paths {
			if p.out.turns.Load()%2 == 1 || p.in.turns.Load()%2 == 1 {
				t.Error("a worker that has ended looks as if it were at work for ever")
			}
		}
	})
	return nodes
}

func (n *testNode) receive(t *testing.T) []byte {
	t.Helper()
	select {
	case p := <-n.out:
		return p
	case <-time.After(5 * time.Second):
		t.Fatalf("no packet within 5 s; counters %+v", n.count.snapshot())
		return nil
	}
}

// expectCounters waits for the counters to be as wanted: a packet may be
// received before its sender has counted it.
func expectCounters(t *testing.T, whose string, c *counters, want Counters) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); c.snapshot() != want && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if diff := cmp.Diff(want, c.snapshot()); diff != "" {
		t.Errorf("%s's counters (-want +got):\n%s", whose, diff)
	}
}

// Packets of all sizes, one flow or mixed, arrive as they were but for the TTL.
func TestPath(t *testing.T) {
	for _, offload := range []bool{true, false} {
		t.Run(map[bool]string{true: "offload", false: "plain"}[offload], func(t *testing.T) {
			nodes := startNodes(t, offload, "127.0.0.1", "127.0.0.2", "127.0.0.3")
			r := rand.New(rand.NewPCG(7, 8))
			var bytesSent, sent uint64
			for range 200 {
				var batch [][]byte
				want := map[*testNode][][]byte{}
				size := 20 + r.IntN(1480)
				for range 1 + r.IntN(batchSize) {
					to := 1 + r.IntN(10)/9
					n := size
					if r.IntN(20) == 0 {
						n = r.IntN(1500)
					}
					payload := make([]byte, n)
					for i := range payload {
						payload[i] = byte(r.Uint32())
					}
					p := testPacket("10.1.0.5", []string{1: "10.1.1.7", 2: "10.1.2.8"}[to], 64, unix.IPPROTO_UDP, payload)
					batch = append(batch, bytes.Clone(p))
					decrementTTL(p)
					want[nodes[to]] = append(want[nodes[to]], p)
					sent++
					bytesSent += uint64(len(p))
				}
				nodes[0].in <- batch
				for node, packets := range want {
					for i, p := range packets {
						if got := node.receive(t); !bytes.Equal(got, p) {
							t.Fatalf("packet %d of %d:\n got %x\nwant %x", i, len(packets), got, p)
						}
					}
				}
			}
			expectCounters(t, "sender", &nodes[0].count, Counters{Sent: sent, SentBytes: bytesSent})
			c1, c2 := nodes[1].count.snapshot(), nodes[2].count.snapshot()
			if c1.Received+c2.Received != sent || c1.ReceivedBytes+c2.ReceivedBytes != bytesSent {
				t.Errorf("%d packets of %d bytes, received %+v and %+v", sent, bytesSent, c1, c2)
			}
		})
	}
}

// What is no packet of a peer goes no further and is counted.
func TestPathDrops(t *testing.T) {
	nodes := startNodes(t, true, "127.0.0.1", "127.0.0.2")
	to := net.UDPAddrFromAddrPort(nodes[1].sock.conn.LocalAddr().(*net.UDPAddr).AddrPort())
	good := testPacket("10.1.0.5", "10.1.1.7", 64, unix.IPPROTO_UDP, []byte("payload"))

	stranger, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 4)}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	peer, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, to) // any port will do
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	for _, send := range []struct {
		conn io.Writer
		data []byte
	}{
		{stranger, good},
		{peer, good[:len(good)-1]},
		{peer, append(bytes.Clone(good), 0)},
		{peer, []byte("\x60not IPv4, but long enough for it")},
		{peer, nil},
		{peer, good},
	} {
		if _, err := send.conn.Write(send.data); err != nil {
			t.Fatal(err)
		}
	}
	if got := nodes[1].receive(t); !bytes.Equal(got, good) {
		t.Errorf("received %x, want %x", got, good)
	}

	ours := append([]byte(nil), good...)
	nodes[0].in <- [][]byte{
		testPacket("10.1.0.5", "10.1.200.7", 64, unix.IPPROTO_UDP, nil),
		testPacket("10.1.0.5", "10.1.1.7", 1, unix.IPPROTO_UDP, nil),
		[]byte("\x60not IPv4, but long enough for it"),
		ours,
	}
	if got := nodes[1].receive(t); got[8] != 63 {
		t.Errorf("received %x, want TTL 63", got)
	}

	expectCounters(t, "receiver", &nodes[1].count, Counters{Received: 2, ReceivedBytes: 54, UnknownPeer: 1, Malformed: 4})
	expectCounters(t, "sender", &nodes[0].count, Counters{Sent: 1, SentBytes: 27, NoSubnet: 1, Expired: 1, NotIPv4: 1, ICMPHeld: 2})
}

// A datagram that the kernel refuses keeps none of the others back.
func TestSendErrors(t *testing.T) {
	for _, offload := range []bool{true, false} {
		sockets := loopbackSockets(t, "127.0.0.1", "127.0.0.2")
		from, to := sockets[0], sockets[1]
		memory, slots, err := newSlots(2)
		if err != nil {
			t.Fatal(err)
		}
		from.cuts = from.cuts && offload
		from.prepare(8, nil, headroom)
		to.prepare(0, slots, headroom)

		host := addr("127.0.0.2")
		tooLarge := datagram{host, make([]byte, maxMessage+1)} // EMSGSIZE
		batch := []datagram{
			tooLarge,
			{host, []byte("one")},
			{host, []byte("two")},
			tooLarge,
			tooLarge,
			{host, []byte("last")},
			{addr("127.0.0.9"), []byte("nobody listens there")},
			{host, []byte("more")},
		}
		refused, err := from.send(batch)
		if err != nil || refused != 3 {
			t.Errorf("refused %d (%v), want the 3 that are too large", refused, err)
		}
		var got []string
		to.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		for len(got) < 4 {
			n, err := to.receive()
			if err != nil {
				t.Fatalf("after %q: %v", got, err)
			}
			for i := range n {
				from, slot, n, size := to.message(i)
				if addrOf(from).String() != "127.0.0.1" {
					t.Errorf("from %v", addrOf(from))
				}
				for first, rest := cut(slot[headroom:][:n], size); len(first) > 0; first, rest = cut(rest, size) {
					got = append(got, string(first))
				}
			}
		}
		if diff := cmp.Diff([]string{"one", "two", "last", "more"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}

		for _, s := range sockets {
			s.close()
		}
		if _, err := to.receive(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("receive after close: %v", err)
		}
		if n, err := from.send(batch); !errors.Is(err, net.ErrClosed) || n != len(batch) {
			t.Errorf("send after close: %d, %v", n, err)
		}
		unix.Munmap(memory)
	}
}

func TestSendSingly(t *testing.T) {
	s := &socket{cuts: true}
	if s.shouldSendSingly(unix.EPERM) || !s.cuts {
		t.Error("a firewall's refusal has nothing to do with segmentation")
	}
	for _, errno := range []error{unix.EMSGSIZE, unix.EINVAL} {
		if !s.shouldSendSingly(os.NewSyscallError("sendmmsg", errno)) || !s.cuts {
			t.Errorf("%v, as for a path with a smaller MTU: want this message sent singly, and segmentation kept", errno)
		}
	}
	if !s.shouldSendSingly(os.NewSyscallError("sendmmsg", unix.EIO)) || s.cuts {
		t.Error("an interface without checksum offload: want no segmentation from now on")
	}
}

func TestPortInUse(t *testing.T) {
	s := loopbackSockets(t, "127.0.0.1")[0]
	defer s.close()
	_, err := openSocket(s.conn.LocalAddr().(*net.UDPAddr).AddrPort())
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("opening the port twice: %v", err)
	}
	t.Log(err)
}

// BenchmarkPath sends what one read of a super-packet yields over the loopback
// interface, and receives it.
func BenchmarkPath(b *testing.B) {
	sockets := loopbackSockets(b, "127.0.0.1", "127.0.0.2")
	from, to := sockets[0], sockets[1]
	defer from.close()
	defer to.close()
	memory, slots, err := newSlots(receiveMessages)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(memory)
	from.prepare(batchSize, nil, headroom)
	to.prepare(0, slots, headroom)
	table := newTable([]*subnet.Lease{lease("10.1.75.0/24", "127.0.0.2", "udp")})
	packet := testPacket("10.1.74.2", "10.1.75.3", 64, unix.IPPROTO_TCP, make([]byte, 1452))
	packets := make([][]byte, 44)
	for i := range packets {
		packets[i] = bytes.Clone(packet)
	}
	datagrams := make([]datagram, 0, len(packets))
	b.SetBytes(int64(len(packet) * len(packets)))
	b.ReportAllocs()
	for b.Loop() {
		datagrams = datagrams[:0]
		for _, p := range packets {
			p[8] = 64
			d, v := route(table, p)
			if v != carry {
				b.Fatal(v)
			}
			datagrams = append(datagrams, d)
		}
		if n, err := from.send(datagrams); n > 0 || err != nil {
			b.Fatal(n, err)
		}
		for got := 0; got < len(packets)*len(packet); {
			messages, err := to.receive()
			if err != nil {
				b.Fatal(err)
			}
			for i := range messages {
				_, _, n, _ := to.message(i)
				got += n
			}
		}
	}
}

// Sending and receiving allocate nothing.
func TestNoAllocations(t *testing.T) {
	if r := testing.Benchmark(BenchmarkPath); r.N == 0 || r.AllocsPerOp() > 0 {
		t.Errorf("%d allocations for a batch of packets (%v)", r.AllocsPerOp(), r)
	}
}
