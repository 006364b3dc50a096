package udp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/subnet"
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
	binary.BigEndian.PutUint16(p[10:], checksum(p[:ipHeader]))
	return p
}

// Updating the checksum leads to the same as computing it anew, whatever the
// header.
func TestDecrementTTL(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200000 {
		p := make([]byte, ipHeader+4*r.IntN(11))
		for i := range p {
			p[i] = byte(r.Uint32())
			if r.IntN(4) == 0 {
				p[i] = []byte{0, 0xff}[r.IntN(2)] // the corners of one's complement
			}
		}
		p[0] = 0x40 | byte(len(p)/4)
		p[8] = max(p[8], 1)
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p))

		want := bytes.Clone(p)
		want[8]--
		want[10], want[11] = 0, 0
		binary.BigEndian.PutUint16(want[10:], checksum(want))

		decrementTTL(p)
		if !bytes.Equal(p, want) {
			t.Fatalf("updated: %x, computed: %x", p, want)
		}
	}
}

func TestRoute(t *testing.T) {
	table := newTable([]*subnet.Lease{lease("10.1.75.0/24", "192.0.2.2", "udp")})
	edit := func(p []byte, f func(p []byte)) []byte { f(p); return p }
	good := func(ttl byte) []byte {
		return testPacket("10.1.74.2", "10.1.75.3", ttl, unix.IPPROTO_UDP, []byte("payload"))
	}
	for _, tc := range []struct {
		name   string
		packet []byte
		want   verdict
	}{
		{"good", good(64), carry},
		{"last hop but one", good(2), carry},
		{"TTL 1", good(1), expired},
		{"TTL 0", good(0), expired},
		{"padded", append(good(64), 0, 0), carry},
		{"nowhere", testPacket("10.1.74.2", "10.1.76.3", 64, unix.IPPROTO_UDP, nil), noSubnet},
		{"nowhere, TTL 1", testPacket("10.1.74.2", "10.1.76.3", 1, unix.IPPROTO_UDP, nil), noSubnet},
		{"IPv6", edit(good(64), func(p []byte) { p[0] = 0x60 }), notIPv4},
		{"empty", nil, notIPv4},
		{"short", good(64)[:19], notIPv4},
		{"cut off", good(64)[:26], notIPv4},
		{"header too short", edit(good(64), func(p []byte) { p[0] = 0x44 }), notIPv4},
		{"header longer than the packet", edit(good(64), func(p []byte) { p[0] = 0x4f }), notIPv4},
	} {
		before := bytes.Clone(tc.packet)
		d, got := route(table, tc.packet)
		if got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
			continue
		}
		if got != carry {
			if !bytes.Equal(before, tc.packet) {
				t.Errorf("%s: the packet was changed, although an answer would quote it", tc.name)
			}
			continue
		}
		if !whole(d.data) || checksum(d.data[:ipHeader]) != 0 || d.data[8] != before[8]-1 || addrOf(d.host).String() != "192.0.2.2" {
			t.Errorf("%s: sends %x to %v", tc.name, d.data, addrOf(d.host))
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

// Whatever comes in, the packet path does not panic, and what it lets through
// is an IPv4 packet.
func FuzzPacket(f *testing.F) {
	f.Add(testPacket("10.1.74.2", "10.1.75.3", 64, unix.IPPROTO_UDP, []byte("payload")))
	f.Add(testPacket("10.1.74.2", "10.1.76.3", 1, unix.IPPROTO_ICMP, []byte{8, 0}))
	f.Add([]byte{})
	table := newTable([]*subnet.Lease{lease("10.1.75.0/24", "192.0.2.2", "udp")})
	buf := make([]byte, icmpMax)
	f.Fuzz(func(t *testing.T, packet []byte) {
		d, v := route(table, packet)
		switch v {
		case carry:
			if !whole(d.data) {
				t.Errorf("carries %x", d.data)
			}
		case noSubnet, expired:
			quoted := packet[:packetLen(packet)]
			if answerable(quoted) {
				if got := icmpError(buf, icmpUnreachable, netip.MustParseAddr("10.1.74.0"), quoted); !whole(got) {
					t.Errorf("answers %x", got)
				}
			}
		}
		for size := range 4 {
			var joined []byte
			for first, rest := cut(packet, size*20); len(first) > 0; first, rest = cut(rest, size*20) {
				joined = append(joined, first...)
			}
			if !bytes.Equal(joined, packet) {
				t.Errorf("cut by %d, %x comes back as %x", size*20, packet, joined)
			}
		}
	})
}
