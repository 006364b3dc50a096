package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"
)

const (
	// bufferSize is what the kernel may queue on the socket in either
	// direction: at 10 Gbit/s, some 5 ms of datagrams.
	bufferSize = 7 << 20

	// maxSegments is the most datagrams the kernel cuts one message into,
	// UDP_MAX_SEGMENTS in include/linux/udp.h (128 since Linux 6.9).
	maxSegments = 64

	// maxMessage is the most payload of one message: what fits an IPv4 packet.
	// It holds for a message that is to be cut, too (udp_sendmsg).
	maxMessage = 65535 - overhead

	// receiveMessages is how many messages one system call receives. With
	// UDP_GRO each may hold 64 KiB.
	receiveMessages = 64
)

// datagram is a packet to be sent to a host.
type datagram struct {
	host uint32
	data []byte
}

// group is a number of consecutive datagrams that are sent as one message, for
// the kernel to cut into datagrams of the size of the first.
type group struct{ first, n, bytes int }

// groupBy appends to groups those that datagrams are best sent in: as few as the
// rules of UDP_SEGMENT allow, which are that all have one destination and one
// size, but for the last, which may be shorter.
func groupBy(groups []group, datagrams []datagram, most int) []group {
	for i := range datagrams {
		d := &datagrams[i]
		if len(groups) > 0 && i > 0 {
			g := &groups[len(groups)-1]
			first, last := &datagrams[g.first], &datagrams[i-1]
			if d.host == first.host && len(d.data) <= len(first.data) && len(last.data) == len(first.data) &&
				g.n < most && g.bytes+len(d.data) <= maxMessage {
				g.n++
				g.bytes += len(d.data)
				continue
			}
		}
		groups = append(groups, group{first: i, n: 1, bytes: len(d.data)})
	}
	return groups
}

// cut splits off the first datagram of what the kernel joined into one message
// from datagrams of the given size, the last of which may be shorter. Size 0
// means that nothing was joined.
func cut(message []byte, size int) (first, rest []byte) {
	if size <= 0 || size >= len(message) {
		return message, nil
	}
	return message[:size], message[size:]
}

// socket sends and receives datagrams in batches, with the kernel cutting and
// joining messages of up to 64 KiB where it can (UDP_SEGMENT, Linux 4.18, and
// UDP_GRO, Linux 5.0): the way through the kernel's network stack is then paid
// once per message and not per datagram. One goroutine may send while another
// receives.
type socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	port uint16
	// joins and cuts tell whether the kernel joins received datagrams, and cuts
	// messages sent. cuts belongs to the sending goroutine.
	joins, cuts bool

	out sendBatch
	in  receiveBatch

	sendFailed rate.Sometimes
}

// mmsghdr is struct mmsghdr of recvmmsg(2), which x/sys/unix does not have.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// sendBatch is what sendmmsg reads: for each message its destination, segment
// size and a list of pieces. It is filled anew for each call and never grows.
type sendBatch struct {
	msgs   []mmsghdr
	names  []unix.RawSockaddrInet4
	pieces []unix.Iovec
	sizes  []segmentSize
	groups []group

	call       func(fd uintptr) bool // method value, made once because making it allocates
	next, have int                   // the messages to send
	sent       int
	err        error
}

// segmentSize is a control message as UDP_SEGMENT (a uint16) and UDP_GRO (an
// int) have it.
type segmentSize struct {
	hdr  unix.Cmsghdr
	data [8]byte
}

// receiveBatch is what recvmmsg fills.
type receiveBatch struct {
	msgs   []mmsghdr
	names  []unix.RawSockaddrInet4
	pieces []unix.Iovec
	sizes  []segmentSize
	slots  [][]byte

	call func(fd uintptr) bool
	n    int
	err  error
}

// openSocket binds to the given address.
func openSocket(local netip.AddrPort) (*socket, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { setBuffers(int(fd)) })
	}}
	conn, err := config.ListenPacket(context.Background(), "udp4", local.String())
	if err != nil {
		hint := ""
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			hint = ": another process, probably another flanneld, has that port; stop it or choose another Port for the whole cluster"
		case errors.Is(err, unix.EADDRNOTAVAIL):
			hint = ": this host does not have that address any more"
		}
		return nil, fmt.Errorf("opening the udp backend's socket on %v: %w%s", local, err, hint)
	}
	s := &socket{
		conn:       conn.(*net.UDPConn),
		port:       local.Port(),
		sendFailed: rate.Sometimes{Interval: logInterval},
	}
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the udp backend's socket on %v: %w", local, err), conn.Close())
	}
	// An old kernel does not know these options. Then everything works as well,
	// only slower.
	_ = s.raw.Control(func(fd uintptr) {
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.cuts = err == nil
		s.joins = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	})
	s.out.call, s.in.call = s.sendmmsg, s.recvmmsg
	return s, nil
}

// setBuffers makes the socket's buffers as large as wanted, or as large as the
// sysctls rmem_max and wmem_max let a process without CAP_NET_ADMIN.
func setBuffers(fd int) {
	for _, opt := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt[0], bufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt[1], bufferSize)
		}
	}
}

// describe says which of the kernel's offloads are used.
func (s *socket) describe() string {
	switch {
	case s.cuts && s.joins:
		return "with UDP segmentation offload"
	case s.cuts:
		return "with UDP segmentation offload for sending only (receiving needs Linux 5.0)"
	case s.joins:
		return "with UDP segmentation offload for receiving only"
	}
	return "without UDP segmentation offload (Linux 5.0 has it)"
}

// close ends send and receive, which return net.ErrClosed from then on.
func (s *socket) close() error { return s.conn.Close() }

// prepare allocates what send and receive need: send takes at most n datagrams
// at once, receive fills slots, leaving headroom bytes free in front.
func (s *socket) prepare(n int, slots [][]byte, headroom int) {
	out := &s.out
	out.msgs = make([]mmsghdr, n)
	out.names = make([]unix.RawSockaddrInet4, n)
	out.pieces = make([]unix.Iovec, n)
	out.sizes = make([]segmentSize, n)
	out.groups = make([]group, 0, n)
	for i := range n {
		out.names[i].Family = unix.AF_INET
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&out.names[i].Port))[:], s.port)
		h := &out.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&out.names[i]))
		h.Namelen = unix.SizeofSockaddrInet4
		c := &out.sizes[i].hdr
		c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		c.SetLen(unix.CmsgLen(2))
	}

	in := &s.in
	n = len(slots)
	in.slots = slots
	in.msgs = make([]mmsghdr, n)
	in.names = make([]unix.RawSockaddrInet4, n)
	in.pieces = make([]unix.Iovec, n)
	in.sizes = make([]segmentSize, n)
	for i := range n {
		in.pieces[i].Base = &slots[i][headroom]
		in.pieces[i].SetLen(len(slots[i]) - headroom)
		h := &in.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&in.names[i]))
		h.Iov = &in.pieces[i]
		h.SetIovlen(1)
		h.Control = (*byte)(unsafe.Pointer(&in.sizes[i]))
	}
	in.reset(n)
}

// reset puts back the lengths that recvmmsg has written into the first n
// messages.
func (in *receiveBatch) reset(n int) {
	for i := range n {
		h := &in.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet4
		h.SetControllen(int(unsafe.Sizeof(segmentSize{})))
	}
}

// send sends the datagrams in order and returns how many the kernel refused. A
// datagram that is refused, whatever the reason (no route to its host, a
// firewall's rule, an ICMP error that came in), does not keep the others from
// being sent. The error is of the socket itself: it is closed.
func (s *socket) send(datagrams []datagram) (refused int, err error) {
	most := 1
	if s.cuts {
		most = maxSegments
	}
	return s.sendInGroups(datagrams, most)
}

func (s *socket) sendInGroups(datagrams []datagram, most int) (refused int, err error) {
	for len(datagrams) > 0 {
		sent, stuck, reason, err := s.sendSome(datagrams, most)
		if err != nil {
			return refused + len(datagrams), err
		}
		datagrams = datagrams[sent:]
		if reason == nil {
			continue
		}
		switch {
		case stuck > 1 && s.shouldSendSingly(reason):
			again, err := s.sendInGroups(datagrams[:stuck], 1)
			refused += again
			if err != nil {
				return refused + len(datagrams) - stuck, err
			}
		default:
			refused += stuck
			s.sendFailed.Do(func() {
				klog.Warningf("udp: sending to %v: %v (further failures to send within %v are only counted)", addrOf(datagrams[0].host), reason, logInterval)
			})
		}
		datagrams = datagrams[stuck:]
		if !s.cuts {
			most = 1
		}
	}
	return refused, nil
}

// shouldSendSingly judges the error of a message that was to be cut.
func (s *socket) shouldSendSingly(reason error) bool {
	switch {
	case errors.Is(reason, unix.EIO):
		// The interface cannot compute checksums, and the kernel does not do it
		// in its stead when it cuts (udp_send_skb in net/ipv4/udp.c).
		klog.Warningf("udp: the interface cannot segment UDP messages (no transmit checksum offload); sending each datagram by itself")
		s.cuts = false
		return true
	case errors.Is(reason, unix.EMSGSIZE), errors.Is(reason, unix.EINVAL):
		// The same function's answer, the latter in older kernels, when a
		// datagram is larger than the path to this host allows: datagrams sent
		// singly are fragmented, messages are not cut into fragments.
		return true
	}
	return false
}

// sendSome sends as many of the datagrams as go without an error: sent. When
// there was one, reason says so, and stuck is the number of datagrams, after
// those sent, that were one message with that error.
func (s *socket) sendSome(datagrams []datagram, most int) (sent, stuck int, reason, err error) {
	out := &s.out
	out.groups = groupBy(out.groups[:0], datagrams, most)
	for i := range datagrams {
		d := datagrams[i].data
		out.pieces[i].Base = unsafe.SliceData(d)
		out.pieces[i].SetLen(len(d))
	}
	for i, g := range out.groups {
		binary.BigEndian.PutUint32(out.names[i].Addr[:], datagrams[g.first].host)
		h := &out.msgs[i].hdr
		h.Iov = &out.pieces[g.first]
		h.SetIovlen(g.n)
		h.Control = nil
		h.SetControllen(0)
		if g.n > 1 {
			binary.NativeEndian.PutUint16(out.sizes[i].data[:], uint16(len(datagrams[g.first].data)))
			h.Control = (*byte)(unsafe.Pointer(&out.sizes[i]))
			h.SetControllen(unix.CmsgSpace(2))
		}
	}
	out.next, out.have = 0, len(out.groups)
	for out.next < out.have {
		// Write waits while the socket's buffer is full, so that a congested
		// interface slows down the reading from the device.
		if err := s.raw.Write(out.call); err != nil {
			return sent, 0, nil, err
		}
		for range out.sent {
			sent += out.groups[out.next].n
			out.next++
		}
		if out.err != nil {
			return sent, out.groups[out.next].n, out.err, nil
		}
	}
	return sent, 0, nil, nil
}

// sendmmsg is one call of sendmmsg(2), which returns the number of messages
// sent before the first that failed, and an error only if that is 0. It reports
// whether the call came to an end, as RawConn.Write wants it.
func (s *socket) sendmmsg(fd uintptr) bool {
	out := &s.out
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&out.msgs[out.next])), uintptr(out.have-out.next), unix.MSG_DONTWAIT, 0, 0)
		out.sent, out.err = int(n), nil
		switch errno {
		case 0:
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		out.sent, out.err = 0, os.NewSyscallError("sendmmsg", errno)
		return true
	}
}

// receive waits for datagrams and returns the number of messages that message
// then yields. An error other than net.ErrClosed is of that moment only.
func (s *socket) receive() (messages int, err error) {
	in := &s.in
	in.reset(in.n) // the kernel wrote to those only
	in.n = 0
	if err := s.raw.Read(in.call); err != nil {
		return 0, err
	}
	return in.n, in.err
}

func (s *socket) recvmmsg(fd uintptr) bool {
	in := &s.in
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.msgs[0])), uintptr(len(in.msgs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			in.n, in.err = int(n), nil
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		in.n, in.err = 0, os.NewSyscallError("recvmmsg", errno)
		return true
	}
}

// message is the i-th message of the last receive: whom it is from, the slot
// that holds it, its length, and the size of the datagrams it was joined from,
// 0 if it is a single one.
func (s *socket) message(i int) (from uint32, slot []byte, n, size int) {
	in := &s.in
	m := &in.msgs[i]
	from = binary.BigEndian.Uint32(in.names[i].Addr[:])
	if c := &in.sizes[i]; m.hdr.Controllen >= unix.SizeofCmsghdr && c.hdr.Level == unix.SOL_UDP && c.hdr.Type == unix.UDP_GRO {
		size = int(binary.NativeEndian.Uint32(c.data[:]))
	}
	return from, in.slots[i], int(m.len), size
}

// logInterval is how often a failure that may hit every packet is logged.
const logInterval = 10 * time.Second
