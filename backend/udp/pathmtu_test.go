package udp

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// The path MTU is that of the route to the host.
func TestPathMTU(t *testing.T) {
	onSmallLoopback(t, func(h *lab.Host) {
		h.Run("ip", "route", "add", "198.51.100.0/24", "dev", "eth0", "mtu", "1300")
		s := &socket{fd: -1, port: defaultPort}
		for host, want := range map[string]int{"127.0.0.2": 1500, "172.30.0.5": 1500, "198.51.100.7": 1300} {
			if got, err := s.pathMTU(addr(host)); err != nil || got != want {
				t.Errorf("to %s: %d, %v, want %d", host, got, err, want)
			}
		}
		if _, err := s.pathMTU(addr("192.0.2.1")); !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "192.0.2.1") {
			t.Errorf("to a host without a route: %v", err)
		}
	})
}
