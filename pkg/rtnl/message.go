package rtnl

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Netlink is in the host's byte order, but for addresses and ports.
var order = binary.NativeEndian

// Message is one netlink message without its header.
type Message struct {
	Type uint16
	Data []byte
}

// header is struct nlmsghdr.
type header struct {
	length   uint32
	kind     uint16
	flags    uint16
	sequence uint32
}

// parts splits what came in one datagram.
func parts(b []byte) iter.Seq2[header, []byte] {
	return func(yield func(header, []byte) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			h := header{order.Uint32(b), order.Uint16(b[4:]), order.Uint16(b[6:]), order.Uint32(b[8:])}
			if h.length < unix.SizeofNlMsghdr || int(h.length) > len(b) {
				return // cut off
			}
			if !yield(h, b[unix.SizeofNlMsghdr:h.length]) {
				return
			}
			b = b[min(align(int(h.length)), len(b)):]
		}
	}
}

// attributes splits what follows a message's fixed part.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(order.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
			if !yield(order.Uint16(b[2:])&^flags, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// align is NLMSG_ALIGN, and NLA_ALIGN too.
func align(n int) int { return (n + 3) &^ 3 }

// number reads an attribute of 32 bits; one of another size is 0.
func number(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return order.Uint32(b)
}

// address reads an attribute that is an IPv4 address; anything else is invalid.
func address(b []byte) netip.Addr {
	if len(b) != 4 {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(b))
}

func putNumber(b []byte, kind uint16, v uint32) []byte {
	b = order.AppendUint16(b, unix.SizeofNlAttr+4)
	b = order.AppendUint16(b, kind)
	return order.AppendUint32(b, v)
}

// putBytes adds an attribute with padding after it.
func putBytes(b []byte, kind uint16, v []byte) []byte {
	b = order.AppendUint16(b, uint16(unix.SizeofNlAttr+len(v)))
	b = order.AppendUint16(b, kind)
	b = append(b, v...)
	for range align(len(v)) - len(v) {
		b = append(b, 0)
	}
	return b
}

func putAddress(b []byte, kind uint16, a netip.Addr) []byte {
	four := a.As4()
	return putBytes(b, kind, four[:])
}
