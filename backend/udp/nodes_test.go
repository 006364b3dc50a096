package udp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"flanneld/pkg/gso"
	"flanneld/subnet"
)

// patience is how long tests wait for what ought to come at once.
const patience = 10 * time.Second

// testDevice is a device of which the test is the kernel's side. It is a pair of
// sockets, which keep messages apart as a TUN device does.
type testDevice struct {
	*device
	kernel int
}

func newTestDevice(t testing.TB, datagrams bool) *testDevice {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, 16<<20)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	return &testDevice{&device{fd: fds[0], datagrams: datagrams}, fds[1]}
}

// give lets the device have a message, which begins with a virtio-net header.
func (d *testDevice) give(t testing.TB, message []byte) {
	t.Helper()
	if _, err := unix.Write(d.kernel, message); err != nil {
		t.Fatalf("giving the device %d bytes: %v", len(message), err)
	}
}

// take reads what was written to the device into buf, and waits for it if wait is
// true. Without anything it is nil.
func (d *testDevice) take(t testing.TB, buf []byte, wait bool) []byte {
	t.Helper()
	for {
		n, err := unix.Read(d.kernel, buf)
		switch {
		case err == nil:
			return buf[:n]
		case err != unix.EAGAIN:
			t.Fatalf("reading what was written to the device: %v", err)
		case !wait:
			return nil
		}
		awaitInput(t, d.kernel)
	}
}

// awaitInput waits until there is something to be read.
func awaitInput(t testing.TB, fd int) {
	t.Helper()
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		n, err := unix.Poll(fds[:], int(patience.Milliseconds()))
		if n == 1 {
			return
		}
		if err != nil && err != unix.EINTR {
			t.Fatalf("waiting for input: %v", err)
		}
	}
	t.Fatalf("nothing to be read within %v", patience)
}

// vnet is a packet behind its virtio-net header.
func vnet(h gso.Header, packet []byte) []byte {
	b := make([]byte, gso.HeaderLen+len(packet))
	h.Put(b)
	copy(b[gso.HeaderLen:], packet)
	return b
}

// plain is a packet behind a virtio-net header that says nothing.
func plain(packet []byte) []byte { return vnet(gso.Header{}, packet) }

// unjoin yields the packets that a message of a device stands for, and whether it
// is a super-packet. A message that contradicts itself ends the test.
func unjoin(t testing.TB, message []byte) (packets [][]byte, super bool) {
	t.Helper()
	h, p := gso.ParseHeader(message), message[gso.HeaderLen:]
	if !whole(p) {
		t.Fatalf("%+v with %x, which is no whole packet", h, p)
	}
	if h.Type == gso.None {
		if h != (gso.Header{}) {
			t.Fatalf("a single packet has the header %+v", h)
		}
		return [][]byte{bytes.Clone(p)}, false
	}
	p = bytes.Clone(p)
	c, err := gso.NewCutter(h, bytes.Clone(p))
	if err != nil {
		t.Fatalf("%+v with %x: %v", h, p, err)
	}
	if int(h.Headers) != c.HeaderLen || h.Flags != gso.NeedsChecksum || int(h.Start) != headerLen(p) {
		t.Fatalf("%+v, but headers are of %d bytes", h, c.HeaderLen)
	}
	// What the kernel completes where the flow ends on this host.
	if err := gso.Complete(h, p); err != nil || !rightChecksums(p) {
		t.Fatalf("checksums of a super-packet do not add up (%v): %+v with %x", err, h, p)
	}
	for c.Packets() > 0 {
		header := make([]byte, c.HeaderLen)
		payload := c.Next(header)
		packets = append(packets, append(header, payload...))
	}
	return packets, true
}

// rightChecksums reports whether the checksums of a whole IPv4 packet, and of TCP
// or UDP in it, are right.
func rightChecksums(p []byte) bool {
	n := headerLen(p)
	if checksum(p[:n]) != 0 {
		return false
	}
	if p[9] != unix.IPPROTO_TCP && p[9] != unix.IPPROTO_UDP {
		return true
	}
	l4 := p[n:]
	pseudo := append(bytes.Clone(p[12:20]), 0, p[9])
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(l4)))
	return checksum(append(pseudo, l4...)) == 0
}

// loopbackSockets opens sockets on addresses of the loopback interface, with
// one port, as hosts of a cluster have it. Whoever runs paths with them closes them.
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

// closeAtEnd closes sockets that belong to no path.
func closeAtEnd(t testing.TB, sockets ...*socket) {
	t.Cleanup(func() {
		for _, s := range sockets {
			s.close()
		}
	})
}

// plainly makes a socket that of a kernel without UDP_SEGMENT and UDP_GRO.
func (s *socket) plainly(t testing.TB) {
	t.Helper()
	s.cuts, s.joins = false, false
	if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0); err != nil {
		t.Fatal(err)
	}
}

// kind is whether the kernel cuts and joins messages.
type kind bool

const (
	offload   kind = true
	noOffload kind = false
)

var kinds = []kind{offload, noOffload}

func (k kind) String() string { return map[kind]string{offload: "offload", noOffload: "plain"}[k] }

const testMTU = 1472

// testNode is a packet path between a testDevice and a socket on loopback.
type testNode struct {
	*path
	dev   *testDevice
	count counters
}

// newNodes makes a path per address; all know each other, the i-th with the subnet
// 10.1.<i>.0/24, and the host 127.0.0.9 besides, which is not there. They are not
// running.
func newNodes(t testing.TB, k kind, addrs ...string) (nodes []*testNode) {
	t.Helper()
	leases := []*subnet.Lease{lease("10.1.9.0/24", "127.0.0.9", "udp")}
	for i, a := range addrs {
		leases = append(leases, lease(fmt.Sprintf("10.1.%d.0/24", i), a, "udp"))
	}
	hosts := new(atomic.Pointer[table])
	hosts.Store(newTable(leases))
	for _, s := range loopbackSockets(t, addrs...) {
		if k == noOffload {
			s.plainly(t)
		}
		n := &testNode{dev: newTestDevice(t, bool(k))}
		var err error
		if n.path, err = newPath(n.dev.device, s, leases[0].Subnet.Addr(), testMTU, hosts, &n.count); err != nil {
			t.Fatal(err)
		}
		if n.out.icmp == nil {
			t.Fatal("ICMP answers cannot be had")
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// startNodes starts them and stops them at the end.
func startNodes(t testing.TB, k kind, addrs ...string) []*testNode {
	t.Helper()
	nodes := newNodes(t, k, addrs...)
	// A daemon has one path, and more processors than that has workers: a worker
	// may keep one for itself. So each has one here.
	before := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(before + 2*len(nodes))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	for _, n := range nodes {
		go func() { ended <- n.run(ctx) }()
	}
	t.Cleanup(func() {
		stop()
		for range nodes {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("run returned %v", err)
			}
		}
		runtime.GOMAXPROCS(before)
		for _, n := range nodes {
			if n.workers.in.turns.Load()%2 == 1 || n.workers.out.turns.Load()%2 == 1 {
				t.Error("a worker that has ended looks as if it were at work for ever")
			}
		}
	})
	return nodes
}

// restNodes makes nodes whose ways the test takes by itself, without workers.
func restNodes(t testing.TB, k kind, addrs ...string) []*testNode {
	t.Helper()
	nodes := newNodes(t, k, addrs...)
	t.Cleanup(func() {
		for _, n := range nodes {
			n.workers.close()
			if err := n.close(); err != nil {
				t.Error(err)
			}
		}
	})
	return nodes
}

// carryAll takes a way until there is nothing left on it.
func carryAll(t testing.TB, carry func() error) {
	t.Helper()
	for {
		switch err := carry(); err {
		case nil:
		case unix.EAGAIN:
			return
		default:
			t.Fatal(err)
		}
	}
}

// arrive waits for n packets at the device.
func (n *testNode) arrive(t testing.TB, count int) (packets [][]byte) {
	t.Helper()
	buf := make([]byte, readSize)
	for len(packets) < count {
		more, _ := unjoin(t, n.dev.take(t, buf, true))
		packets = append(packets, more...)
	}
	return packets
}

// expectSame compares packets without regard to their order, as the kernel may
// change that where a worker changes processors.
func expectSame(t testing.TB, what string, want, got [][]byte) {
	t.Helper()
	want, got = slices.Clone(want), slices.Clone(got)
	slices.SortFunc(want, bytes.Compare)
	slices.SortFunc(got, bytes.Compare)
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want) || i >= len(got):
			t.Fatalf("%s: %d packets, want %d", what, len(got), len(want))
		case !bytes.Equal(want[i], got[i]):
			t.Fatalf("%s: the %dth of %d packets, want %d:\n got %x\nwant %x", what, i, len(got), len(want), got[i], want[i])
		}
	}
}

// expectCounters waits for the counters to be as wanted: a packet may be
// received before its sender has counted it. Messages and writes, which depend on
// how batches form, have to be such that the packets may have been in them.
func expectCounters(t testing.TB, whose string, c *counters, want Counters) {
	t.Helper()
	look := func() Counters {
		s := c.snapshot()
		if !s.SentMessages.mayHold(s.Sent) || !s.Writes.mayHold(s.Received) {
			return s
		}
		s.SentMessages, s.Writes = Batches{}, Batches{}
		return s
	}
	for end := time.Now().Add(patience); look() != want && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if diff := cmp.Diff(want, look()); diff != "" {
		t.Errorf("%s's counters (-want +got):\n%s", whose, diff)
	}
}

// mayHold reports whether so many packets may be in batches of these sizes.
func (b Batches) mayHold(packets uint64) bool {
	least, most := b[0], b[0]
	for i, n := range b[1:] {
		least, most = least+n*(1<<i+1), most+n*(2<<i)
	}
	return least <= packets && packets <= most
}

// onOneProcessor keeps the calling goroutine on one processor until the test ends,
// so that the loopback interface keeps all in order.
func onOneProcessor(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &before); err == nil {
			runtime.UnlockOSThread()
		}
	})
}
