package udp

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiveMessages is how many messages one system call receives. With UDP_GRO
// each may hold 64 KiB.
const receiveMessages = 16

// receiver receives datagrams in batches. With UDP_GRO the kernel joins those of
// one sender that are of one size, of which the last may be shorter, to one
// message.
type receiver struct {
	*socket
	slots    [][]byte
	messages []mmsghdr
	names    []unix.RawSockaddrInet4
	pieces   []unix.Iovec
	controls []receiveControl
	n        int // messages of the last batch
}

// receiveControl has room for the control messages of IP_RECVTOS and UDP_GRO.
type receiveControl [2 * (unix.SizeofCmsghdr + 8)]byte

// received is one message.
type received struct {
	from uint32
	tos  byte
	data []byte
	size int // of the datagrams that were joined, 0 if it is a single one
}

// newReceiver makes one that fills the slots.
func newReceiver(s *socket, slots [][]byte) *receiver {
	n := len(slots)
	in := &receiver{
		socket:   s,
		slots:    slots,
		messages: make([]mmsghdr, n),
		names:    make([]unix.RawSockaddrInet4, n),
		pieces:   make([]unix.Iovec, n),
		controls: make([]receiveControl, n),
		n:        n,
	}
	for i := range n {
		setPiece(&in.pieces[i], slots[i])
		h := &in.messages[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&in.names[i]))
		h.Iov = &in.pieces[i]
		h.SetIovlen(1)
		h.Control = &in.controls[i][0]
	}
	return in
}

// receive receives a batch and returns the number of its messages. Without one to
// be had at once it is unix.EAGAIN.
func (in *receiver) receive() (messages int, err error) {
	for i := range in.n { // that the kernel has written to
		h := &in.messages[i].hdr
		h.Namelen = unix.SizeofSockaddrInet4
		h.SetControllen(len(in.controls[i]))
	}
	in.n = 0
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(in.fd), uintptr(unsafe.Pointer(&in.messages[0])), uintptr(len(in.messages)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			in.n = int(n)
			return in.n, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, unix.EAGAIN
		}
		return 0, os.NewSyscallError("recvmmsg", errno)
	}
}

// message is the i-th message of the last batch.
func (in *receiver) message(i int) received {
	m := &in.messages[i]
	r := received{from: binary.BigEndian.Uint32(in.names[i].Addr[:]), data: in.slots[i][:m.len]}
	rest := in.controls[i][:m.hdr.Controllen]
	for len(rest) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		length := int(h.Len)
		if length < unix.SizeofCmsghdr || length > len(rest) {
			break
		}
		data := rest[unix.CmsgLen(0):length]
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			r.tos = data[0]
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			r.size = int(binary.NativeEndian.Uint32(data))
		}
		rest = rest[min(unix.CmsgSpace(length-unix.CmsgLen(0)), len(rest)):]
	}
	return r
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
