package udp

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"flanneld/pkg/gso"
	"flanneld/pkg/prefix"
)

// The ICMP errors a router sends (RFC 792), and their codes.
const (
	icmpUnreachable  = 3
	codeNet          = 0
	codeTooLarge     = 4 // fragmentation needed, and forbidden
	icmpTimeExceeded = 11
	codeTTL          = 0
)

const (
	// Linux's own limits for the ICMP errors it sends, net.ipv4.icmp_msgs_per_sec
	// and icmp_msgs_burst.
	icmpPerSecond = 1000
	icmpBurst     = 50

	// icmpMax is the size up to which an ICMP error quotes the packet it is
	// about (RFC 1812 section 4.3.2.3).
	icmpMax = 576

	icmpHeader = 8
)

// icmpSender answers packets that cannot be carried, as a router does.
//
// It sends through a raw socket, as a packet of this host's own, rather than
// through the TUN device: the answer's source is the device's address, and the
// kernel drops a packet that comes in with one of its own addresses as source
// (fib_validate_source in net/ipv4/fib_frontend.c; the sysctl accept_local
// would allow it, but for packets of peers as well).
type icmpSender struct {
	fd     int
	source netip.Addr
	// Answers that a packet is too large have a limit of their own: without them
	// connections hang, so packets to nowhere must not use theirs up.
	limiter, tooLarge *rate.Limiter
	buf               [icmpMax]byte
	to                unix.SockaddrInet4
}

func newICMPSender(source netip.Addr) (*icmpSender, error) {
	// IPPROTO_RAW: we write the IP header, and nothing is ever received.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket for ICMP answers: %w (the daemon needs CAP_NET_RAW)", err)
	}
	return &icmpSender{fd: fd, source: source, limiter: newLimiter(), tooLarge: newLimiter()}, nil
}

func newLimiter() *rate.Limiter { return rate.NewLimiter(icmpPerSecond, icmpBurst) }

// allows reports whether an ICMP error of the given code about a packet may be sent
// now: not about packets that must not be answered nor above the rate limit.
func (s *icmpSender) allows(code byte, packet []byte) bool {
	limiter := s.limiter
	if code == codeTooLarge {
		limiter = s.tooLarge
	}
	return answerable(packet) && limiter.Allow()
}

// send sends the ICMP error about packet to its source and reports whether it did.
// mtu is for codeTooLarge.
func (s *icmpSender) send(typ, code byte, mtu uint16, packet []byte) bool {
	msg := icmpError(s.buf[:], typ, code, mtu, s.source, packet)
	s.to.Addr = [4]byte(packet[12:16])
	return unix.Sendto(s.fd, msg, 0, &s.to) == nil
}

func (s *icmpSender) close() error { return unix.Close(s.fd) }

// answerable reports whether an ICMP error may be sent about an IPv4 packet
// (RFC 1122 section 3.2.2): not about an ICMP error, a fragment other than the
// first, a packet to many hosts, or one whose source is not a single host.
func answerable(packet []byte) bool {
	if binary.BigEndian.Uint16(packet[6:])&0x1fff != 0 {
		return false
	}
	src, dst := [4]byte(packet[12:16]), [4]byte(packet[16:20])
	// 224/4 is multicast, 240/4 reserved and holds the broadcast address.
	if dst[0] >= 224 || src[0] >= 224 || src[0] == 0 || src[0] == 127 {
		return false
	}
	if packet[9] != unix.IPPROTO_ICMP {
		return true
	}
	payload := packet[headerLen(packet):]
	if len(payload) == 0 {
		return false
	}
	switch payload[0] {
	case icmpUnreachable, icmpTimeExceeded, 4, 5, 12: // source quench, redirect, parameter problem
		return false
	}
	return true
}

// icmpError writes into buf, which holds icmpMax bytes, the ICMP error of the
// given type and code about packet, as a whole IPv4 packet from source to packet's
// source.
func icmpError(buf []byte, typ, code byte, mtu uint16, source netip.Addr, packet []byte) []byte {
	n := copy(buf[ipHeader+icmpHeader:icmpMax], packet)
	buf = buf[:ipHeader+icmpHeader+n]

	ip := buf[:ipHeader]
	clear(ip)
	ip[0] = 4<<4 | ipHeader/4
	// Precedence "internetwork control" with the TOS bits of the packet (RFC
	// 1812 section 4.3.2.5), as Linux does.
	ip[1] = 0xc0 | packet[1]&0x1e
	binary.BigEndian.PutUint16(ip[2:], uint16(len(buf)))
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // DF, so that the ID may be 0 (RFC 6864)
	ip[8] = 64
	ip[9] = unix.IPPROTO_ICMP
	binary.BigEndian.PutUint32(ip[12:], prefix.Uint(source))
	copy(ip[16:20], packet[12:16])
	putChecksum(ip[10:], ip)

	icmp := buf[ipHeader:]
	clear(icmp[:icmpHeader])
	icmp[0], icmp[1] = typ, code
	binary.BigEndian.PutUint16(icmp[6:], mtu) // RFC 1191 section 4; else 0
	putChecksum(icmp[2:], icmp)
	return buf
}

// putChecksum writes the checksum (RFC 1071) of b, where at is still 0.
func putChecksum(at, b []byte) { binary.NativeEndian.PutUint16(at, ^gso.Fold(gso.Sum(0, b))) }
