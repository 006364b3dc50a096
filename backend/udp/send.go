package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// maxSegments is the most datagrams the kernel cuts one message into,
	// UDP_MAX_SEGMENTS in include/linux/udp.h (128 since Linux 6.9).
	maxSegments = 64

	// maxMessage is the most payload of one message: what fits an IPv4 packet.
	// It holds for a message that is to be cut, too (udp_sendmsg).
	maxMessage = 65535 - overhead

	// sendMessages and sendDatagrams are the most that a sender collects.
	sendMessages  = 64
	sendDatagrams = 512
)

// sender collects datagrams and sends them in as few system calls and messages as
// the rules of UDP_SEGMENT allow, which are that all datagrams of a message have
// one destination, TOS and size, but for the last, which may be shorter. What has
// "don't fragment" set is sent in datagrams that have it too, and is not mixed with
// what has not (RFC 2003 section 3.1).
//
// A datagram lies in two pieces, the second of which may be empty. They must stay
// as they are until flush has returned.
type sender struct {
	*socket
	count *counters
	// tooLarge is called, from within flush, for a packet that does not fit the
	// path to its host in one piece and must not be sent in fragments.
	tooLarge func(host uint32, header, payload []byte)

	messages []message
	used     int  // of messages
	whole    bool // the socket's datagrams are not to be fragmented
	// Two for each datagram.
	pieces []unix.Iovec

	// What sendmmsg reads, by message.
	headers  []mmsghdr
	names    []unix.RawSockaddrInet4
	controls []sendControl
}

// message is a number of consecutive datagrams that are sent as one, for the
// kernel to cut into datagrams of the size of the first.
type message struct {
	host        uint32
	tos         byte
	whole       bool // not to be fragmented
	first, n    int  // datagrams
	size, bytes int  // of the first, and of all
	last        int  // size of the last
}

// sendControl is the control messages of one message: its TOS, and the size of
// segments where there is more than one. Each is as long as the kernel aligns it to
// (CMSG_SPACE in include/linux/socket.h): to the size of a word.
type sendControl struct {
	tosHeader  unix.Cmsghdr
	tos        [unsafe.Sizeof(uintptr(0))]byte // an int
	sizeHeader unix.Cmsghdr
	size       [unsafe.Sizeof(uintptr(0))]byte // a uint16
}

// That it has no gaps, on any architecture, or it does not compile.
const _ = -(unsafe.Sizeof(sendControl{}) ^ 2*(unix.SizeofCmsghdr+unsafe.Sizeof(uintptr(0))))

func newSender(s *socket, count *counters) *sender {
	out := &sender{
		socket:   s,
		count:    count,
		whole:    true, // see openSocket
		messages: make([]message, sendMessages),
		pieces:   make([]unix.Iovec, 0, 2*sendDatagrams),
		headers:  make([]mmsghdr, sendMessages),
		names:    make([]unix.RawSockaddrInet4, sendMessages),
		controls: make([]sendControl, sendMessages),
	}
	for i := range out.headers {
		out.names[i] = sockaddr(0, s.port)
		c := &out.controls[i]
		c.tosHeader.Level, c.tosHeader.Type = unix.SOL_IP, unix.IP_TOS
		c.tosHeader.SetLen(unix.CmsgLen(4))
		c.sizeHeader.Level, c.sizeHeader.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		c.sizeHeader.SetLen(unix.CmsgLen(2))
		h := &out.headers[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&out.names[i]))
		h.Namelen = unix.SizeofSockaddrInet4
		h.Control = (*byte)(unsafe.Pointer(c))
	}
	return out
}

// add takes a packet for a host. What was collected before may be sent by it.
func (out *sender) add(host uint32, tos byte, header, payload []byte) {
	size := len(header) + len(payload)
	if len(out.pieces) == cap(out.pieces) {
		out.flush()
	}
	n := len(out.pieces)
	m := message{host: host, tos: tos, whole: header[6]&dontFragment != 0, n: 1, size: size, bytes: size, last: size}
	if !out.joinLast(&m) {
		if out.used == len(out.messages) {
			out.flush()
			n = 0
		}
		m.first = n / 2
		out.messages[out.used] = m
		out.used++
	}
	out.pieces = out.pieces[:n+2]
	setPiece(&out.pieces[n], header)
	setPiece(&out.pieces[n+1], payload)
}

// joinLast makes a datagram part of the last message if that is allowed.
func (out *sender) joinLast(d *message) bool {
	if out.used == 0 || !out.cuts {
		return false
	}
	m := &out.messages[out.used-1]
	if m.host != d.host || m.tos != d.tos || m.whole != d.whole || d.size > m.size || m.last != m.size ||
		m.n == maxSegments || m.bytes+d.size > maxMessage {
		return false
	}
	m.n++
	m.bytes += d.size
	m.last = d.size
	return true
}

func setPiece(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// flush sends what was collected. Datagrams that cannot be sent are counted, and
// hold up no others: where the kernel has no room, as when a peer's address is not
// resolved, they are dropped, as a router does.
func (out *sender) flush() {
	for i := range out.used {
		out.fill(i, out.messages[i])
	}
	for next := 0; next < out.used; {
		end := next + 1
		for end < out.used && out.messages[end].whole == out.messages[next].whole {
			end++
		}
		err := out.setWhole(out.messages[next].whole)
		n := 0
		if err == nil {
			n, err = out.sendmmsg(next, end-next)
		}
		for range n {
			out.sent(out.messages[next])
			next++
		}
		if err != nil {
			out.refused(next, err)
			next++
		}
	}
	out.used, out.pieces = 0, out.pieces[:0]
}

// setWhole says whether datagrams may be sent in fragments, by this host or by a
// router on the way.
func (out *sender) setWhole(whole bool) error {
	if out.whole == whole {
		return nil
	}
	how := unix.IP_PMTUDISC_DONT
	if whole {
		how = unix.IP_PMTUDISC_DO
	}
	if err := unix.SetsockoptInt(out.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	out.whole = whole
	return nil
}

func (out *sender) fill(i int, m message) {
	binary.BigEndian.PutUint32(out.names[i].Addr[:], m.host)
	c := &out.controls[i]
	binary.NativeEndian.PutUint32(c.tos[:], uint32(m.tos))
	binary.NativeEndian.PutUint16(c.size[:], uint16(m.size))
	h := &out.headers[i].hdr
	h.Iov = &out.pieces[2*m.first]
	h.SetIovlen(2 * m.n)
	h.SetControllen(unix.CmsgSpace(4))
	if m.n > 1 {
		h.SetControllen(unix.CmsgSpace(4) + unix.CmsgSpace(2))
	}
}

// sendmmsg sends messages and returns how many went before the first that did not,
// for which there is an error then.
func (out *sender) sendmmsg(first, n int) (sent int, err error) {
	for {
		r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(out.fd), uintptr(unsafe.Pointer(&out.headers[first])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			// It has no error when some were sent, so that is for the next call.
			return int(r), nil
		case unix.EINTR:
			continue
		}
		return 0, os.NewSyscallError("sendmmsg", errno)
	}
}

func (out *sender) sent(m message) {
	out.count.sent.Add(uint64(m.n))
	out.count.sentBytes.Add(uint64(m.bytes))
	out.count.sentMessages.add(m.n)
}

// refused deals with the i-th message, which the kernel has refused to send.
func (out *sender) refused(i int, reason error) {
	m := out.messages[i]
	if m.n == 1 || !out.maySendSingly(m.host, reason) {
		out.drop(m, reason)
		return
	}
	sent := 0
	for k := range m.n {
		single := m
		single.first, single.n = m.first+k, 1
		if k == m.n-1 {
			single.size = m.last
		}
		single.bytes, single.last = single.size, single.size
		out.fill(i, single)
		if _, err := out.sendmmsg(i, 1); err != nil {
			out.drop(single, err)
		} else {
			out.sent(single)
			sent++
		}
	}
	if m.whole && sent == m.n && errors.Is(reason, unix.EINVAL) {
		out.stopCutting("the kernel cuts no UDP messages, although it knows how to", reason)
	}
}

// maySendSingly reports whether the datagrams of a message may go one by one,
// after the error the message as a whole met with.
func (out *sender) maySendSingly(host uint32, reason error) bool {
	switch {
	case errors.Is(reason, unix.EIO):
		// The interface cannot compute checksums, and the kernel does not do it
		// in its stead when it cuts, or an IPsec policy is in the way
		// (udp_send_skb in net/ipv4/udp.c, the former before Linux 6.11).
		out.stopCutting(fmt.Sprintf("no UDP messages are cut on the way to %v, as the interface has no transmit checksum offload or there is an IPsec policy", addrOf(host)), reason)
		return true
	case errors.Is(reason, unix.EMSGSIZE), errors.Is(reason, unix.EINVAL):
		// The same function's answer, the latter in older kernels, when a
		// datagram is larger than the path to this host allows. The last of a
		// message may be small enough.
		return true
	}
	return false
}

// stopCutting makes every datagram a message from now on.
func (out *sender) stopCutting(why string, reason error) {
	if _, due := out.count.failures.due("cutting", reason); out.cuts && due {
		klog.Warningf("udp: sending each datagram by itself from now on: %s (%v)", why, reason)
	}
	out.cuts = false
}

// drop deals with datagrams that cannot be sent.
func (out *sender) drop(m message, reason error) {
	if m.n == 1 && m.whole && errors.Is(reason, unix.EMSGSIZE) {
		out.tooLarge(m.host, piece(out.pieces[2*m.first]), piece(out.pieces[2*m.first+1]))
		return
	}
	out.count.sendErrors.Add(uint64(m.n))
	if more, due := out.count.failures.due("sending", reason); due {
		klog.Warningf("udp: sending to %v: %v%s", addrOf(m.host), reason, more)
	}
}

func piece(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }
