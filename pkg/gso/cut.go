package gso

import (
	"encoding/binary"
	"fmt"
)

const (
	ipHeader  = 20 // bytes, without options (RFC 791)
	tcpHeader = 20 // bytes, without options (RFC 9293)
	udpHeader = 8  // bytes (RFC 768)

	protocolTCP = 6
	protocolUDP = 17

	tcpChecksum = 16 // offset in the header
	udpChecksum = 6

	// Flags of TCP (RFC 9293 section 3.1, RFC 3168).
	fin = 0x01
	syn = 0x02
	rst = 0x04
	psh = 0x08
	ack = 0x10
	urg = 0x20
	cwr = 0x80
)

// Complete puts the checksum into a packet that is not a super-packet, where its
// header asks for that. It is an error if the header points outside its payload.
func Complete(h Header, packet []byte) error {
	if h.Flags&NeedsChecksum == 0 {
		return nil
	}
	start, at := int(h.Start), int(h.Start)+int(h.Offset)
	if at+2 > len(packet) || start < int(packet[0]&0x0f)*4 {
		return fmt.Errorf("its checksum, %d bytes after byte %d, is outside the payload of a packet of %d bytes", h.Offset, start, len(packet))
	}
	sum := ^Fold(Sum(0, packet[start:]))
	if sum == 0 {
		sum = 0xffff // the same number, and not UDP's "no checksum" (RFC 768)
	}
	binary.NativeEndian.PutUint16(packet[at:], sum)
	return nil
}

// A Cutter cuts one super-packet into the packets that it stands for, as
// tcp_gso_segment in net/ipv4/tcp_offload.c, __udp_gso_segment in udp_offload.c
// and inet_gso_segment in af_inet.c do.
type Cutter struct {
	// HeaderLen is the length in bytes of each packet's headers, those of IP and
	// what is above it; 120 at most.
	HeaderLen int

	packet []byte // the super-packet
	rest   []byte // its payload that is not cut yet
	size   int    // of the payload of each
	ip     int    // length of the IP header
	id     uint16 // of the next packet
	tcp    bool
	seq    uint32 // of the next packet
	// The flags of the first packet, which has no FIN and PSH, and of all, which
	// is what the last has.
	flags, all byte
	// Sums of what all packets' headers have in common, for IP's checksum and
	// for that of TCP or UDP.
	ipSum, sum uint64
}

// NewCutter begins to cut a super-packet: a whole IPv4 packet whose header says
// that its length is that of the slice. It is an error if the packet is not of
// the header's type or is none that can be cut.
func NewCutter(h Header, packet []byte) (c Cutter, err error) {
	c = Cutter{packet: packet, size: int(h.Size), ip: int(packet[0]&0x0f) * 4, id: binary.BigEndian.Uint16(packet[4:])}
	l4 := packet[min(c.ip, len(packet)):]
	switch protocol := packet[9]; {
	case c.ip < ipHeader:
		return c, fmt.Errorf("a super-packet has an IP header of %d bytes", c.ip)
	case h.Type&^TCPCE == TCP4 && protocol == protocolTCP && len(l4) >= tcpHeader:
		c.tcp = true
		c.HeaderLen = c.ip + int(l4[12]>>4)*4
	case h.Type == UDP && protocol == protocolUDP && len(l4) >= udpHeader:
		c.HeaderLen = c.ip + udpHeader
	default:
		return c, fmt.Errorf("a super-packet of type %d has protocol %d and %d bytes for it", h.Type, protocol, len(l4))
	}
	if binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 {
		return c, fmt.Errorf("a super-packet is a fragment")
	}
	if c.size == 0 || c.HeaderLen >= len(packet) || c.tcp && c.HeaderLen < c.ip+tcpHeader {
		return c, fmt.Errorf("a super-packet of %d bytes is to be cut by %d after a header of %d", len(packet), c.size, c.HeaderLen)
	}
	c.rest = packet[c.HeaderLen:]

	// All but length, ID and checksum.
	c.ipSum = Sum(uint64(binary.NativeEndian.Uint16(packet)), packet[6:10])
	c.ipSum = Sum(c.ipSum, packet[12:c.ip])
	c.sum = pseudo(packet, packet[9], 0)
	if !c.tcp {
		c.sum = Sum(c.sum, l4[:4]) // but for length and checksum
		return c, nil
	}
	c.seq = binary.BigEndian.Uint32(l4[4:])
	c.all = l4[13]
	c.flags = c.all &^ (fin | psh)
	c.sum = Sum(c.sum, l4[:4])                      // the ports
	c.sum = Sum(c.sum, l4[8:12])                    // the acknowledgement
	c.sum = Sum(c.sum, l4[14:16])                   // the window
	c.sum = Sum(c.sum, packet[c.ip+18:c.HeaderLen]) // the urgent pointer and options
	return c, nil
}

// Packets is how many packets are left to be cut.
func (c *Cutter) Packets() int { return (len(c.rest) + c.size - 1) / c.size }

// Size is the size of the next packet in bytes, 0 if there is none.
func (c *Cutter) Size() int {
	if len(c.rest) == 0 {
		return 0
	}
	return c.HeaderLen + min(c.size, len(c.rest))
}

// Next writes the headers of the next packet to header, which has HeaderLen bytes
// at least, and returns its payload, which is a part of the super-packet.
func (c *Cutter) Next(header []byte) (payload []byte) {
	payload = c.rest[:min(c.size, len(c.rest))]
	c.rest = c.rest[len(payload):]
	header = header[:c.HeaderLen]
	copy(header, c.packet)

	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(payload)))
	binary.BigEndian.PutUint16(header[4:], c.id)
	putChecksum(header[10:], add(c.ipSum, uint64(binary.NativeEndian.Uint32(header[2:]))))
	c.id++

	l4 := header[c.ip:]
	if !c.tcp {
		length := udpHeader + len(payload)
		binary.BigEndian.PutUint16(l4[4:], uint16(length))
		sum := ^Fold(Sum(add(c.sum, 2*word(uint16(length))), payload)) // it is in the pseudo-header as well
		if sum == 0 {
			sum = 0xffff // RFC 768
		}
		binary.NativeEndian.PutUint16(l4[udpChecksum:], sum)
		return payload
	}
	binary.BigEndian.PutUint32(l4[4:], c.seq)
	c.seq += uint32(len(payload))
	if len(c.rest) == 0 {
		c.flags |= c.all & (fin | psh)
	}
	l4[13] = c.flags
	c.flags &^= cwr
	sum := add(c.sum, uint64(binary.NativeEndian.Uint32(l4[4:]))+uint64(binary.NativeEndian.Uint16(l4[12:]))+
		word(uint16(c.HeaderLen-c.ip+len(payload))))
	putChecksum(l4[tcpChecksum:], Sum(sum, payload))
	return payload
}
