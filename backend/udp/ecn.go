package udp

// The values of the last two bits of TOS (RFC 3168 section 5).
const (
	ecnMask = 0x03
	notECT  = 0x00 // the sender cannot do with congestion marks
	ect1    = 0x01
	ect0    = 0x02
	ce      = 0x03 // congestion experienced
)

// congestion combines the TOS of a packet with that of the datagram it came in, so
// that a mark which a router has put on the datagram gets to those who can slow
// down (RFC 6040 section 4.2, figure 4). It reports false if the packet is to be
// dropped, as that is the only sign of congestion that its sender understands.
//
// The other way it needs nothing but a copy: a datagram gets the TOS of its packet
// (section 4.1). Daemons that do not do so send datagrams with 0, which changes
// nothing here.
func congestion(inner, outer byte) (tos byte, ok bool) {
	switch outer & ecnMask {
	case ce:
		if inner&ecnMask == notECT {
			return inner, false
		}
		return inner | ce, true
	case ect1:
		if inner&ecnMask == ect0 {
			return inner&^ecnMask | ect1, true
		}
	}
	return inner, true
}
