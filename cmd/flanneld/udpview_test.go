package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// arrival is a packet that was seen.
type arrival struct {
	packet []byte
	// from and tos are of the datagram that a peer by hand got the packet in.
	from netip.AddrPort
	tos  byte
}

// inbox collects what arrives, for the test to look at.
type inbox struct {
	mu   sync.Mutex
	all  []arrival
	more chan struct{} // closed at the next arrival, nil while nobody waits for it
}

func (b *inbox) add(a arrival) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, a)
	if b.more != nil {
		close(b.more)
		b.more = nil
	}
}

func (b *inbox) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = nil
}

// seen is what has arrived so far, in order.
func (b *inbox) seen() []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.all)
}

// await waits until enough says so of what has arrived, and returns that.
func (b *inbox) await(within time.Duration, enough func(all []arrival) bool) (all []arrival, ok bool) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		b.mu.Lock()
		all = slices.Clone(b.all)
		if b.more == nil {
			b.more = make(chan struct{})
		}
		more := b.more
		b.mu.Unlock()
		if enough(all) {
			return all, true
		}
		select {
		case <-more:
		case <-timer.C:
			return all, false
		}
	}
}

func packetsOf(all []arrival) (packets [][]byte) {
	for _, a := range all {
		packets = append(packets, a.packet)
	}
	return packets
}

// rawSocket makes a packet socket on a device of the node, which closes with the
// test. It gets packets of one protocol, 0 for none.
func rawSocket(t *testing.T, n *lab.Node, dev string, typ int, protocol uint16) *os.File {
	t.Helper()
	// Such a socket has its protocol in the byte order of the wire.
	var wire [2]byte
	binary.BigEndian.PutUint16(wire[:], protocol)
	protocol = binary.NativeEndian.Uint16(wire[:])
	var f *os.File
	err := n.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		// Bound before it gets anything: else packets of other devices come first.
		fd, err := unix.Socket(unix.AF_PACKET, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "packets of "+dev)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: i.Index}),
		)
	})
	if err != nil {
		t.Fatalf("opening a packet socket on %s of %s: %v", dev, n.Name, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// tap collects the IPv4 packets that come in by a device of the node and that
// are the test's.
func tap(t *testing.T, n *lab.Node, dev string, mine func(packet []byte) bool) *inbox {
	t.Helper()
	f := rawSocket(t, n, dev, unix.SOCK_DGRAM, unix.ETH_P_IP) // this type has no link-layer headers
	b := &inbox{}
	go func() {
		buf := make([]byte, 1<<17)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return // closed
			}
			if p := buf[:n]; mine(p) {
				b.add(arrival{packet: slices.Clone(p)})
			}
		}
	}()
	return b
}

// injector sends packets of any content from a node, as they are.
type injector struct {
	t        *testing.T
	f        *os.File
	ethernet []byte // header in front of each packet
}

// inject makes an injector by a device of the node, to who has this address of
// the link layer.
func inject(t *testing.T, n *lab.Node, dev string, to net.HardwareAddr) *injector {
	t.Helper()
	f := rawSocket(t, n, dev, unix.SOCK_RAW, 0)
	if err := control(f, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) }); err != nil {
		t.Fatalf("asking for virtio-net headers: %v", err)
	}
	from := macOf(t, n, dev)
	return &injector{t, f, slices.Concat(to, from, []byte{0x08, 0x00})}
}

// offload says how a packet is to be cut on its way; see struct virtio_net_hdr in
// include/uapi/linux/virtio_net.h.
type offload struct {
	kind byte // unix.VIRTIO_NET_HDR_GSO_...
	size int  // of the data in each part
}

// packets sends packets as they are.
func (i *injector) packets(all ...[]byte) {
	i.t.Helper()
	oneCPU(func() {
		for _, p := range all {
			i.write(make([]byte, 10), p)
		}
	})
}

// super sends a packet of TCP or UDP that is to be cut later, as a sender's
// kernel hands it to a device that can do that.
func (i *injector) super(p []byte, o offload) {
	i.t.Helper()
	ip := len(p) - len(payloadOf(p))
	at, header := 16, 0
	if p[9] == unix.IPPROTO_UDP {
		at, header = 6, ip+8
	} else {
		header = ip + int(p[ip+12]>>4)*4
	}
	// The checksum field holds that of the pseudo header, for the rest is not
	// known yet.
	p = slices.Clone(p)
	binary.BigEndian.PutUint16(p[ip+at:], sum16(pseudo(p, len(p)-ip)))
	h := make([]byte, 10)
	h[0], h[1] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, o.kind
	binary.NativeEndian.PutUint16(h[2:], uint16(len(i.ethernet)+header))
	binary.NativeEndian.PutUint16(h[4:], uint16(o.size))
	binary.NativeEndian.PutUint16(h[6:], uint16(len(i.ethernet)+ip))
	binary.NativeEndian.PutUint16(h[8:], uint16(at))
	oneCPU(func() { i.write(h, p) })
}

func (i *injector) write(header, p []byte) {
	i.t.Helper()
	if _, err := i.f.Write(slices.Concat(header, i.ethernet, p)); err != nil {
		i.t.Fatalf("sending %s: %v", describe(p), err)
	}
}

// oneCPU runs f on one CPU: packets that a thread sends by a veth pair pass it in
// order only while it stays on its CPU.
func oneCPU(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if unix.SchedGetaffinity(0, &all) == nil {
		for cpu := range 1024 {
			if all.IsSet(cpu) {
				one.Set(cpu)
				break
			}
		}
		if unix.SchedSetaffinity(0, &one) == nil {
			defer unix.SchedSetaffinity(0, &all)
		}
	}
	f()
}

// control runs f with the file's descriptor.
func control(f syscall.Conn, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(raw.Control(func(fd uintptr) { inner = do(int(fd)) }), inner)
}

func macOf(t *testing.T, n *lab.Node, dev string) (mac net.HardwareAddr) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			mac = i.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatalf("reading the address of %s in %s: %v", dev, n.Name, err)
	}
	return mac
}

// offloads switches what a device does for the kernel on or off: the cutting of
// super-packets and the checksums of what it sends, and the joining of what it
// receives.
func offloads(t *testing.T, n *lab.Node, dev string, sends, joins bool) {
	t.Helper()
	number := map[bool]uint32{true: 1}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, set := range [][2]uint32{
			{unix.ETHTOOL_STXCSUM, number[sends]}, {unix.ETHTOOL_STSO, number[sends]},
			{unix.ETHTOOL_SGSO, number[sends]}, {unix.ETHTOOL_SGRO, number[joins]},
		} {
			// struct ifreq with a pointer to struct ethtool_value.
			request := struct {
				name [unix.IFNAMSIZ]byte
				data *[2]uint32
				_    [16]byte
			}{data: &set}
			copy(request.name[:], dev)
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
				return os.NewSyscallError("ioctl SIOCETHTOOL", errno)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("setting the offloads of %s in %s: %v", dev, n.Name, err)
	}
}
