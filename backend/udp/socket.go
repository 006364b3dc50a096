package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiveBuffer and sendBuffer are what may be queued on the socket, in bytes; the
// kernel takes twice that, for its own data (socket(7)). 7 MiB are some 5 ms of
// datagrams at 10 Gbit/s. What waits to be sent is more where packets wait for an
// address resolution that gets no answer: 212,992 bytes for each such peer
// (net.ipv4.neigh.default.unres_qlen_bytes). So some 300 peers on the segment may
// be dead and sent to at the same time before others are affected.
const (
	receiveBuffer = 7 << 20
	sendBuffer    = 32 << 20
)

// socket is the UDP socket. It sends and receives datagrams in batches, see
// sender and receiver, with the kernel cutting and joining messages of up to 64
// KiB where it can (UDP_SEGMENT, Linux 4.18, and UDP_GRO, Linux 5.0): the way
// through the kernel's network stack is then paid once per message and not per
// datagram. One goroutine may send while another receives.
type socket struct {
	fd   int
	port uint16
	// joins and cuts tell whether the kernel joins received datagrams, and cuts
	// messages sent. cuts belongs to the sending goroutine.
	joins, cuts bool
}

// mmsghdr is struct mmsghdr of recvmmsg(2), which x/sys/unix does not have.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// openSocket binds to the given address.
func openSocket(local netip.AddrPort) (*socket, error) {
	fail := func(err error) error {
		hint := ""
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			hint = ": another process, probably another flanneld, has that port; stop it or choose another Port for the whole cluster"
		case errors.Is(err, unix.EADDRNOTAVAIL):
			hint = ": this host does not have that address any more"
		}
		return fmt.Errorf("opening the udp backend's socket on %v: %w%s", local, err, hint)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fail(err)
	}
	s := &socket{fd: fd, port: local.Port()}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	err = errors.Join(
		// As sender expects it at first.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
		// For congestion notification, see congestion.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fail(err)
	}
	// An old kernel does not know these options. Then everything works as well,
	// only slower.
	_, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.cuts = err == nil
	s.joins = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	return s, nil
}

// setBuffer makes one of the socket's buffers as large as wanted, or as large as
// the sysctls rmem_max and wmem_max let a process without CAP_NET_ADMIN.
func setBuffer(fd, force, option, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size)
	}
}

// close must not be called while one sends or receives.
func (s *socket) close() error { return unix.Close(s.fd) }

// sockaddr is the address of the socket of the backend at the given host.
func sockaddr(host uint32, port uint16) (a unix.RawSockaddrInet4) {
	a.Family = unix.AF_INET
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&a.Port))[:], port)
	binary.BigEndian.PutUint32(a.Addr[:], host)
	return a
}
