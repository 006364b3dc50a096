package gso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// writes is what a Joiner wrote.
type writes []written

type written struct {
	header Header
	pieces []int  // lengths
	bytes  []byte // of all
}

// newRecorder makes a Joiner that adds to a list what it writes.
func newRecorder(udp bool, to *writes) *Joiner {
	return NewJoiner(udp, func(h Header, pieces [][]byte) {
		w := written{header: h, bytes: bytes.Join(pieces, nil)}
		for _, b := range pieces {
			w.pieces = append(w.pieces, len(b))
		}
		*to = append(*to, w)
	})
}

// joinAll gives packets to a Joiner, which may change what it gets.
func joinAll(udp bool, packets [][]byte) writes {
	var w writes
	j := newRecorder(udp, &w)
	for _, p := range packets {
		j.Add(bytes.Clone(p))
	}
	j.Flush()
	return w
}

// String tells of how many packets each super-packet is made.
func (w writes) String() string {
	var counts []int
	for _, one := range w {
		counts = append(counts, len(one.pieces))
	}
	return fmt.Sprint(counts)
}

// packets are those that the writes stand for. It is an error if one of them is
// neither a packet nor a good super-packet.
func (w writes) packets() (packets [][]byte, err error) {
	for _, one := range w {
		if one.header == (Header{}) {
			if len(one.pieces) != 1 {
				return nil, fmt.Errorf("%d pieces without a header", len(one.pieces))
			}
			packets = append(packets, one.bytes)
			continue
		}
		cut, err := one.cut()
		if err != nil {
			return nil, fmt.Errorf("%w: %+v, pieces of %d bytes:\n%s", err, one.header, one.pieces, show(one.bytes))
		}
		packets = append(packets, cut...)
	}
	return packets, nil
}

// cut cuts a super-packet after having checked everything about it.
func (w written) cut() ([][]byte, error) {
	h, p := w.header, w.bytes
	switch {
	case len(w.pieces) < 2 || len(w.pieces) > MaxPackets:
		return nil, fmt.Errorf("a super-packet of %d packets", len(w.pieces))
	case len(p) > maxPacket:
		return nil, fmt.Errorf("a super-packet of %d bytes", len(p))
	case p[0] != 0x45 || plainSum(p[:ipHeader]) != 0xffff:
		return nil, fmt.Errorf("a super-packet with a wrong IP header")
	case int(binary.BigEndian.Uint16(p[2:])) != len(p):
		return nil, fmt.Errorf("a super-packet of %d bytes that says %d", len(p), binary.BigEndian.Uint16(p[2:]))
	}
	want := Header{Flags: NeedsChecksum, Type: UDP, Headers: ipHeader + udpHeader, Size: uint16(w.pieces[0] - ipHeader - udpHeader), Start: ipHeader, Offset: udpChecksum}
	if p[9] == protocolTCP {
		headers := ipHeader + uint16(p[ipHeader+12]>>4)*4
		want = Header{Flags: NeedsChecksum, Type: TCP4, Headers: headers, Size: uint16(w.pieces[0]) - headers, Start: ipHeader, Offset: tcpChecksum}
		if p[ipHeader+13]&cwr != 0 {
			want.Type |= TCPCE
		}
	} else if int(binary.BigEndian.Uint16(p[ipHeader+4:])) != len(p)-ipHeader {
		return nil, fmt.Errorf("a datagram of %d bytes that says %d", len(p)-ipHeader, binary.BigEndian.Uint16(p[ipHeader+4:]))
	}
	if h != want {
		return nil, fmt.Errorf("the header ought to be %+v", want)
	}
	// A receiver on this host takes it whole.
	if sum := binary.BigEndian.Uint16(p[checksumAt(p):]); sum != plainSum(plainPseudo(p)) {
		return nil, fmt.Errorf("the sum of the pseudo-header is %#x and ought to be %#x", sum, plainSum(plainPseudo(p)))
	}
	packets, err := cutAll(h, p)
	if err != nil {
		return nil, err
	}
	if len(packets) != len(w.pieces) {
		return nil, fmt.Errorf("%d pieces stand for %d packets", len(w.pieces), len(packets))
	}
	return packets, nil
}

// flows sorts packets by flow, without regard to how a Joiner does that. A packet
// that has no ports may belong to any flow between its addresses: so it is in each
// of those, and has its place among their packets.
func flows(packets [][]byte) map[string][][]byte {
	m := map[string][][]byte{}
	hosts := map[string][]string{}
	key := func(p []byte) (host, flow string) {
		host = fmt.Sprintf("%x protocol %d", p[12:20], p[9])
		offset, ip := binary.BigEndian.Uint16(p[6:])&0x1fff, int(p[0]&0x0f)*4
		if offset == 0 && ip >= ipHeader && len(p) >= ip+4 && (p[9] == protocolTCP || p[9] == protocolUDP) {
			return host, fmt.Sprintf("%s ports %x", host, p[ip:ip+4])
		}
		return host, host
	}
	for _, p := range packets {
		if host, flow := key(p); m[flow] == nil {
			m[flow] = [][]byte{}
			hosts[host] = append(hosts[host], flow)
		}
	}
	for _, p := range packets {
		host, flow := key(p)
		if flow != host {
			m[flow] = append(m[flow], p)
			continue
		}
		for _, f := range hosts[host] {
			m[f] = append(m[f], p)
		}
	}
	return m
}

// sameFlows says how the packets that came out differ from those that went in, ""
// if each flow has the same ones in the same order.
func sameFlows(got, want [][]byte) string {
	g, w := flows(got), flows(want)
	for name, packets := range w {
		if d := sameBytes(g[name], packets); d != "" {
			return name + ": " + d
		}
	}
	for name, packets := range g {
		if w[name] == nil {
			return fmt.Sprintf("%s: packets out of nowhere, as\n%s", name, show(packets[0]))
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%d packets, want %d", len(got), len(want))
	}
	return ""
}

// checkJoin gives packets to a Joiner, all of whose writes go to a list, and says
// what is wrong with these.
func checkJoin(j *Joiner, to *writes, udp bool, given [][]byte) error {
	*to = (*to)[:0]
	for _, p := range given {
		j.Add(bytes.Clone(p))
	}
	j.Flush()
	count := len(*to)
	if j.Flush(); len(*to) != count {
		return fmt.Errorf("a second flush writes more")
	}
	got, err := to.packets()
	if err != nil {
		return err
	}
	if d := sameFlows(got, given); d != "" {
		return fmt.Errorf("written as %v, %s", *to, d)
	}
	for _, one := range *to {
		if one.header.Type == UDP && !udp {
			return fmt.Errorf("datagrams are joined")
		}
	}
	return nil
}

// traffic makes packets of flows that do all that flows may do, and more.
type traffic struct {
	r     *rand.Rand
	flows []*spec
	sizes []int // of the payload that each flow's packets usually have
}

func (tr *traffic) chance(of int) bool { return tr.r.IntN(of) == 0 }

// next is one more packet.
func (tr *traffic) next() []byte {
	i := tr.r.IntN(len(tr.flows))
	s := tr.flows[i]
	switch tr.r.IntN(40) {
	case 0:
		s.tos ^= byte(1 + tr.r.IntN(255))
	case 1:
		s.ttl--
	case 2:
		s.frag ^= []uint16{0x4000, 0x8000, 0x2000, 5}[tr.r.IntN(4)]
	case 3:
		s.id += uint16(tr.r.IntN(3))
	case 4:
		s.seq += uint32(tr.r.IntN(3)) - 1
	case 5:
		s.ack++
	case 6:
		s.window++
	case 7:
		s.flags = byte(tr.r.Uint32())
	case 8:
		s.urgent ^= 1
	case 9:
		s.tcpOptions = make([]byte, 4*tr.r.IntN(11))
	case 10:
		s.ipOptions = make([]byte, 4*tr.r.IntN(3))
	case 11:
		s.offset ^= 1
	case 12:
		tr.sizes[i] = 1 + tr.r.IntN([]int{3, 100, 1500, 30000}[tr.r.IntN(4)])
	}
	this := *s
	if tr.chance(8) {
		this.flags |= []byte{psh, fin, psh | fin, cwr, 0x40, syn, rst, urg}[tr.r.IntN(8)]
	}
	n := tr.sizes[i]
	switch tr.r.IntN(25) {
	case 0:
		n = 0
	case 1:
		n = 1 + tr.r.IntN(n)
	case 2:
		n++
	case 3:
		n = 65535 - this.headers() - tr.r.IntN(2)
	}
	this.payload = make([]byte, min(n, 65535-this.headers()))
	for i := range this.payload {
		this.payload[i] = byte(i) * byte(s.id)
	}
	if len(this.payload) > 1 && tr.chance(30) {
		this = this.zeroChecksum()
	}
	p := this.packet()
	s.id++
	s.seq += uint32(len(this.payload))
	if tr.chance(3) {
		// Back to what is usual, so that flows come to joining again.
		s.flags, s.frag, s.ipOptions, s.offset = ack, 0x4000, nil, 0
	}
	return p
}

// harm does to a packet what a wire or an attacker may do; all but its being a
// whole IPv4 packet is for sale.
func (tr *traffic) harm(p []byte) []byte {
	p = bytes.Clone(p)
	switch tr.r.IntN(9) {
	case 0: // a wrong bit anywhere
		p[tr.r.IntN(len(p))] ^= 1 << tr.r.IntN(8)
	case 1: // the same, with checksums to match
		p[tr.r.IntN(len(p))] ^= 1 << tr.r.IntN(8)
		p = repair(whole(p))
	case 2: // in the headers
		p[tr.r.IntN(min(len(p), 40))] = byte(tr.r.Uint32())
		p = repair(whole(p))
	case 3:
		p = p[:20+tr.r.IntN(len(p)-19)]
	case 4:
		p = repair(whole(p[:20+tr.r.IntN(min(len(p)-19, 45))]))
	case 5: // no checksum, or another way to write 0
		if at := checksumAt(p); at > 0 && (p[at] == 0 && p[at+1] == 0 || tr.chance(2)) {
			sum := byte(tr.r.IntN(2)) * 0xff
			p[at], p[at+1] = sum, sum
		}
	case 6: // the same for IP
		id := binary.BigEndian.Uint16(p[4:])
		binary.BigEndian.PutUint16(p[4:], 0)
		repairIP(p)
		sum := binary.BigEndian.Uint16(p[10:])
		binary.BigEndian.PutUint16(p[4:], sum) // so that it comes out as 0
		if tr.chance(2) {
			binary.BigEndian.PutUint16(p[4:], id)
			repairIP(p)
		} else {
			p[10], p[11] = 0xff, 0xff
		}
	case 7:
		p[9] = []byte{1, 2, 6, 17, 47, 132}[tr.r.IntN(6)]
		repairIP(p)
	case 8:
		p = append(p, make([]byte, tr.r.IntN(3))...)
		if len(p) > maxPacket {
			p = p[:maxPacket]
		}
		p = repairIP(whole(p)) // a UDP length that is too small
	}
	return whole(p)
}

// whole makes of any 20 bytes or more a packet as a Joiner is to get it.
func whole(p []byte) []byte {
	p[0] = 4<<4 | p[0]&0x0f
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	return p
}

func TestJoinModel(t *testing.T) {
	r := newRand(t)
	var to writes
	joiners := map[bool]*Joiner{false: newRecorder(false, &to), true: newRecorder(true, &to)}
	joined := map[uint8]int{}
	for range 200 {
		tr := &traffic{r: r}
		for range 1 + r.IntN(12) {
			s := tcpSpec(0)
			if r.IntN(3) == 0 {
				s = udpSpec(0)
			}
			// Few of each, so that flows differ in one thing only.
			s.src, s.dst, s.from, s.to = uint32(r.IntN(2)), uint32(r.IntN(2)), uint16(r.IntN(2)), uint16(r.IntN(2))
			s.id, s.seq = oneOf(r, uint16(r.Uint32()), -uint16(r.IntN(9))), oneOf(r, r.Uint32(), -uint32(r.IntN(9)))
			tr.flows, tr.sizes = append(tr.flows, &s), append(tr.sizes, 1+r.IntN(oneOf(r, 8, 200, 1500)))
		}
		evil := oneOf(r, 4, 20, 1000)
		var given [][]byte
		for range 1 + r.IntN(oneOf(r, 20, 200)) {
			p := tr.next()
			if tr.chance(evil) {
				p = tr.harm(p)
			}
			given = append(given, p)
			if n := len(given); n > 1 && tr.chance(evil) {
				switch r.IntN(3) {
				case 0:
					given = append(given, given[r.IntN(n)]) // a second time
				case 1:
					given[n-1], given[n-2] = given[n-2], given[n-1]
				case 2:
					given = given[:n-1]
				}
			}
		}
		udp := r.IntN(4) > 0
		if err := checkJoin(joiners[udp], &to, udp, given); err != nil {
			t.Fatal(err)
		}
		for _, one := range to {
			joined[one.header.Type] += len(one.pieces)
		}
	}
	// Otherwise all of this means nothing.
	t.Logf("packets by the type of what they were joined to: %v", joined)
	for _, typ := range []uint8{None, TCP4, TCP4 | TCPCE, UDP} {
		if joined[typ] == 0 {
			t.Errorf("no packet is in a super-packet of type %d: that tests nothing", typ)
		}
	}
}

// The mistakes that a Joiner might make do not go unseen.
func TestModelFindsMistakes(t *testing.T) {
	given := plainRun(tcpSpec(100), 4)
	other := tcpSpec(100)
	other.from++
	fragment := udpSpec(100)
	fragment.protocol, fragment.frag = protocolTCP, 100
	given = append(given, plainRun(other, 2)...)
	for name, got := range map[string][][]byte{
		"lost":      given[1:],
		"twice":     append([][]byte{given[0]}, given...),
		"order":     append([][]byte{given[1], given[0]}, given[2:]...),
		"bytes":     append([][]byte{repair(bytes.ReplaceAll(given[0], []byte{7}, []byte{8}))}, given[1:]...),
		"fragments": append([][]byte{fragment.packet()}, given...),
	} {
		if sameFlows(got, given) == "" {
			t.Errorf("%s: not found", name)
		}
	}
	if d := sameFlows(slices.Concat(given[4:], given[:4]), given); d != "" {
		t.Errorf("flows among each other: %s", d)
	}
	f := fragment.packet()
	for at := range given {
		mixed := slices.Insert(slices.Clone(given), at, f)
		if sameFlows(mixed, append(slices.Clone(given), f)) == "" {
			t.Errorf("a fragment that comes before packet %d instead of after all is not found", at)
		}
	}
}

// plainRun are packets of a flow in order.
func plainRun(s spec, n int) (packets [][]byte) {
	for range n {
		packets = append(packets, s.packet())
		s.id++
		s.seq += uint32(len(s.payload))
	}
	return packets
}
