package udp

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

func TestICMPError(t *testing.T) {
	packet := testPacket("10.1.74.2", "10.1.99.3", 64, unix.IPPROTO_UDP, []byte("ten bytes!"))
	packet[1] = 0x10 // TOS low delay
	buf := bytes.Repeat([]byte{0xee}, icmpMax)
	got := icmpError(buf, icmpUnreachable, codeNet, 0, netip.MustParseAddr("10.1.74.0"), packet)

	// Laid out by hand from RFC 791 and RFC 792.
	want := "45d0" + "003a" + "0000" + "4000" + "4001" + "91ef" + "0a014a00" + "0a014a02" + // IP
		"0300" + "d069" + "00000000" + // ICMP
		hex.EncodeToString(packet)
	if diff := cmp.Diff(want, hex.EncodeToString(got)); diff != "" {
		t.Errorf("ICMP error (-want +got):\n%s", diff)
	}
	if checksum(got[:ipHeader]) != 0 || checksum(got[ipHeader:]) != 0 {
		t.Error("checksums do not add up")
	}

	// The same with the MTU (RFC 1191 section 4).
	got = icmpError(buf, icmpUnreachable, codeTooLarge, 1472, netip.MustParseAddr("10.1.74.0"), packet)
	want = want[:40] + "0304" + "caa5" + "000005c0" + hex.EncodeToString(packet)
	if diff := cmp.Diff(want, hex.EncodeToString(got)); diff != "" {
		t.Errorf("ICMP error with an MTU (-want +got):\n%s", diff)
	}

	long := testPacket("10.1.74.2", "10.1.99.3", 1, unix.IPPROTO_UDP, make([]byte, 1400))
	got = icmpError(buf, icmpTimeExceeded, codeTTL, 0, netip.MustParseAddr("10.1.74.0"), long)
	if len(got) != icmpMax || !whole(got) || checksum(got[:ipHeader]) != 0 || checksum(got[ipHeader:]) != 0 {
		t.Errorf("about a long packet: %d bytes, want a valid packet of %d", len(got), icmpMax)
	}
	if !bytes.Equal(got[28:], long[:icmpMax-28]) {
		t.Error("it does not quote the packet unchanged")
	}
}

func TestAnswerable(t *testing.T) {
	icmp := func(typ byte) []byte {
		return testPacket("10.1.74.2", "10.1.99.3", 64, unix.IPPROTO_ICMP, []byte{typ, 0, 0, 0, 0, 0, 0, 0})
	}
	from := func(src string) []byte { return testPacket(src, "10.1.99.3", 64, unix.IPPROTO_UDP, make([]byte, 8)) }
	to := func(dst string) []byte { return testPacket("10.1.74.2", dst, 64, unix.IPPROTO_UDP, make([]byte, 8)) }
	fragment := func(field uint16) []byte {
		p := from("10.1.74.2")
		p[6], p[7] = byte(field>>8), byte(field)
		return p
	}
	for _, tc := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"udp", from("10.1.74.2"), true},
		{"echo request", icmp(8), true},
		{"echo reply", icmp(0), true},
		{"unreachable", icmp(3), false},
		{"source quench", icmp(4), false},
		{"redirect", icmp(5), false},
		{"time exceeded", icmp(11), false},
		{"parameter problem", icmp(12), false},
		{"icmp without a type", testPacket("10.1.74.2", "10.1.99.3", 64, unix.IPPROTO_ICMP, nil), false},
		{"first fragment", fragment(0x2000), true},
		{"later fragment", fragment(0x2001), false},
		{"last fragment", fragment(0x00b9), false},
		{"do not fragment", fragment(0x4000), true},
		{"from nobody", from("0.0.0.0"), false},
		{"from loopback", from("127.0.0.1"), false},
		{"from multicast", from("224.0.0.1"), false},
		{"from broadcast", from("255.255.255.255"), false},
		{"to multicast", to("239.1.2.3"), false},
		{"to broadcast", to("255.255.255.255"), false},
	} {
		if got := answerable(tc.packet); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// No more are allowed than the rate says, and what must not be answered takes none
// of it.
func TestICMPRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icmpSender{limiter: rate.NewLimiter(icmpPerSecond, icmpBurst)}
		good := testPacket("10.1.74.2", "10.1.99.3", 64, unix.IPPROTO_UDP, nil)
		to := testPacket("10.1.74.2", "239.1.2.3", 64, unix.IPPROTO_UDP, nil)
		allowed := func() (n int) {
			for range 10000 {
				if s.allows(codeNet, to) {
					t.Error("a packet to many hosts may be answered")
				}
				if s.allows(codeNet, good) {
					n++
				}
			}
			return n
		}
		if n := allowed(); n != icmpBurst {
			t.Errorf("%d answers at once, want %d", n, icmpBurst)
		}
		time.Sleep(10 * time.Millisecond)
		if n := allowed(); n != icmpPerSecond/100 {
			t.Errorf("%d answers after 10 ms more, want %d", n, icmpPerSecond/100)
		}
	})
}

// Packets to nowhere do not use up the answers that connections need.
func TestTooLargeHasItsOwnLimit(t *testing.T) {
	s := &icmpSender{limiter: newLimiter(), tooLarge: newLimiter()}
	good := testPacket("10.1.74.2", "10.1.75.3", 64, unix.IPPROTO_UDP, nil)
	for s.allows(codeNet, good) {
	}
	if !s.allows(codeTooLarge, good) {
		t.Error("no answer that a packet is too large, after many others")
	}
	n := 1
	for s.allows(codeTooLarge, good) {
		n++
	}
	if n > 2*icmpBurst {
		t.Errorf("%d answers that a packet is too large at once", n)
	}
}
