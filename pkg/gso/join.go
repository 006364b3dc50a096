package gso

import "encoding/binary"

const (
	// MaxPackets is the most packets that a Joiner makes one super-packet of. It
	// is the most that the kernel makes one of when it joins UDP datagrams
	// (UDP_GRO_CNT_MAX in net/ipv4/udp_offload.c), and enough for 64 KiB of TCP
	// in packets of 1 KiB.
	MaxPackets = 64

	// maxFlows is how many super-packets are made at the same time, that many
	// flows may be mixed without loss of speed. The kernel has as many
	// (MAX_GRO_SKBS in net/core/gro.c).
	maxFlows = 8

	maxPacket = 65535 // bytes, of IPv4 (RFC 791)
)

// A Joiner joins packets into super-packets, by the rules of the kernel's own
// joining (tcp_gro_receive and udp_gro_receive_segment in net/ipv4) but for
// these: IDs always count up, as those of packets cut from a super-packet do, so
// that nothing of a packet is lost; and every checksum is verified here, as the
// kernel takes those of super-packets for right.
//
// It works on a batch: packets given to Add stay where they are and are handed to
// the function write as pieces of super-packets, the last of them when Flush is
// called. Packets of one flow are written in the order of their coming. A packet
// of which nothing is joined comes as one piece with the zero Header.
type Joiner struct {
	write func(h Header, pieces [][]byte)
	udp   bool

	// open are the super-packets in the making, the oldest first.
	open  [maxFlows]*super
	count int

	single [1][]byte
}

// super is a super-packet in the making, of packets so far.
type super struct {
	flow
	pieces   [][]byte // the first packet, and the payload of each further one
	headers  int      // length of the headers of each
	size     int      // of the payload of each
	bytes    int      // of the super-packet, with headers
	verified bool     // the first packet's checksums are right; those of others are

	id    uint16 // what the next packet ought to have
	seq   uint32
	flags byte
	last  byte // flags of the last packet
}

// flow is what tells packets of one flow from others.
type flow struct {
	addresses uint64
	ports     uint32
	protocol  uint8
}

// NewJoiner makes a Joiner that joins TCP, and datagrams if udp is true.
func NewJoiner(udp bool, write func(h Header, pieces [][]byte)) *Joiner {
	j := &Joiner{write: write, udp: udp}
	for i := range j.open {
		j.open[i] = &super{pieces: make([][]byte, 0, MaxPackets)}
	}
	return j
}

// Add takes a packet, which must be a whole IPv4 packet without a byte more. It
// belongs to the Joiner until Flush has returned, and is changed.
func (j *Joiner) Add(packet []byte) {
	f, headers, ok := classify(packet)
	if !ok {
		// A fragment, say, does not tell its flow. What it may belong to goes
		// first.
		for i := 0; i < j.count; {
			if j.open[i].addresses == f.addresses && j.open[i].protocol == f.protocol {
				j.close(i)
			} else {
				i++
			}
		}
		j.writeSingle(packet)
		return
	}
	for i := range j.count {
		s := j.open[i]
		if s.flow != f {
			continue
		}
		if s.fits(packet, headers) {
			right := intact(packet)
			if right && !s.verified {
				s.verified = intact(s.pieces[0])
			}
			if right && s.verified {
				if s.add(packet) {
					j.close(i)
				}
				return
			}
		}
		j.close(i)
		break
	}
	if !j.begins(packet, f, headers) {
		j.writeSingle(packet)
		return
	}
	if j.count == len(j.open) {
		j.close(0)
	}
	j.open[j.count].begin(packet, f, headers)
	j.count++
}

// Flush writes what is still in the making.
func (j *Joiner) Flush() {
	for j.count > 0 {
		j.close(0)
	}
}

func (j *Joiner) writeSingle(packet []byte) {
	j.single[0] = packet
	j.write(Header{}, j.single[:])
}

// close writes the i-th open super-packet.
func (j *Joiner) close(i int) {
	s := j.open[i]
	copy(j.open[i:j.count], j.open[i+1:j.count])
	j.count--
	j.open[j.count] = s
	j.write(s.finish(), s.pieces)
	clear(s.pieces)
}

// classify finds out the flow of a packet and the length of its headers. It
// reports false for packets that do not tell their flow, or are of none that is
// ever joined; addresses and protocol are known then.
func classify(p []byte) (f flow, headers int, ok bool) {
	f = flow{addresses: binary.NativeEndian.Uint64(p[12:]), protocol: p[9]}
	// No options, and no fragment.
	if p[0] != 4<<4|ipHeader/4 || binary.BigEndian.Uint16(p[6:])&0xbfff != 0 {
		return f, 0, false
	}
	switch f.protocol {
	case protocolTCP:
		if len(p) < ipHeader+tcpHeader {
			return f, 0, false
		}
		headers = ipHeader + int(p[ipHeader+12]>>4)*4
		ok = headers >= ipHeader+tcpHeader && headers <= len(p)
	case protocolUDP:
		headers = ipHeader + udpHeader
		ok = len(p) >= headers && int(binary.BigEndian.Uint16(p[ipHeader+4:])) == len(p)-ipHeader
	}
	if ok {
		f.ports = binary.NativeEndian.Uint32(p[ipHeader:])
	}
	return f, headers, ok
}

// begins reports whether a packet may be the first of a super-packet.
func (j *Joiner) begins(p []byte, f flow, headers int) bool {
	if len(p) == headers {
		return false
	}
	if f.protocol == protocolUDP {
		// Without a checksum there is nothing to verify.
		return j.udp && binary.NativeEndian.Uint16(p[ipHeader+udpChecksum:]) != 0
	}
	// The other half of byte 12 is reserved (RFC 9293), or AE (RFC 9768).
	return p[ipHeader+12]&0x0f == 0 && p[ipHeader+13]&(fin|syn|rst|psh|ack|urg) == ack
}

// begin makes s one of its first packet.
func (s *super) begin(p []byte, f flow, headers int) {
	s.flow = f
	s.pieces = append(s.pieces[:0], p)
	s.headers = headers
	s.size = len(p) - headers
	s.bytes = len(p)
	s.verified = false
	s.id = binary.BigEndian.Uint16(p[4:]) + 1
	if f.protocol == protocolTCP {
		s.seq = binary.BigEndian.Uint32(p[ipHeader+4:]) + uint32(s.size)
		s.last = p[ipHeader+13]
		s.flags = s.last &^ cwr
	}
}

// fits reports whether a packet of s's flow is the one that would come next if s
// were cut.
func (s *super) fits(p []byte, headers int) bool {
	first := s.pieces[0]
	payload := len(p) - headers
	if headers != s.headers || payload == 0 || payload > s.size || len(s.pieces) == MaxPackets || s.bytes+payload > maxPacket ||
		binary.BigEndian.Uint16(p[4:]) != s.id ||
		p[1] != first[1] || // TOS
		binary.NativeEndian.Uint32(p[6:]) != binary.NativeEndian.Uint32(first[6:]) { // DF, TTL and protocol
		return false
	}
	if s.protocol == protocolUDP {
		return binary.NativeEndian.Uint16(p[ipHeader+udpChecksum:]) != 0
	}
	a, b := first[ipHeader:], p[ipHeader:]
	return binary.BigEndian.Uint32(b[4:]) == s.seq &&
		binary.NativeEndian.Uint32(a[8:]) == binary.NativeEndian.Uint32(b[8:]) && // acknowledgement
		a[12] == b[12] && b[13]&^(fin|psh) == s.flags &&
		binary.NativeEndian.Uint16(a[14:]) == binary.NativeEndian.Uint16(b[14:]) && // window
		string(a[18:headers-ipHeader]) == string(b[18:headers-ipHeader]) // urgent pointer and options
}

// add appends a packet that fits, and reports whether no other may follow it.
func (s *super) add(p []byte) (ends bool) {
	payload := p[s.headers:]
	s.pieces = append(s.pieces, payload)
	s.bytes += len(payload)
	s.id++
	if s.protocol == protocolTCP {
		s.seq += uint32(len(payload))
		s.last = p[ipHeader+13]
	}
	return len(payload) < s.size || s.protocol == protocolTCP && s.last&(fin|psh) != 0
}

// finish makes the first packet's headers those of the super-packet.
func (s *super) finish() Header {
	if len(s.pieces) == 1 {
		return Header{}
	}
	p := s.pieces[0]
	binary.BigEndian.PutUint16(p[2:], uint16(s.bytes))
	p[10], p[11] = 0, 0
	putChecksum(p[10:], Sum(0, p[:ipHeader]))

	h := Header{Flags: NeedsChecksum, Headers: uint16(s.headers), Size: uint16(s.size), Start: ipHeader}
	l4 := p[ipHeader:]
	length := s.bytes - ipHeader
	if s.protocol == protocolUDP {
		h.Type, h.Offset = UDP, udpChecksum
		binary.BigEndian.PutUint16(l4[4:], uint16(length))
	} else {
		h.Type, h.Offset = TCP4, tcpChecksum
		if l4[13]&cwr != 0 {
			h.Type |= TCPCE
		}
		l4[13] |= s.last & (fin | psh)
	}
	binary.NativeEndian.PutUint16(l4[h.Offset:], Fold(pseudo(p, s.protocol, length)))
	return h
}

// intact reports whether the checksums of an IPv4 packet without options and of
// the TCP or UDP in it are right, and as a Cutter writes them. The kernel and
// Complete write 0xffff for a TCP checksum of 0, which is as right; but then
// cutting would not lead back to the same bytes.
func intact(p []byte) bool {
	if binary.NativeEndian.Uint16(p[10:]) == 0xffff ||
		p[9] == protocolTCP && binary.NativeEndian.Uint16(p[ipHeader+tcpChecksum:]) == 0xffff {
		return false
	}
	return Fold(Sum(0, p[:ipHeader])) == 0xffff &&
		Fold(Sum(pseudo(p, p[9], len(p)-ipHeader), p[ipHeader:])) == 0xffff
}
