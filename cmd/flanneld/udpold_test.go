package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// oldDaemon is a stand-in for an older daemon: one packet for each read and each
// write, no offloads. Everything that it gets is judged on its way.
type oldDaemon struct {
	*byHand
	tun  *os.File
	flan netip.Addr // the host with flanneld
	mtu  int
	got  atomic.Int64
}

// runOldDaemon makes it the peer of the network, and adds a container.
func runOldDaemon(u *udpNet) (*oldDaemon, *lab.Container) {
	u.t.Helper()
	d := &oldDaemon{byHand: u.peer, flan: u.h.Addr(), mtu: u.mtu}
	// With two sockets of one port, the other would get a part of what comes.
	u.Must(u.peer.conn.Close())
	d.conn = d.socket(u.t)
	u.Must(d.Do(func() (err error) {
		d.tun, err = openTUN("old0")
		return err
	}))
	d.Run("sh", "-ec", fmt.Sprintf("ip addr add 10.1.2.0/16 dev old0; ip link set dev old0 mtu %d up", u.mtu))
	d.Sysctl("net.ipv4.ip_forward", "1")
	var running sync.WaitGroup
	running.Go(d.receive)
	running.Go(d.forward)
	u.t.Cleanup(func() {
		d.conn.Close()
		d.tun.Close()
		running.Wait()
	})
	return d, d.Container("c", netip.MustParsePrefix("10.1.2.1/24"), u.mtu)
}

// openTUN makes a TUN device that gives and takes packets and nothing else.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making TUN device %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// receive and forward end when device and socket are closed.
func (d *oldDaemon) receive() {
	buf := make([]byte, 1<<16)
	for {
		n, err := d.conn.Read(buf)
		if err != nil {
			return
		}
		d.got.Add(1)
		if err := checkPacket(buf[:n], d.mtu); err != nil {
			d.t.Errorf("the older daemon got what is no packet: %v: %s", err, describe(buf[:n]))
			continue
		}
		if _, err := d.tun.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (d *oldDaemon) forward() {
	buf := make([]byte, 1<<16)
	for {
		n, err := d.tun.Read(buf)
		if err != nil {
			return
		}
		p := buf[:n]
		if p[0]>>4 != 4 || p[8] <= 1 {
			continue
		}
		p[8]--
		sealHeader(p)
		if _, err := d.conn.WriteToUDPAddrPort(p, netip.AddrPortFrom(d.flan, udpPort)); err != nil {
			return
		}
	}
}

// A host with flanneld and one with an older daemon carry each other's packets,
// whatever containers do.
func TestUDPWithOlderDaemon(t *testing.T) {
	for _, wire := range wires {
		t.Run(wire, func(t *testing.T) {
			u := newUDPNet(t, wire)
			d, old := runOldDaemon(u)
			large := tap(t, d.Node, "eth0", func(p []byte) bool { return len(p) > 1500 })
			for _, p := range [][2]*lab.Container{{u.c, old}, {old, u.c}} {
				reach(t, p[0], p[1], p[1].Addr(), p[0].Addr(), u.mtu)
				if _, err := lab.Transfer(p[0], p[1], p[1].Addr(), 16<<20); err != nil {
					t.Error(err)
				}
				if _, err := p[0].Ping(p[1].Addr(), lab.Echo{Count: 3, Size: 20000}); err != nil {
					t.Errorf("in fragments: %v", err)
				}
			}
			if n := d.got.Load(); n < 16<<20/int64(u.mtu) {
				t.Errorf("only %d datagrams came", n)
			}
			if all := large.seen(); wire == "cut" && len(all) > 0 {
				t.Errorf("a packet of %d bytes crossed a wire on which they are to be cut", len(all[0].packet))
			}
		})
	}
}
