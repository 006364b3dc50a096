package gso

import "encoding/binary"

// HeaderLen is the length in bytes of a virtio-net header, without the fields of
// later revisions (TUNSETVNETHDRSZ, 10 unless somebody changes it).
const HeaderLen = 10

// The values of Header.Flags and Header.Type, VIRTIO_NET_HDR_* in
// include/uapi/linux/virtio_net.h.
const (
	NeedsChecksum = 1 // flag: the checksum is to be completed

	None  = 0 // type: not a super-packet
	TCP4  = 1
	UDP   = 5    // VIRTIO_NET_HDR_GSO_UDP_L4: datagrams, not fragments of one
	TCPCE = 0x80 // added to TCP4: the first segment has CWR
)

// A Header is a virtio-net header, struct virtio_net_hdr: what a packet from or
// to a TUN device is besides its bytes.
type Header struct {
	Flags uint8
	Type  uint8
	// Headers is the length in bytes of the headers of IP and what is above it.
	// The kernel says it as a hint only.
	Headers uint16
	// Size is the payload in bytes of each packet that a super-packet stands for,
	// but for the last, which may have less.
	Size uint16
	// With NeedsChecksum: the checksum covers all from Start to the end and goes
	// to Start + Offset, where the sum of the pseudo-header is by now.
	Start, Offset uint16
}

// ParseHeader reads a header in the byte order of the machine, as TUN devices
// have it. b has HeaderLen bytes at least.
func ParseHeader(b []byte) Header {
	_ = b[HeaderLen-1]
	return Header{
		Flags:   b[0],
		Type:    b[1],
		Headers: binary.NativeEndian.Uint16(b[2:]),
		Size:    binary.NativeEndian.Uint16(b[4:]),
		Start:   binary.NativeEndian.Uint16(b[6:]),
		Offset:  binary.NativeEndian.Uint16(b[8:]),
	}
}

// Put writes the header to b, which has HeaderLen bytes at least.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1] = h.Flags, h.Type
	binary.NativeEndian.PutUint16(b[2:], h.Headers)
	binary.NativeEndian.PutUint16(b[4:], h.Size)
	binary.NativeEndian.PutUint16(b[6:], h.Start)
	binary.NativeEndian.PutUint16(b[8:], h.Offset)
}
