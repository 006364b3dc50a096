package gso

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var seed = flag.Uint64("seed", 0, "of the property tests; 0 is another one each time")

// newRand is a source of numbers for a property test; a test that fails prints
// how to have the same ones again.
func newRand(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: -seed %d", s)
		}
	})
	return rand.New(rand.NewPCG(s, 0))
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// oneOf picks one of some values.
func oneOf[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// spec is what makes a TCP packet or a UDP datagram.
type spec struct {
	protocol   byte
	tos, ttl   byte
	id, frag   uint16 // frag has the flags and the offset of a fragment
	src, dst   uint32
	ipOptions  []byte
	from, to   uint16 // ports
	seq, ack   uint32 // from here on TCP only
	offset     byte   // the low half of the byte with the header's length
	flags      byte
	window     uint16
	urgent     uint16
	tcpOptions []byte
	payload    []byte
}

// tcpSpec and udpSpec are packets like those of a connection between containers.
func tcpSpec(payload int) spec {
	s := udpSpec(payload)
	s.protocol, s.flags, s.seq, s.ack, s.window = protocolTCP, ack, 1000, 2000, 501
	s.tcpOptions = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2} // a timestamp
	return s
}

func udpSpec(payload int) spec {
	s := spec{protocol: protocolUDP, ttl: 63, id: 7, frag: 0x4000, src: 0x0a014a02, dst: 0x0a014b03, from: 40000, to: 5001}
	s.payload = make([]byte, payload)
	for i := range s.payload {
		s.payload[i] = byte(i * 7)
	}
	return s
}

func (s spec) headers() int {
	if s.protocol == protocolUDP {
		return ipHeader + len(s.ipOptions) + udpHeader
	}
	return ipHeader + len(s.ipOptions) + tcpHeader + len(s.tcpOptions)
}

// packet makes the packet, with checksums that are right.
func (s spec) packet() []byte {
	b := make([]byte, ipHeader, s.headers()+len(s.payload))
	ip := ipHeader + len(s.ipOptions)
	b[0] = 4<<4 | byte(ip/4)
	b[1] = s.tos
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	binary.BigEndian.PutUint16(b[4:], s.id)
	binary.BigEndian.PutUint16(b[6:], s.frag)
	b[8], b[9] = s.ttl, s.protocol
	binary.BigEndian.PutUint32(b[12:], s.src)
	binary.BigEndian.PutUint32(b[16:], s.dst)
	b = append(b, s.ipOptions...)
	b = binary.BigEndian.AppendUint16(b, s.from)
	b = binary.BigEndian.AppendUint16(b, s.to)
	if s.protocol == protocolUDP {
		b = binary.BigEndian.AppendUint16(b, uint16(cap(b)-ip))
		b = append(b, 0, 0)
	} else {
		b = binary.BigEndian.AppendUint32(b, s.seq)
		b = binary.BigEndian.AppendUint32(b, s.ack)
		b = append(b, byte(5+len(s.tcpOptions)/4)<<4|s.offset, s.flags)
		b = binary.BigEndian.AppendUint16(b, s.window)
		b = append(b, 0, 0)
		b = binary.BigEndian.AppendUint16(b, s.urgent)
		b = append(b, s.tcpOptions...)
	}
	return repair(append(b, s.payload...))
}

// super makes the super-packet that is to be cut by size, as the kernel has it:
// the sum of the pseudo-header stands where the checksum is to go.
func (s spec) super(size int) (Header, []byte) {
	p := s.packet()
	ip := ipHeader + len(s.ipOptions)
	h := Header{Flags: NeedsChecksum, Type: UDP, Headers: uint16(s.headers()), Size: uint16(size), Start: uint16(ip), Offset: udpChecksum}
	if s.protocol == protocolTCP {
		h.Type, h.Offset = TCP4, tcpChecksum
		if s.flags&cwr != 0 {
			h.Type |= TCPCE
		}
	}
	binary.BigEndian.PutUint16(p[ip+int(h.Offset):], plainSum(plainPseudo(p)))
	return h, p
}

// plainSum is the one's complement sum of RFC 1071 of an even number of bytes, or
// of an odd number and a zero.
func plainSum(b []byte) uint16 {
	sum := 0
	for i, x := range b {
		if i%2 == 0 {
			sum += int(x) << 8
		} else {
			sum += int(x)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// plainPseudo is the pseudo-header of TCP or UDP in a packet.
func plainPseudo(p []byte) []byte {
	length := len(p) - int(p[0]&0x0f)*4
	return append(bytes.Clone(p[12:20]), 0, p[9], byte(length>>8), byte(length))
}

// checksumAt is where a packet's TCP or UDP checksum is, 0 if it has none.
func checksumAt(p []byte) int {
	at := int(p[0]&0x0f) * 4
	switch {
	case at < ipHeader || len(p) < at+udpHeader:
		return 0
	case p[9] == protocolUDP:
		return at + udpChecksum
	case p[9] == protocolTCP && len(p) >= at+tcpHeader:
		return at + tcpChecksum
	}
	return 0
}

// repair puts the right checksums into a packet.
func repair(p []byte) []byte {
	if at := checksumAt(p); at > 0 {
		p[at], p[at+1] = 0, 0
		sum := ^plainSum(append(plainPseudo(p), p[p[0]&0x0f*4:]...))
		if sum == 0 && p[9] == protocolUDP {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(p[at:], sum)
	}
	return repairIP(p)
}

func repairIP(p []byte) []byte {
	if n := int(p[0]&0x0f) * 4; n >= ipHeader && n <= len(p) {
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^plainSum(p[:n]))
	}
	return p
}

// right reports whether the checksums of a packet are, as a receiver sees it that
// knows no UDP without a checksum.
func right(p []byte) bool {
	return plainSum(p[:p[0]&0x0f*4]) == 0xffff &&
		plainSum(append(plainPseudo(p), p[p[0]&0x0f*4:]...)) == 0xffff
}

// plainCut cuts a super-packet in the plainest way. It reports false for what is
// none, or cannot be cut.
func plainCut(h Header, p []byte) (packets [][]byte, ok bool) {
	ip, size := int(p[0]&0x0f)*4, int(h.Size)
	fragment := binary.BigEndian.Uint16(p[6:])&0x3fff != 0
	if ip < ipHeader || size == 0 || fragment {
		return nil, false
	}
	headers := ip + udpHeader
	switch {
	case p[9] == protocolUDP && h.Type == UDP:
	case p[9] == protocolTCP && (h.Type == TCP4 || h.Type == TCP4|TCPCE):
		if len(p) < ip+tcpHeader || p[ip+12]>>4 < 5 {
			return nil, false
		}
		headers = ip + int(p[ip+12]>>4)*4
	default:
		return nil, false
	}
	if len(p) <= headers {
		return nil, false
	}
	for at := headers; at < len(p); at += size {
		chunk := p[at:min(at+size, len(p))]
		q := append(bytes.Clone(p[:headers]), chunk...)
		binary.BigEndian.PutUint16(q[2:], uint16(len(q)))
		binary.BigEndian.PutUint16(q[4:], binary.BigEndian.Uint16(p[4:])+uint16(len(packets)))
		if p[9] == protocolUDP {
			binary.BigEndian.PutUint16(q[ip+4:], uint16(len(q)-ip))
		} else {
			binary.BigEndian.PutUint32(q[ip+4:], binary.BigEndian.Uint32(p[ip+4:])+uint32(at-headers))
			if at > headers {
				q[ip+13] &^= cwr
			}
			if at+size < len(p) {
				q[ip+13] &^= fin | psh
			}
		}
		packets = append(packets, repair(q))
	}
	return packets, true
}

// randomSuper makes a super-packet of TCP or UDP of any kind that can be cut, and
// says by what size.
func randomSuper(r *rand.Rand) (s spec, size int) {
	s = spec{
		protocol: oneOf[byte](r, protocolTCP, protocolUDP),
		tos:      byte(r.Uint32()),
		ttl:      byte(r.Uint32()),
		id:       oneOf(r, uint16(r.Uint32()), uint16(0x10000-r.IntN(50))),
		frag:     oneOf[uint16](r, 0, 0x4000, 0x4000, 0x8000, 0xc000),
		src:      oneOf(r, r.Uint32(), 0, 0xffffffff), dst: oneOf(r, r.Uint32(), 0, 0xffffffff), // where sums carry, and where they do not
		from: uint16(r.Uint32()), to: uint16(r.Uint32()),
	}
	if r.IntN(3) == 0 {
		s.ipOptions = randomBytes(r, 4*r.IntN(11))
	}
	if s.protocol == protocolTCP {
		s.seq, s.ack = oneOf(r, r.Uint32(), -uint32(r.IntN(20000))), r.Uint32()
		s.offset, s.flags = oneOf(r, 0, byte(r.IntN(16))), oneOf(r, ack, ack|psh, ack|fin|psh, ack|cwr|0x40, byte(r.Uint32()))
		s.window, s.urgent = uint16(r.Uint32()), oneOf(r, 0, uint16(r.Uint32()))
		s.tcpOptions = randomBytes(r, 4*r.IntN(11))
	}
	room := maxPacket - s.headers()
	size = 1 + oneOf(r, r.IntN(4), r.IntN(100), r.IntN(1500), r.IntN(room))
	packets := 1 + oneOf(r, r.IntN(4), r.IntN(MaxPackets), r.IntN(100))
	last := oneOf(r, size, 1+r.IntN(size))
	s.payload = randomBytes(r, min((packets-1)*size+last, room))
	return s, size
}

// cutAll cuts a super-packet with a Cutter into whole packets.
func cutAll(h Header, p []byte) ([][]byte, error) {
	c, err := NewCutter(h, p)
	if err != nil {
		return nil, err
	}
	packets := make([][]byte, 0, c.Packets())
	for range cap(packets) {
		q := make([]byte, c.HeaderLen, c.Size())
		packets = append(packets, append(q, c.Next(q)...))
	}
	return packets, nil
}

// sameBytes says how lists of packets differ, "" if they do not.
func sameBytes(got, want [][]byte) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Sprintf("%d packets, want %d", len(got), len(want))
		case i >= len(want):
			return fmt.Sprintf("%d packets, want %d; the first too many is\n%s", len(got), len(want), show(got[i]))
		case !bytes.Equal(got[i], want[i]):
			return fmt.Sprintf("packet %d of %d is\n%s want\n%s", i, len(want), show(got[i]), show(want[i]))
		}
	}
	return ""
}

// show shows a packet, of which what follows the headers matters less.
func show(p []byte) string {
	const most = 140
	if len(p) <= most {
		return hex.Dump(p)
	}
	return hex.Dump(p[:most]) + fmt.Sprintf("and %d bytes more\n", len(p)-most)
}
