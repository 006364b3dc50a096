package udp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPortInUse(t *testing.T) {
	s := loopbackSockets(t, "127.0.0.1")[0]
	closeAtEnd(t, s)
	_, err := openSocket(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.port))
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another flanneld") {
		t.Errorf("opening the port twice: %v", err)
	}
	_, err = openSocket(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), s.port))
	if !errors.Is(err, unix.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("opening it on an address of another host: %v", err)
	}
}

// The buffers are as large as wanted, whatever the sysctls say.
func TestSocketBuffers(t *testing.T) {
	s := loopbackSockets(t, "127.0.0.1")[0]
	closeAtEnd(t, s)
	for option, want := range map[int]int{unix.SO_RCVBUF: receiveBuffer, unix.SO_SNDBUF: sendBuffer} {
		// The kernel doubles it for its own use (socket(7)).
		if got, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, option); err != nil || got != 2*want {
			t.Errorf("buffer of %d bytes (%v), want %d", got, err, 2*want)
		}
	}
}
