package udp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// testPacket makes an IPv4 packet.
func testPacket(src, dst string, ttl, protocol byte, payload []byte) []byte {
	p := make([]byte, ipHeader+len(payload))
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[8], p[9] = ttl, protocol
	binary.BigEndian.PutUint32(p[12:], addr(src))
	binary.BigEndian.PutUint32(p[16:], addr(dst))
	copy(p[ipHeader:], payload)
	fixHeader(p)
	return p
}

// fixHeader makes the checksum of an IPv4 header right.
func fixHeader(p []byte) {
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], checksum(p[:headerLen(p)]))
}

// edit returns a packet with some bytes changed, and with a right header again.
func edit(p []byte, f func(p []byte)) []byte {
	f(p)
	fixHeader(p)
	return p
}

// Updating the checksum leads to the same as computing it anew, whatever the
// header.
func TestUpdatedChecksum(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 50000 {
		p := make([]byte, ipHeader+4*r.IntN(11))
		for i := range p {
			p[i] = byte(r.Uint32())
			if r.IntN(4) == 0 {
				p[i] = []byte{0, 0xff}[r.IntN(2)] // the corners of one's complement
			}
		}
		p[0] = 0x40 | byte(len(p)/4)
		p[8] = max(p[8], 1)
		fixHeader(p)
		tos, at, word := byte(r.Uint32()), 2*(1+r.IntN(4)), uint16(r.Uint32()) // not the checksum itself
		if r.IntN(4) == 0 {
			tos, word = p[1], binary.BigEndian.Uint16(p[at:])
		}
		for _, change := range []struct {
			name             string
			update, recreate func(p []byte)
		}{
			{"decrementTTL", decrementTTL, func(p []byte) { p[8]-- }},
			{"incrementTTL", func(p []byte) { decrementTTL(p); incrementTTL(p) }, func([]byte) {}},
			{"setTOS", func(p []byte) { setTOS(p, tos) }, func(p []byte) { p[1] = tos }},
			{"setWord", func(p []byte) { setWord(p, at, word) }, func(p []byte) { binary.BigEndian.PutUint16(p[at:], word) }},
		} {
			want, got := bytes.Clone(p), bytes.Clone(p)
			change.recreate(want)
			fixHeader(want)
			change.update(got)
			// 0 and 0xffff are the same number. Equation 3 yields the one that
			// computing anew does, unless all of the header is 0.
			if !bytes.Equal(got, want) {
				t.Fatalf("%s of %x\nupdated:  %x\ncomputed: %x", change.name, p, got, want)
			}
		}
	}
}

// A checksum that was wrong is as wrong afterwards, for the receiver to see.
func TestUpdateKeepsWrongChecksum(t *testing.T) {
	for wrong := 1; wrong < 0xffff; wrong++ {
		p := testPacket("10.1.74.2", "10.1.75.3", 64, unix.IPPROTO_UDP, nil)
		binary.BigEndian.PutUint16(p[10:], binary.BigEndian.Uint16(p[10:])+uint16(wrong))
		if checksum(p) == 0 {
			continue // the other way to write the same number
		}
		before := checksum(p)
		decrementTTL(p)
		setTOS(p, 0xb8)
		if got := checksum(p); got != before {
			t.Fatalf("off by %#x before, by %#x after", before, got)
		}
	}
}

func TestWhole(t *testing.T) {
	p := testPacket("10.1.74.2", "10.1.75.3", 64, unix.IPPROTO_UDP, []byte("payload"))
	for n := range len(p) {
		if whole(p[:n]) {
			t.Errorf("the first %d of %d bytes count as whole", n, len(p))
		}
	}
	if !whole(p) {
		t.Error("a whole packet does not count as one")
	}
	if whole(append(p, 0)) {
		t.Error("a packet with a byte more counts as whole")
	}
}

func TestPacketLen(t *testing.T) {
	good := func() []byte { return testPacket("10.1.74.2", "10.1.75.3", 64, unix.IPPROTO_UDP, []byte("payload")) }
	with := func(at int, b ...byte) []byte { p := good(); copy(p[at:], b); return p }
	for _, tc := range []struct {
		name string
		b    []byte
		want int
	}{
		{"good", good(), 27},
		{"no payload", good()[:20], 27}, // as the header says
		{"padded", append(good(), 0, 0), 27},
		{"empty", nil, -1},
		{"no whole header", good()[:19], -1},
		{"IPv6", with(0, 0x65), -1},
		{"version 0", with(0, 0x05), -1},
		{"header too short", with(0, 0x44), -1},
		{"options", with(0, 0x46), 27},
		{"options longer than all", with(0, 0x47), -1},
		{"length of the header", with(2, 0, 20), 20},
		{"length less than the header", with(2, 0, 19), -1},
		{"length 0", with(2, 0, 0), -1},
		{"length 65535", with(2, 0xff, 0xff), 65535},
	} {
		if got := packetLen(tc.b); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// checksum is the Internet checksum (RFC 1071), 16 bits at a time.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
