package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// TCP connections of containers carry their data whole, in segments of any size
// and with all that TCP puts into its headers.
func TestUDPTransfers(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) {
			needTUN(t, "udp")
			c, s := newCluster(t)
			c.SetConfig(configOf(`{"Type": "udp"}`))
			_, c1 := joinBy(t, c, s, 1, wire)
			_, c2 := joinBy(t, c, s, 2, wire)
			lab.EventuallyPing(t, patience, c1, c2.Addr(), lab.Echo{})
			for _, timestamps := range []string{"1", "0"} {
				for _, n := range []*lab.Container{c1, c2} {
					n.Sysctl("net.ipv4.tcp_timestamps", timestamps)
					n.Sysctl("net.ipv4.tcp_ecn", "1")
				}
				for _, test := range []struct{ mss, size int }{{0, 8 << 20}, {1000, 4 << 20}, {536, 4 << 20}, {100, 1 << 20}} {
					for _, p := range [][2]*lab.Container{{c1, c2}, {c2, c1}} {
						if err := transfer(p[0], p[1], test.mss, test.size); err != nil {
							t.Errorf("timestamps %s, segments of %d bytes: %v", timestamps, test.mss, err)
						}
					}
				}
			}
		})
	}
}

// transfer sends so many bytes over TCP, with segments of at most so many bytes
// (0 leaves that to the kernel), in writes of all sizes, and checks that just
// those arrive.
func transfer(from, to *lab.Container, mss, size int) error {
	limit := func(_, _ string, c syscall.RawConn) (err error) {
		if mss == 0 {
			return nil
		}
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, mss) }), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var lis net.Listener
	err := to.Do(func() (err error) {
		lc := net.ListenConfig{Control: limit}
		lc.SetMultipathTCP(false)
		lis, err = lc.Listen(ctx, "tcp4", netip.AddrPortFrom(to.Addr(), 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer lis.Close()
	lis.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	var sender net.Conn
	err = from.Do(func() (err error) {
		d := net.Dialer{Control: limit, FallbackDelay: -1}
		d.SetMultipathTCP(false)
		sender, err = d.DialContext(ctx, "tcp4", lis.Addr().String())
		return err
	})
	if err != nil {
		return err
	}
	defer sender.Close()
	receiver, err := lis.Accept()
	if err != nil {
		return err
	}
	defer receiver.Close()
	deadline, _ := ctx.Deadline()
	sender.SetDeadline(deadline)
	receiver.SetDeadline(deadline)

	data := noise(size, uint64(mss))
	sent := make(chan error, 1)
	go func() {
		rest := data
		for n := 1; len(rest) > 0; n = n*3/2 + 1 {
			n = min(n, len(rest), 1<<18)
			if _, err := sender.Write(rest[:n]); err != nil {
				sent <- err
				return
			}
			rest = rest[n:]
		}
		sent <- sender.Close()
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, receiver)
	sender.Close()
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("from %s to %s: %d of %d bytes arrived: %w", from.Name, to.Name, n, size, err)
	}
	if [32]byte(sum.Sum(nil)) != sha256.Sum256(data) {
		return fmt.Errorf("from %s to %s: the %d bytes that arrived are not the %d that were sent", from.Name, to.Name, n, size)
	}
	return nil
}
