package gso

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// What a Cutter makes is what cutting in the plainest way makes. Besides, this
// holds what that is to be.
func TestCut(t *testing.T) {
	r := newRand(t)
	for range 1000 {
		s, size := randomSuper(r)
		h, p := s.super(size)
		if r.IntN(2) == 0 { // none of these counts
			h.Headers, h.Start, h.Offset, h.Flags = uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32()), byte(r.Uint32())
			at := checksumAt(p)
			copy(p[at:], randomBytes(r, 2))
			copy(p[10:], randomBytes(r, 2))
		}
		if s.protocol == protocolTCP {
			h.Type = oneOf[uint8](r, TCP4, TCP4|TCPCE)
		}
		before := bytes.Clone(p)
		want, ok := plainCut(h, p)
		if !ok {
			t.Fatalf("%+v of %+v cannot be cut", h, s)
		}
		got, err := cutAll(h, p)
		if err != nil {
			t.Fatalf("%v: %+v of\n%s", err, h, show(p))
		}
		if d := sameBytes(got, want); d != "" {
			t.Fatalf("%+v of\n%s: %s", h, show(p), d)
		}
		if !bytes.Equal(p, before) {
			t.Fatalf("%+v of\n%s has been changed to\n%s", h, show(before), show(p))
		}

		ip := ipHeader + len(s.ipOptions)
		var payload []byte
		for i, q := range got {
			last := i == len(got)-1
			if int(binary.BigEndian.Uint16(q[2:])) != len(q) || !right(q) {
				t.Fatalf("packet %d is not valid:\n%s", i, show(q))
			}
			if id := binary.BigEndian.Uint16(q[4:]); id != s.id+uint16(i) {
				t.Fatalf("packet %d of one with ID %d has %d", i, s.id, id)
			}
			if n := len(q) - s.headers(); n != size && !last || n > size || n == 0 {
				t.Fatalf("packet %d of %d to be cut by %d has %d bytes", i, len(got), size, n)
			}
			if s.protocol == protocolTCP {
				if seq := binary.BigEndian.Uint32(q[ip+4:]); seq != s.seq+uint32(len(payload)) {
					t.Fatalf("packet %d of one with the sequence number %d has %d", i, s.seq, seq)
				}
				flags := s.flags
				if !last {
					flags &^= fin | psh
				}
				if i > 0 {
					flags &^= cwr
				}
				if q[ip+13] != flags {
					t.Fatalf("packet %d of %d of one with the flags %#x has %#x", i, len(got), s.flags, q[ip+13])
				}
			} else if n := int(binary.BigEndian.Uint16(q[ip+4:])); n != len(q)-ip {
				t.Fatalf("datagram %d is %d bytes and says %d", i, len(q)-ip, n)
			}
			payload = append(payload, q[s.headers():]...)
		}
		if !bytes.Equal(payload, s.payload) {
			t.Fatal("the payload is not that of the super-packet")
		}
	}
}

// What Packets and Size say before each packet is so, and the payload is where it
// was.
func TestCutterCounts(t *testing.T) {
	for _, tc := range []struct {
		payload, size int
		want          []int
	}{
		{1, 1, []int{1}},
		{3, 1, []int{1, 1, 1}},
		{3, 2, []int{2, 1}},
		{4, 2, []int{2, 2}},
		{4, 65535, []int{4}},
		{2841, 1420, []int{1420, 1420, 1}},
	} {
		for _, s := range []spec{tcpSpec(tc.payload), udpSpec(tc.payload)} {
			h, p := s.super(tc.size)
			c, err := NewCutter(h, p)
			if err != nil {
				t.Fatal(err)
			}
			if c.HeaderLen != s.headers() {
				t.Errorf("headers of %d bytes, want %d", c.HeaderLen, s.headers())
			}
			at := s.headers()
			for i, want := range tc.want {
				if got := c.Packets(); got != len(tc.want)-i {
					t.Errorf("%d by %d: %d packets left, want %d", tc.payload, tc.size, got, len(tc.want)-i)
				}
				if got := c.Size(); got != c.HeaderLen+want {
					t.Errorf("%d by %d: packet %d has a size of %d, want %d", tc.payload, tc.size, i, got, c.HeaderLen+want)
				}
				// More room than it takes stays as it is.
				header := bytes.Repeat([]byte{0xee}, c.HeaderLen+3)
				payload := c.Next(header)
				if len(payload) != want || &payload[0] != &p[at] {
					t.Fatalf("%d by %d: payload %d has %d bytes or is not at %d of the super-packet", tc.payload, tc.size, i, len(payload), at)
				}
				if !bytes.Equal(header[c.HeaderLen:], []byte{0xee, 0xee, 0xee}) {
					t.Errorf("what is behind the header has become %x", header[c.HeaderLen:])
				}
				at += want
			}
			if c.Packets() != 0 || c.Size() != 0 {
				t.Errorf("%d by %d: after the last there are %d left, of %d bytes", tc.payload, tc.size, c.Packets(), c.Size())
			}
		}
	}
}

// A checksum that comes out as 0 is 0xffff in UDP only, where 0 means that there
// is none; the kernel cuts so, too.
func TestCutZeroChecksum(t *testing.T) {
	for protocol, want := range map[byte]uint16{protocolTCP: 0, protocolUDP: 0xffff} {
		s := tcpSpec(100)
		if protocol == protocolUDP {
			s = udpSpec(100)
		}
		first := s.zeroChecksum()
		first.payload = append(first.payload, 1, 2, 3)
		h, p := first.super(100)
		packets, err := cutAll(h, p)
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint16(packets[0][checksumAt(packets[0]):]); got != want || len(packets) != 2 {
			t.Errorf("protocol %d: the checksum of the first of %d packets is %#x, want %#x", protocol, len(packets), got, want)
		}
	}
}

func TestCannotCut(t *testing.T) {
	tcp, udp := tcpSpec(100), udpSpec(100)
	change := func(s spec, f func(h *Header, p []byte)) func() (Header, []byte) {
		return func() (Header, []byte) {
			h, p := s.super(10)
			f(&h, p)
			return h, p
		}
	}
	resize := func(s spec, n int) func() (Header, []byte) {
		return func() (Header, []byte) {
			h, p := s.super(10)
			p = p[:n]
			binary.BigEndian.PutUint16(p[2:], uint16(n))
			return h, p
		}
	}
	for _, tc := range []struct {
		name  string
		super func() (Header, []byte)
		want  string // part of the error
	}{
		{"size 0 of TCP", change(tcp, func(h *Header, p []byte) { h.Size = 0 }), "cut by 0"},
		{"size 0 of UDP", change(udp, func(h *Header, p []byte) { h.Size = 0 }), "cut by 0"},
		{"no super-packet", change(tcp, func(h *Header, p []byte) { h.Type = None }), "type 0"},
		{"no super-packet, CWR", change(tcp, func(h *Header, p []byte) { h.Type = TCPCE }), "type 128"},
		{"UDP fragments", change(udp, func(h *Header, p []byte) { h.Type = 3 }), "type 3"},
		{"TCP of IPv6", change(tcp, func(h *Header, p []byte) { h.Type = 4 }), "type 4"},
		{"UDP with CWR", change(udp, func(h *Header, p []byte) { h.Type |= TCPCE }), "type 133"},
		{"TCP as UDP", change(tcp, func(h *Header, p []byte) { h.Type = UDP }), "protocol 6"},
		{"UDP as TCP", change(udp, func(h *Header, p []byte) { h.Type = TCP4 }), "protocol 17"},
		{"another protocol", change(tcp, func(h *Header, p []byte) { p[9] = 1 }), "protocol 1"},
		{"first fragment", change(tcp, func(h *Header, p []byte) { p[6] |= 0x20 }), "fragment"},
		{"last fragment", change(udp, func(h *Header, p []byte) { p[7] = 1 }), "fragment"},
		{"large offset", change(udp, func(h *Header, p []byte) { p[6] = 0x10 }), "fragment"},
		{"IP header of 16 bytes", change(tcp, func(h *Header, p []byte) { p[0] = 0x44 }), "16 bytes"},
		{"TCP header of 16 bytes", change(tcp, func(h *Header, p []byte) { p[ipHeader+12] = 4 << 4 }), "header of 36"},
		{"TCP header of nothing", change(tcp, func(h *Header, p []byte) { p[ipHeader+12] = 0 }), "header of 20"},
		{"IP header only", resize(tcp, ipHeader), "0 bytes for it"},
		{"TCP header cut off", resize(tcp, ipHeader+tcpHeader-1), "19 bytes for it"},
		{"TCP options cut off", resize(tcp, tcp.headers()-1), "header of 52"},
		{"TCP without payload", resize(tcp, tcp.headers()), "header of 52"},
		{"UDP header cut off", resize(udp, ipHeader+udpHeader-1), "7 bytes for it"},
		{"UDP without payload", resize(udp, ipHeader+udpHeader), "header of 28"},
		{"IP header longer than the packet", func() (Header, []byte) {
			h, p := resize(udp, 40)()
			p[0] = 0x4f
			return h, p
		}, "0 bytes for it"},
	} {
		h, p := tc.super()
		if _, ok := plainCut(h, p); ok {
			t.Errorf("%s: it can be cut", tc.name)
		}
		if _, err := NewCutter(h, p); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: the error is %v, want one with %q", tc.name, err, tc.want)
		}
	}
}

func TestHeader(t *testing.T) {
	r := newRand(t)
	for range 100 {
		h := Header{Flags: byte(r.Uint32()), Type: byte(r.Uint32()), Headers: uint16(r.Uint32()), Size: uint16(r.Uint32()), Start: uint16(r.Uint32()), Offset: uint16(r.Uint32())}
		b := append(make([]byte, HeaderLen), 0xee)
		h.Put(b)
		if got := ParseHeader(b); got != h {
			t.Fatalf("%+v is read as %+v", h, got)
		}
		if b[HeaderLen] != 0xee {
			t.Fatal("the header is longer than it ought to be")
		}
	}
}

// benchSuper is 64 KB of a connection over a path with an MTU of 1472.
func benchSuper() (Header, []byte) { return tcpSpec(46 * 1420).super(1420) }

func cutBench(tb testing.TB, h Header, p, headers []byte) {
	c, err := NewCutter(h, p)
	if err != nil {
		tb.Fatal(err)
	}
	for at := 0; c.Packets() > 0; at += c.HeaderLen {
		c.Next(headers[at : at+c.HeaderLen])
	}
}

func TestCutAllocates(t *testing.T) {
	for _, s := range []spec{tcpSpec(46 * 1420), udpSpec(46 * 1420)} {
		h, p := s.super(1420)
		headers := make([]byte, 46*s.headers())
		if n := testing.AllocsPerRun(100, func() { cutBench(t, h, p, headers) }); n != 0 {
			t.Errorf("protocol %d: %v allocations", s.protocol, n)
		}
	}
}

func BenchmarkCut(b *testing.B) {
	h, p := benchSuper()
	headers := make([]byte, 46*tcpSpec(0).headers())
	b.ReportAllocs()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		cutBench(b, h, p, headers)
	}
}
