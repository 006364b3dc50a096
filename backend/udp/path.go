package udp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"flanneld/backend"
)

// path moves packets between the device and the socket, both ways. All it shares
// with the rest of the daemon is the table, swapped in as a whole, and the
// counters. Its buffers are allocated before it runs; nothing is allocated per
// packet.
type path struct {
	dev   *device
	sock  *socket
	table *atomic.Pointer[table]
	count *counters

	out     *outbound
	in      *inbound
	workers *workers
	memory  []byte
}

// errDeviceLost tells that the TUN device is gone.
var errDeviceLost = errors.New("device " + backend.TUNName + " was deleted")

// newPath makes a path that is to be run once; run closes device and socket, which
// stay open where newPath fails.
func newPath(dev *device, sock *socket, source netip.Addr, mtu int, t *atomic.Pointer[table], count *counters) (*path, error) {
	p := &path{dev: dev, sock: sock, table: t, count: count}
	memory, slots, err := newSlots(receiveMessages, arenaSize)
	if err != nil {
		return nil, err
	}
	p.memory = memory
	p.out = newOutbound(p, slots[receiveMessages], source)
	p.in = newInbound(p, slots[:receiveMessages], mtu)
	p.workers, err = newWorkers(&way{fd: sock.fd, carry: p.in.carry}, &way{fd: dev.fd, carry: p.out.carry})
	if err != nil {
		return nil, errors.Join(err, p.free())
	}
	return p, nil
}

// newSlots makes n buffers, each for one packet of any size, and one of another
// size after them.
//
// They are that large because the kernel's packets are when it joins them, and
// because the MTU of the device is anybody's to change. Most packets are far
// smaller, so most of the memory is never touched: it is mapped outside of
// Go's heap, where it would count as in use and let garbage grow to the same
// size, and without huge pages, which would be touched as a whole.
func newSlots(n, last int) (memory []byte, slots [][]byte, err error) {
	// An odd distance, so that the packets' headers are not all in the same few
	// lines of the CPU's caches, as they would be at multiples of a page.
	const distance = maxPacket + 1 + 25*64
	size := n*distance + last
	memory, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("mapping %d kB for packet buffers: %w", size/1000, err)
	}
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // an error means there are none
	for i := range n {
		from := i * distance
		slots = append(slots, memory[from:from+maxPacket:from+maxPacket])
	}
	return memory, append(slots, memory[n*distance:]), nil
}

// run carries packets until ctx ends or device or socket are lost. It always
// returns an error, and has closed everything then.
func (p *path) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(p.workers.run)
	g.Go(func() error {
		<-ctx.Done()
		p.workers.stop()
		return ctx.Err()
	})
	return errors.Join(g.Wait(), p.close())
}

func (p *path) close() error {
	return errors.Join(p.dev.close(), p.sock.close(), p.free())
}

// free gives back what newPath has taken.
func (p *path) free() error {
	return errors.Join(p.out.close(), unix.Munmap(p.memory))
}

// describe says how packets are carried, and what the kernel lacks for a better
// way.
func (p *path) describe() string {
	text := "packets one by one"
	switch {
	case p.sock.cuts && p.sock.joins:
		text = "up to 64 KiB of TCP at once"
	case p.sock.cuts:
		text = "up to 64 KiB of TCP at once to peers"
	case p.sock.joins:
		text = "up to 64 KiB of TCP at once from peers"
	}
	if p.dev.datagrams {
		text = strings.Replace(text, "TCP", "TCP or datagrams", 1)
	}
	if lacks := lacks(p.sock, p.dev); lacks != "" {
		text += "; the kernel lacks " + lacks
	}
	return text
}

// lacks is what would carry packets faster and the kernel does not have, empty if
// it has all.
func lacks(sock *socket, dev *device) string {
	var all []string
	switch {
	case !sock.cuts && !sock.joins:
		all = append(all, "UDP_SEGMENT and UDP_GRO (Linux 5.0)")
	case !sock.joins:
		all = append(all, "UDP_GRO (Linux 5.0)")
	case !sock.cuts:
		all = append(all, "UDP_SEGMENT (Linux 4.18)")
	}
	if !dev.datagrams {
		all = append(all, "segmentation of datagrams on TUN devices (Linux 6.2)")
	}
	return strings.Join(all, " and ")
}
