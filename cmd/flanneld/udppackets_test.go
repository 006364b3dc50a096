package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// What follows makes, cuts and judges IPv4 packets for the tests of the udp
// backend. It has nothing in common with the backend's own code, so that both
// would have to be wrong alike.

// The bits of an IPv4 header's fragment field, and of a TCP header's flags.
const (
	dontFragment  = 0x4000
	moreFragments = 0x2000

	fin, syn, rst, psh, ack, urg, ece, cwr = 1, 2, 4, 8, 16, 32, 64, 128
)

// ip4 is the header of an IPv4 packet in the making.
type ip4 struct {
	tos, ttl, proto byte
	id              uint16
	frag            uint16 // flags and offset, as they stand in the header
	options         []byte // a multiple of four bytes
	src, dst        netip.Addr
}

// with is the packet with this payload, and with checksums that are right.
func (h ip4) with(payload []byte) []byte {
	header := 20 + len(h.options)
	p := make([]byte, header, header+len(payload))
	p[0], p[1] = 4<<4|byte(header/4), h.tos
	binary.BigEndian.PutUint16(p[2:], uint16(header+len(payload)))
	binary.BigEndian.PutUint16(p[4:], h.id)
	binary.BigEndian.PutUint16(p[6:], h.frag)
	p[8], p[9] = h.ttl, h.proto
	src, dst := h.src.As4(), h.dst.As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	copy(p[20:], h.options)
	return seal(append(p, payload...))
}

// udp is the packet with a UDP datagram inside.
func (h ip4) udp(from, to uint16, data []byte) []byte {
	h.proto = unix.IPPROTO_UDP
	d := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(d, from)
	binary.BigEndian.PutUint16(d[2:], to)
	binary.BigEndian.PutUint16(d[4:], uint16(8+len(data)))
	return h.with(append(d, data...))
}

// icmp is the packet with an ICMP echo inside.
func (h ip4) icmp(seq int, data []byte) []byte {
	h.proto = unix.IPPROTO_ICMP
	m := []byte{8, 0, 0, 0, 0x12, 0x34, byte(seq >> 8), byte(seq)}
	return h.with(append(m, data...))
}

// tcp4 is a TCP header in the making.
type tcp4 struct {
	from, to uint16
	seq, ack uint32
	flags    byte
	window   uint16
	urgent   uint16
	options  []byte // a multiple of four bytes
}

// tcp is the packet with a TCP segment inside.
func (h ip4) tcp(t tcp4, data []byte) []byte {
	h.proto = unix.IPPROTO_TCP
	header := 20 + len(t.options)
	s := make([]byte, header, header+len(data))
	binary.BigEndian.PutUint16(s, t.from)
	binary.BigEndian.PutUint16(s[2:], t.to)
	binary.BigEndian.PutUint32(s[4:], t.seq)
	binary.BigEndian.PutUint32(s[8:], t.ack)
	s[12], s[13] = byte(header/4)<<4, t.flags
	binary.BigEndian.PutUint16(s[14:], t.window)
	binary.BigEndian.PutUint16(s[18:], t.urgent)
	copy(s[20:], t.options)
	return h.with(append(s, data...))
}

// timestamps is the option of RFC 7323 as TCP writes it, after two NOPs.
func timestamps(value, echo uint32) []byte {
	o := []byte{1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(o[4:], value)
	binary.BigEndian.PutUint32(o[8:], echo)
	return o
}

// noise is n bytes of data, other ones for each seed.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	rand.NewChaCha8(key).Read(b) // has no errors
	return b
}

// payloadOf is what follows the IPv4 header.
func payloadOf(p []byte) []byte { return p[int(p[0]&0xf)*4:] }

// fragmented reports whether the packet is a part of another.
func fragmented(p []byte) bool {
	return binary.BigEndian.Uint16(p[6:])&(moreFragments|0x1fff) != 0
}

// seal sets the packet's checksums, that of the payload only if it is all there.
func seal(p []byte) []byte {
	sealHeader(p)
	l4 := payloadOf(p)
	at := map[byte]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, unix.IPPROTO_ICMP: 2}[p[9]]
	if at == 0 || fragmented(p) || len(l4) < at+2 {
		return p
	}
	l4[at], l4[at+1] = 0, 0
	sum := ^sum16(pseudo(p, len(l4)), l4)
	if sum == 0 && p[9] == unix.IPPROTO_UDP {
		sum = 0xffff // 0 is none (RFC 768)
	}
	binary.BigEndian.PutUint16(l4[at:], sum)
	return p
}

// sealHeader sets the IPv4 header's checksum.
func sealHeader(p []byte) {
	header := p[:int(p[0]&0xf)*4]
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^sum16(header))
}

// pseudo is what TCP's and UDP's checksums have in front of the n bytes that they
// cover; ICMP's has nothing.
func pseudo(p []byte, n int) []byte {
	if p[9] == unix.IPPROTO_ICMP {
		return nil
	}
	b := append([]byte(nil), p[12:20]...)
	return append(b, 0, p[9], byte(n>>8), byte(n))
}

// sum16 is the ones' complement sum (RFC 1071) of parts of even length, but for
// the last.
func sum16(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum>>16 + sum&0xffff)
}

// checkPacket returns an error unless p is one whole IPv4 packet of at most mtu bytes
// that any receiver takes.
func checkPacket(p []byte, mtu int) error {
	switch {
	case len(p) < 20 || p[0]>>4 != 4 || p[0]&0xf < 5 || int(p[0]&0xf)*4 > len(p):
		return errors.New("it has no IPv4 header")
	case int(binary.BigEndian.Uint16(p[2:])) != len(p):
		return fmt.Errorf("it has %d bytes and says %d", len(p), binary.BigEndian.Uint16(p[2:]))
	case len(p) > mtu:
		return fmt.Errorf("it has %d bytes, more than the MTU of %d", len(p), mtu)
	case sum16(p[:int(p[0]&0xf)*4]) != 0xffff:
		return errors.New("its header's checksum is wrong")
	case fragmented(p):
		return nil
	}
	l4 := payloadOf(p)
	switch p[9] {
	case unix.IPPROTO_TCP:
		if len(l4) < 20 || l4[12]>>4 < 5 || int(l4[12]>>4)*4 > len(l4) {
			return errors.New("it has no TCP header")
		}
	case unix.IPPROTO_UDP:
		if len(l4) < 8 || binary.BigEndian.Uint16(l4[4:]) < 8 || int(binary.BigEndian.Uint16(l4[4:])) > len(l4) {
			return errors.New("its UDP header does not fit it")
		}
		if l4[6] == 0 && l4[7] == 0 {
			return nil
		}
		l4 = l4[:binary.BigEndian.Uint16(l4[4:])] // whatever follows
	case unix.IPPROTO_ICMP:
		if len(l4) < 8 {
			return errors.New("it has no ICMP header")
		}
	default:
		return nil
	}
	if sum16(pseudo(p, len(l4)), l4) != 0xffff {
		return fmt.Errorf("the checksum of its protocol %d is wrong", p[9])
	}
	return nil
}

// forwarded is the packet as it is when so many routers have forwarded it.
func forwarded(p []byte, routers byte) []byte {
	p = append([]byte(nil), p...)
	p[8] -= routers
	sealHeader(p)
	return p
}

// each applies f to a copy of each packet.
func each(all [][]byte, f func(p []byte) []byte) (done [][]byte) {
	for _, p := range all {
		done = append(done, f(append([]byte(nil), p...)))
	}
	return done
}

// anyID is the packet without its identification if that means nothing: in
// packets that must not be fragmented, those who cut and join packets on the way
// may change it (RFC 6864, section 4).
func anyID(p []byte) []byte {
	if binary.BigEndian.Uint16(p[6:]) == dontFragment {
		p = append([]byte(nil), p...)
		p[4], p[5] = 0, 0
		sealHeader(p)
	}
	return p
}

// inFragments is the packet in fragments with so much payload, a multiple of
// eight bytes, in each but the last.
func inFragments(p []byte, size int) (all [][]byte) {
	header, data := p[:len(p)-len(payloadOf(p))], payloadOf(p)
	for at := 0; at < len(data); at += size {
		part := data[at:min(at+size, len(data))]
		f := append(append([]byte(nil), header...), part...)
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		flags := uint16(at / 8)
		if at+size < len(data) {
			flags |= moreFragments
		}
		binary.BigEndian.PutUint16(f[6:], flags)
		sealHeader(f)
		all = append(all, f)
	}
	return all
}

// inSegments is the TCP packet as segmentation offload cuts it: each segment but
// the last has mss bytes of data, CWR stays with the first, FIN and PSH with the
// last, and the identification goes up by one.
func inSegments(p []byte, mss int) (all [][]byte) {
	ip := len(p) - len(payloadOf(p))
	header := ip + int(p[ip+12]>>4)*4
	seq, id := binary.BigEndian.Uint32(p[ip+4:]), binary.BigEndian.Uint16(p[4:])
	for at := header; at < len(p); at += mss {
		end := min(at+mss, len(p))
		s := append(append([]byte(nil), p[:header]...), p[at:end]...)
		binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
		binary.BigEndian.PutUint16(s[4:], id+uint16(len(all)))
		binary.BigEndian.PutUint32(s[ip+4:], seq+uint32(at-header))
		if at > header {
			s[ip+13] &^= cwr
		}
		if end < len(p) {
			s[ip+13] &^= fin | psh
		}
		all = append(all, seal(s))
	}
	return all
}

// flowOf says which packets have to stay in order: those of one connection. Later
// fragments do not say theirs, and are a flow of each packet.
func flowOf(p []byte) string {
	flow := fmt.Sprintf("%v > %v protocol %d", netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), p[9])
	l4 := payloadOf(p)
	switch {
	case binary.BigEndian.Uint16(p[6:])&0x1fff != 0:
		return fmt.Sprintf("%s fragments of %d", flow, binary.BigEndian.Uint16(p[4:]))
	case (p[9] == unix.IPPROTO_TCP || p[9] == unix.IPPROTO_UDP) && len(l4) >= 4:
		return fmt.Sprintf("%s ports %d > %d", flow, binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:]))
	}
	return flow
}

// describe is a packet as a failure shows it.
func describe(p []byte) string {
	if len(p) < 20 {
		return fmt.Sprintf("%d bytes: %x", len(p), p)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d bytes, id %d, frag %#x, TTL %d, TOS %#02x", flowOf(p), len(p), binary.BigEndian.Uint16(p[4:]), binary.BigEndian.Uint16(p[6:]), p[8], p[1])
	if l4 := payloadOf(p); p[9] == unix.IPPROTO_TCP && len(l4) >= 20 {
		fmt.Fprintf(&b, ", seq %d, flags %#02x", binary.BigEndian.Uint32(l4[4:]), l4[13])
	}
	fmt.Fprintf(&b, ": %x", p[:min(len(p), 48)])
	return b.String()
}

// compare returns an error unless the packets that came are those wanted, each
// once, and in the order wanted within each flow.
func compare(want, got [][]byte) error {
	byFlow := func(all [][]byte) (names []string, flows map[string][][]byte) {
		flows = map[string][][]byte{}
		for _, p := range all {
			name := flowOf(p)
			if flows[name] == nil {
				names = append(names, name)
			}
			flows[name] = append(flows[name], anyID(p))
		}
		return names, flows
	}
	wantNames, wanted := byFlow(want)
	gotNames, came := byFlow(got)
	for _, name := range wantNames {
		w, g := wanted[name], came[name]
		for i := range w {
			if i >= len(g) {
				return fmt.Errorf("%d packets of %s came instead of %d; the first missing is\n%s", len(g), name, len(w), describe(w[i]))
			}
			if string(w[i]) != string(g[i]) {
				return fmt.Errorf("packet %d of %d of %s (%d came) is\n%s\nand ought to be\n%s\n%s", i, len(w), name, len(g), describe(g[i]), describe(w[i]), firstDifference(g[i], w[i]))
			}
		}
		if len(g) > len(w) {
			return fmt.Errorf("%d packets of %s came instead of %d; the first too much is\n%s", len(g), name, len(w), describe(g[len(w)]))
		}
	}
	for _, name := range gotNames {
		if wanted[name] == nil {
			return fmt.Errorf("%d packets of %s came and ought not to; the first is\n%s", len(came[name]), name, describe(came[name][0]))
		}
	}
	return nil
}

func firstDifference(a, b []byte) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("they differ first in byte %d, %#02x and %#02x", i, a[i], b[i])
		}
	}
	return fmt.Sprintf("they have %d and %d bytes", len(a), len(b))
}
