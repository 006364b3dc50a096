package udp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/backend"
	"flanneld/pkg/gso"
	"flanneld/pkg/lab"
	"flanneld/subnet"
)

// tunLab is a lab for a test that needs TUN devices.
func tunLab(t *testing.T) (*lab.Lab, *lab.Segment) {
	t.Helper()
	if err := lab.TUN(); err != nil {
		t.Skip(err)
	}
	if err := lab.Tools("ip"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	return l, l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
}

// Between real TUN devices everything crosses, TCP in super-packets on the way in
// and out, and the loss of a device ends its path.
func TestDevices(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			l, s := tunLab(t)
			h1, h2 := l.Host("h1", s), l.Host("h2", s)
			before := runtime.GOMAXPROCS(0)
			runtime.GOMAXPROCS(before + 4) // see startNodes
			defer runtime.GOMAXPROCS(before)
			var hosts atomic.Pointer[table]
			hosts.Store(newTable([]*subnet.Lease{
				lease("10.1.1.0/24", h1.Addr().String(), "udp"), lease("10.1.2.0/24", h2.Addr().String(), "udp"),
			}))
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var ended []chan error
			var counts []*counters
			for i, h := range []*lab.Host{h1, h2} {
				end, count := make(chan error, 1), new(counters)
				ended, counts = append(ended, end), append(counts, count)
				source := netip.AddrFrom4([4]byte{10, 1, byte(i + 1), 0})
				l.Must(h.Do(func() error {
					dev, err := openDevice(backend.TUNName)
					if err != nil {
						return err
					}
					sock, err := openSocket(netip.AddrPortFrom(h.Addr(), defaultPort))
					if err != nil {
						return errors.Join(err, dev.close())
					}
					if k == noOffload {
						sock.plainly(t)
					}
					p, err := newPath(dev, sock, source, testMTU, &hosts, count)
					if err != nil {
						return errors.Join(err, dev.close(), sock.close())
					}
					go func() { end <- p.run(ctx) }()
					return nil
				}))
				h.Run("sh", "-ec", fmt.Sprintf(`
					ip addr add %v/32 dev flannel0
					ip link set flannel0 up mtu %d
					ip route add 10.1.0.0/16 dev flannel0 src %v`, source, testMTU, source))
			}
			to := netip.MustParseAddr("10.1.2.0")
			_, err := h1.Ping(to, lab.Echo{Count: 3})
			l.Must(err)
			seen, err := lab.Transfer(h1, h2, to, 8<<20)
			l.Must(err)
			if seen != netip.MustParseAddr("10.1.1.0") {
				t.Errorf("the receiver sees %v", seen)
			}
			var c1, c2 Counters
			lab.Eventually(t, patience, "all that is sent is received", func() error { // and counted
				c1, c2 = counts[0].snapshot(), counts[1].snapshot()
				if c1.Sent < 8<<20/testMTU || c2.Received != c1.Sent {
					return fmt.Errorf("%d packets sent, %d received", c1.Sent, c2.Received)
				}
				return nil
			})
			if (k == offload) && (c1.SentMessages.Total() > c1.Sent/2 || c2.Writes.Total() > c2.Received/2) || k == noOffload && c1.SentMessages.Total() != c1.Sent {
				t.Errorf("%d packets in %d messages, and %d in %d writes", c1.Sent, c1.SentMessages.Total(), c2.Received, c2.Writes.Total())
			}

			h1.Run("ip", "link", "del", "flannel0")
			if err := within(ended[0]); !errors.Is(err, errDeviceLost) {
				t.Errorf("when the device was deleted, run returned %v", err)
			}
			stop()
			if err := within(ended[1]); !errors.Is(err, context.Canceled) {
				t.Errorf("when it was stopped, run returned %v", err)
			}
			if out := h2.Run("ip", "-o", "link", "show", "flannel0"); !strings.Contains(out, "flannel0") {
				t.Error("the device of the path that was stopped is not there any more")
			}
		})
	}
}

// What a device says when it is down, gone, open elsewhere or of another shape.
func TestOpenDevice(t *testing.T) {
	l, s := tunLab(t)
	h := l.Host("h1", s)
	l.Must(h.Do(func() error {
		h.Run("ip", "tuntap", "add", "dev", "flannel0", "mode", "tap")
		if _, err := openDevice("flannel0"); err == nil || !strings.Contains(err.Error(), "is a TAP device and not TUN") {
			t.Errorf("opening somebody's TAP device: %v", err)
		}
		h.Run("ip", "link", "del", "flannel0")
		// What an earlier owner has left is replaced, or set anew.
		h.Run("ip", "tuntap", "add", "dev", "flannel0", "mode", "tun", "multi_queue")
		d, err := openDevice("flannel0")
		if err != nil {
			return err
		}
		if out := h.Run("ip", "-d", "link", "show", "flannel0"); !strings.Contains(out, "tun type tun") || !strings.Contains(out, "persist on") || strings.Contains(out, "multi_queue on") {
			t.Errorf("instead of a multi-queue device there is %s", out)
		}
		if _, err := openDevice("flannel0"); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "stop that first") {
			t.Errorf("opening it twice: %v", err)
		}
		if _, err := openDevice("eth0"); err == nil || !strings.Contains(err.Error(), "not TUN") {
			t.Errorf("opening one of another kind: %v", err)
		}

		buf := make([]byte, readSize)
		p := segment(unix.IPPROTO_UDP, "10.1.1.5", "10.1.2.0", 1, 0, []byte("payload"))
		if _, err := d.read(buf); err != unix.EAGAIN {
			t.Errorf("reading with nothing there: %v", err)
		}
		if err := d.write(gso.Header{}, [][]byte{p}); !errors.Is(err, unix.EIO) {
			t.Errorf("writing while it is down: %v", err)
		}
		h.Run("sh", "-ec", `
			ip addr add 10.1.2.0/32 dev flannel0
			ip link set flannel0 up
			ip route add 10.1.0.0/16 dev flannel0`)
		if err := d.write(gso.Header{}, [][]byte{p[:5], p[5:]}); err != nil {
			t.Errorf("writing in two pieces: %v", err)
		}
		// The kernel answers that no one listens there.
		awaitInput(t, d.fd)
		for found := false; !found; {
			n, err := d.read(buf)
			if err != nil {
				t.Fatalf("reading the answer: %v", err)
			}
			answer := buf[gso.HeaderLen:n]
			found = whole(answer) && answer[9] == unix.IPPROTO_ICMP && bytes.Contains(answer, p[12:20])
		}
		h.Run("ip", "link", "del", "flannel0")
		if _, err := d.read(buf); err != errDeviceLost {
			t.Errorf("reading when it is gone: %v", err)
		}
		if err := d.write(gso.Header{}, [][]byte{p}); err != errDeviceLost {
			t.Errorf("writing when it is gone: %v", err)
		}
		return d.close()
	}))
	if err := (&device{fd: -1}).write(gso.Header{}, nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("writing to a file that is not open: %v", err)
	}
}
