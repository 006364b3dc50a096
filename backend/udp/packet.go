package udp

import "encoding/binary"

const (
	// maxPacket is the size of the largest IPv4 packet (RFC 791).
	maxPacket = 65535

	ipHeader = 20 // bytes, without options

	dontFragment = 0x40 // in byte 6
)

// packetLen is the length of the IPv4 packet that b begins with, as its header
// says, or -1 if b does not begin with an IPv4 header. The checksum is not
// looked at: the kernel has made it or will check it.
func packetLen(b []byte) int {
	if len(b) < ipHeader || b[0]>>4 != 4 {
		return -1
	}
	header, total := headerLen(b), int(binary.BigEndian.Uint16(b[2:]))
	if header < ipHeader || total < header {
		return -1
	}
	return total
}

// headerLen is the length in bytes of an IPv4 packet's header.
func headerLen(packet []byte) int { return int(packet[0]&0x0f) * 4 }

// whole reports whether b is one IPv4 packet and nothing else.
func whole(b []byte) bool { return packetLen(b) == len(b) }

// decrementTTL takes one from the TTL of an IPv4 packet, which must not be 0.
func decrementTTL(packet []byte) {
	setWord(packet, 8, binary.BigEndian.Uint16(packet[8:])-1<<8)
}

// incrementTTL undoes decrementTTL.
func incrementTTL(packet []byte) {
	setWord(packet, 8, binary.BigEndian.Uint16(packet[8:])+1<<8)
}

// setTOS sets the TOS of an IPv4 packet.
func setTOS(packet []byte, tos byte) {
	setWord(packet, 0, uint16(packet[0])<<8|uint16(tos))
}

// setWord sets 16 bits of an IPv4 header and updates its checksum as RFC 1624
// equation 3 says: HC' = ~(~HC + ~m + m'). A checksum that was wrong stays wrong.
func setWord(packet []byte, at int, word uint16) {
	old := binary.BigEndian.Uint16(packet[at:])
	binary.BigEndian.PutUint16(packet[at:], word)
	sum := uint32(^binary.BigEndian.Uint16(packet[10:])) + uint32(^old) + uint32(word)
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(packet[10:], ^uint16(sum))
}
