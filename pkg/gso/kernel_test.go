package gso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// The tests of this file compare with what the kernel does, on a host made of a
// network namespace.
func TestMain(m *testing.M) { lab.Main(m) }

const (
	ethernet = 14 // bytes, of the header
	patience = 5 * time.Second
)

// Addresses of nobody, so that what is sent to them is only looked at.
var (
	farMAC = [6]byte{2, 0, 0, 0, 0, 9}
	ownMAC = [6]byte{2, 0, 0, 0, 0, 8}
)

// wire is a host with a pair of devices, x0 and x1, of which x0 has no offloads:
// so what is sent by it arrives at x1 as it would on a real wire.
type wire struct {
	*lab.Host
	t       *testing.T
	x0      int // index
	send    int // socket that takes frames for x0, with virtio-net headers in front
	receive int // socket that gets what arrives at x1
	buf     []byte
}

func newWire(t *testing.T) *wire {
	t.Helper()
	if err := lab.Tools("ip"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	w := &wire{Host: l.Host("h1", l.Segment("lan", netip.MustParsePrefix("172.16.16.0/24"))), t: t, buf: make([]byte, 1<<17)}
	w.Run("sh", "-ec", `
		ip link add x0 mtu 65535 type veth peer name x1 mtu 65535
		ip link set x0 up
		ip link set x1 up`)
	l.Must(w.Do(func() error {
		// A device that makes no checksums does not cut either, whatever is said
		// about that; so both are done before it.
		for _, off := range []uint32{unix.ETHTOOL_STXCSUM, unix.ETHTOOL_STSO} {
			if err := ethtool("x0", off, 0); err != nil {
				return err
			}
		}
		if err := ethtool("x1", unix.ETHTOOL_SGRO, 0); err != nil {
			return err
		}
		x0, err := net.InterfaceByName("x0")
		if err != nil {
			return err
		}
		w.x0 = x0.Index
		x1, err := net.InterfaceByName("x1")
		if err != nil {
			return err
		}
		if w.send, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(w.send) })
		if err := unix.SetsockoptInt(w.send, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return fmt.Errorf("asking for virtio-net headers: %w", err)
		}
		if w.receive, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(w.receive) })
		// Without root the usual has to do, which is enough for 64 KiB at a time.
		if err := unix.SetsockoptInt(w.receive, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
		timeout := unix.NsecToTimeval(patience.Nanoseconds())
		if err := unix.SetsockoptTimeval(w.receive, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return err
		}
		return unix.Bind(w.receive, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_IP), Ifindex: x1.Index})
	}))
	w.await()
	return w
}

// await waits until packets get from x0 to x1: a device that has come up drops
// what it is given until the kernel has come round to saying that there is a
// carrier (net/core/link_watch.c).
func (w *wire) await() {
	w.t.Helper()
	probe := udpSpec(0)
	lab.Eventually(w.t, patience, "a packet from x0 to x1", func() error {
		probe.id++
		if err := w.put(Header{}, probe.packet()); err != nil {
			return err
		}
		_, _, err := unix.Recvfrom(w.receive, w.buf, unix.MSG_DONTWAIT)
		return err
	})
	// All others of these come before a last one.
	probe.id++
	if err := w.put(Header{}, probe.packet()); err != nil {
		w.t.Fatal(err)
	}
	for last := probe.packet(); ; {
		n, _, err := unix.Recvfrom(w.receive, w.buf, 0)
		if err != nil && err != unix.EINTR {
			w.t.Fatalf("waiting for the last of %d packets at x1: %v", probe.id, err)
		}
		if err == nil && bytes.Equal(w.buf[ethernet:n], last) {
			return
		}
	}
}

// bigEndian is a number in network byte order.
func bigEndian(x uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, x))
}

// ethtool sets what a device has a command of its own for.
func ethtool(dev string, command, value uint32) error {
	type setting struct{ command, value uint32 } // struct ethtool_value
	s := setting{command, value}
	request := struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&s)}
	copy(request.name[:], dev)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("ethtool command %#x for %s: %w", command, dev, errno)
	}
	return nil
}

// put sends a packet or super-packet by x0.
func (w *wire) put(h Header, p []byte) error {
	b := make([]byte, HeaderLen+ethernet, HeaderLen+ethernet+len(p))
	if h != (Header{}) {
		h.Headers += ethernet
		h.Start += ethernet
	}
	h.Put(b)
	copy(b[HeaderLen:], farMAC[:])
	copy(b[HeaderLen+6:], ownMAC[:])
	binary.BigEndian.PutUint16(b[HeaderLen+12:], unix.ETH_P_IP)
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_IP), Ifindex: w.x0, Halen: 6}
	copy(to.Addr[:], farMAC[:])
	if err := unix.Sendto(w.send, append(b, p...), 0, to); err != nil {
		return fmt.Errorf("sending %+v, %d bytes: %w", h, len(p), err)
	}
	return nil
}

// arrived is what has arrived at x1 once so many packets are there, and any more
// than that.
func (w *wire) arrived(count int) (packets [][]byte) {
	w.t.Helper()
	marker := udpSpec(100)
	marker.ttl = 1
	last := marker.packet()
	for {
		n, from, err := unix.Recvfrom(w.receive, w.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			w.t.Fatalf("waiting for packet %d of %d at x1: %v", len(packets)+1, count, err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		p := bytes.Clone(w.buf[ethernet:n])
		if bytes.Equal(p, last) {
			return packets
		}
		// The marker is sent no sooner, as it may go by another processor.
		if packets = append(packets, p); len(packets) == count {
			if err := w.put(Header{}, last); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// datagrams reports whether the kernel has super-packets of datagrams.
func (w *wire) datagrams() bool {
	w.t.Helper()
	h, p := udpSpec(3).super(1)
	err := w.put(h, p)
	if errors.Is(err, unix.EINVAL) {
		return false
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.arrived(3)
	return true
}

// The kernel cuts a super-packet into just the same packets.
func TestKernelCuts(t *testing.T) {
	w := newWire(t)
	datagrams := w.datagrams()
	compare := func(t *testing.T, s spec, size int) {
		t.Helper()
		if s.protocol == protocolUDP && !datagrams {
			t.Skip("the kernel has no super-packets of datagrams (Linux 6.2)")
		}
		h, p := s.super(size)
		want, err := cutAll(h, p)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.put(h, p); err != nil {
			t.Fatal(err)
		}
		if d := sameBytes(w.arrived(len(want)), want); d != "" {
			t.Fatalf("%+v of\n%s the kernel makes %s", h, show(p), d)
		}
	}
	for _, tc := range []struct {
		name   string
		change func(s *spec)
	}{
		{"plain", func(s *spec) {}},
		{"PSH", func(s *spec) { s.flags |= psh }},
		{"FIN", func(s *spec) { s.flags |= fin }},
		{"FIN and PSH", func(s *spec) { s.flags |= fin | psh }},
		{"ECE", func(s *spec) { s.flags |= 0x40 }},
		{"CWR", func(s *spec) { s.flags |= cwr }},
		{"CWR and PSH", func(s *spec) { s.flags |= cwr | psh }},
		{"CWR and ECE", func(s *spec) { s.flags |= cwr | 0x40 }},
		{"URG", func(s *spec) { s.flags |= urg; s.urgent = 17 }},
		{"reserved flags", func(s *spec) { s.offset = 0x0f }},
		{"no options", func(s *spec) { s.tcpOptions = nil }},
		{"most options", func(s *spec) { s.tcpOptions = bytes.Repeat([]byte{1}, 40) }},
		{"IP options", func(s *spec) { s.ipOptions = bytes.Repeat([]byte{1}, 40) }},
		{"no DF", func(s *spec) { s.frag = 0 }},
		{"reserved bit", func(s *spec) { s.frag = 0xc000 }},
		{"ID around 0", func(s *spec) { s.id = 0xfffe }},
		{"seq around 0", func(s *spec) { s.seq = 0xfffffff0 }},
		{"checksum of 0", func(s *spec) { *s = s.zeroChecksumOfFirst(100) }},
		{"ECN", func(s *spec) { s.tos = 0x03 }},
	} {
		for _, first := range []spec{tcpSpec(0), udpSpec(0)} {
			for _, n := range [][2]int{{100, 101}, {100, 400}, {100, 333}, {1420, 46 * 1420}, {1, 2}, {16000, 64000}} {
				t.Run(fmt.Sprintf("%s/protocol %d/%d by %d", tc.name, first.protocol, n[1], n[0]), func(t *testing.T) {
					s := first
					s.payload = randomBytes(rand.New(rand.NewPCG(1, 1)), n[1])
					tc.change(&s)
					compare(t, s, n[0])
				})
			}
		}
	}
	t.Run("random", func(t *testing.T) {
		r := newRand(t)
		for range 300 {
			s, size := randomSuper(r)
			if s.protocol == protocolUDP && !datagrams {
				continue
			}
			// Not one packet only, which the kernel takes for none, and not more
			// than sockets have room for.
			if s.payload = s.payload[:min(len(s.payload), size*MaxPackets)]; len(s.payload) > size {
				compare(t, s, size)
			}
		}
	})
}

// zeroChecksumOfFirst changes the payload so that the checksum of the first of the
// packets that are cut from it comes out as 0.
func (s spec) zeroChecksumOfFirst(size int) spec {
	if len(s.payload) <= size || size < 2 {
		return s
	}
	first := s
	first.payload = s.payload[:size]
	s.payload = append(first.zeroChecksum().payload, s.payload[size:]...)
	return s
}

// The kernel completes a checksum to just the same.
func TestKernelCompletes(t *testing.T) {
	w := newWire(t)
	r := newRand(t)
	for i := range 200 {
		s, _ := randomSuper(r)
		s.payload = s.payload[:min(len(s.payload), 2000)]
		if i%4 == 0 && len(s.payload) > 1 {
			s = s.zeroChecksum()
		}
		h, p := s.super(0)
		h.Type = None
		if err := w.put(h, p); err != nil {
			t.Fatal(err)
		}
		if err := Complete(h, p); err != nil {
			t.Fatal(err)
		}
		if d := sameBytes(w.arrived(1), [][]byte{p}); d != "" {
			t.Fatalf("%+v: the kernel makes %s", h, d)
		}
	}
}

// What a Joiner writes to a TUN device, and the kernel has to cut to pass it on,
// is what the Joiner was given, one hop on.
func TestKernelCutsJoined(t *testing.T) {
	if err := lab.TUN(); err != nil {
		t.Skip(err)
	}
	w := newWire(t)
	fd := w.tun("tun0")
	w.Sysctl("net.ipv4.ip_forward", "1")
	w.Run("sh", "-ec", fmt.Sprintf(`
		ip link set tun0 mtu 65535 up
		ip addr add 10.1.75.1/24 dev x0
		ip neigh add 10.1.75.3 lladdr %v dev x0
		ip route add 10.1.74.0/24 dev tun0`, net.HardwareAddr(farMAC[:])))
	datagrams := w.datagrams()

	r := newRand(t)
	joined := map[uint8]int{}
	for range 60 {
		var runs [][][]byte
		for i := range 1 + r.IntN(6) {
			s := oneOf(r, tcpSpec, udpSpec)(1 + r.IntN(oneOf(r, 10, 1500)))
			s.id, s.seq, s.tos, s.ttl = uint16(r.Uint32()), r.Uint32(), byte(r.Uint32())&0xfc|2, 64
			s.from = uint16(1000 * (1 + i))
			s.flags |= oneOf[byte](r, 0, 0x40)
			run := plainRun(s, 1+r.IntN(40))
			for k, p := range run {
				if s.protocol == protocolTCP {
					p[ipHeader+13] |= oneOf[byte](r, 0, 0, 0, 0, 0, 0, psh, fin|psh)
					if k%7 == 0 {
						p[ipHeader+13] |= cwr
					}
					repair(p)
				}
				if r.IntN(20) == 0 {
					p[len(p)-1] ^= 1 // its receiver will see that
				}
			}
			runs = append(runs, run)
		}
		var given, want [][]byte
		for len(runs) > 0 {
			i := r.IntN(len(runs))
			given = append(given, runs[i][0])
			if runs[i] = runs[i][1:]; len(runs[i]) == 0 {
				runs = append(runs[:i], runs[i+1:]...)
			}
		}
		j := NewJoiner(datagrams, func(h Header, pieces [][]byte) {
			joined[h.Type]++
			header := make([]byte, HeaderLen)
			h.Put(header)
			if _, err := unix.Writev(fd, append([][]byte{header}, pieces...)); err != nil {
				t.Errorf("writing %+v, %d pieces: %v", h, len(pieces), err)
			}
		})
		for _, p := range given {
			q := bytes.Clone(p)
			q[8]--
			want = append(want, repairIP(q))
			j.Add(p)
		}
		j.Flush()
		if t.Failed() {
			return
		}
		if d := sameFlows(w.arrived(len(want)), want); d != "" {
			t.Fatal(d)
		}
	}
	t.Logf("writes by type: %v", joined)
	for _, typ := range []uint8{None, TCP4, TCP4 | TCPCE, UDP} {
		if joined[typ] == 0 && (typ != UDP || datagrams) {
			t.Errorf("no write is of type %d: that tests nothing", typ)
		}
	}
}

// tun makes a TUN device that takes packets with virtio-net headers.
func (w *wire) tun(name string) (fd int) {
	w.t.Helper()
	err := w.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("open", err)
		}
		w.t.Cleanup(func() { unix.Close(fd) })
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	})
	if err != nil {
		w.t.Fatalf("making TUN device %s: %v", name, err)
	}
	return fd
}
