package udp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// pathMTU is the size in bytes of the largest packet that gets to a host in one
// piece, as far as the kernel knows: a router that could not pass one on has said
// so, or the interface has a smaller MTU by now.
func (s *socket) pathMTU(host uint32) (int, error) {
	// The kernel tells it of a connected socket only (ip(7), IP_MTU).
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(s.port), Addr: addrOf(host).As4()})
	}
	var mtu int
	if err == nil {
		mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
	}
	if err != nil {
		return 0, fmt.Errorf("asking the kernel for the path MTU to %v: %w", addrOf(host), err)
	}
	return mtu, nil
}
