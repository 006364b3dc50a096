package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"flanneld/backend"
)

const (
	// maxPacket is the size of the largest IPv4 packet (RFC 791).
	maxPacket = 65535

	// headroom is what tun.Device.Write needs in front of each packet, for a
	// virtio-net header (10 bytes).
	headroom = 16

	// batchSize is the most packets that one read from the device yields, and
	// the most that one write to it may be given.
	batchSize = 128
)

// path moves packets between the device and the socket, with one worker for
// each direction. All they share with the rest of the daemon is the table,
// swapped in as a whole, and the counters. Their buffers are allocated before
// they start; nothing is allocated per packet.
type path struct {
	dev   tunnel
	sock  *socket
	icmp  *icmpSender // nil where it cannot be had
	table *atomic.Pointer[table]
	count *counters
	// The two workers.
	out, in worker

	memory []byte
	// outSlots take what is read from the device. There are two batches of
	// them: small packets come one per read, and reading goes on while more are
	// waiting and a whole batch still fits, as a read of one super-packet may
	// yield that many.
	outSlots [][]byte
	// inSlots take packets that were joined to one message, one each.
	inSlots [][]byte

	readFailed, writeFailed, receiveFailed rate.Sometimes
}

// tunnel is what the packet path needs of the TUN device. Read and Write are as
// in tun.Device; they return os.ErrClosed when the device is gone.
type tunnel interface {
	Read(bufs [][]byte, sizes []int, offset int) (n int, err error)
	Write(bufs [][]byte, offset int) (int, error)
	pending() bool
	close() error
}

// errDeviceLost tells that the TUN device is gone.
var errDeviceLost = errors.New("device " + backend.TUNName + " was deleted")

// newPath makes a path that is to be run once; run closes device and socket.
func newPath(dev tunnel, sock *socket, source netip.Addr, t *atomic.Pointer[table], count *counters) (*path, error) {
	memory, slots, err := newSlots(2*batchSize + batchSize + receiveMessages)
	if err != nil {
		return nil, err
	}
	p := &path{
		dev:           dev,
		sock:          sock,
		table:         t,
		count:         count,
		memory:        memory,
		outSlots:      slots[:2*batchSize],
		inSlots:       slots[2*batchSize:][:batchSize],
		readFailed:    rate.Sometimes{Interval: logInterval},
		writeFailed:   rate.Sometimes{Interval: logInterval},
		receiveFailed: rate.Sometimes{Interval: logInterval},
	}
	sock.prepare(len(p.outSlots), slots[3*batchSize:], headroom)
	if p.icmp, err = newICMPSender(source); err != nil {
		klog.Warningf("udp: packets that cannot be carried are dropped without an answer: %v", err)
	}
	return p, nil
}

// newSlots makes n buffers, each for one packet of any size with headroom.
//
// They are that large because the kernel's packets are when it joins them, and
// because the MTU of the device is anybody's to change. Most packets are far
// smaller, so most of the memory is never touched: it is mapped outside of
// Go's heap, where it would count as in use and let garbage grow to the same
// size, and without huge pages, which would be touched as a whole.
func newSlots(n int) (memory []byte, slots [][]byte, err error) {
	// An odd distance, so that the packets' headers are not all in the same few
	// lines of the CPU's caches, as they would be at multiples of a page.
	const distance = headroom + maxPacket + 1 + 25*64
	memory, err = unix.Mmap(-1, 0, n*distance, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("mapping %d MB for packet buffers: %w", n*distance>>20, err)
	}
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // an error means there are none
	slots = make([][]byte, n)
	for i := range slots {
		from := i * distance
		slots[i] = memory[from : from+headroom+maxPacket : from+headroom+maxPacket]
	}
	return memory, slots, nil
}

// run carries packets until ctx ends or device or socket are lost. It always
// returns an error, and has closed everything then.
func (p *path) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(p.outbound)
	g.Go(p.inbound)
	g.Go(func() error {
		<-ctx.Done()
		return errors.Join(ctx.Err(), p.dev.close(), p.sock.close()) // this ends the workers
	})
	err := g.Wait()
	if p.icmp != nil {
		err = errors.Join(err, p.icmp.close())
	}
	return errors.Join(err, unix.Munmap(p.memory))
}

// outbound is the worker from the device to the socket.
func (p *path) outbound() error {
	defer p.out.waits() // one that has ended is not stuck
	sizes := make([]int, len(p.outSlots))
	datagrams := make([]datagram, 0, len(p.outSlots))
	for failures := 0; ; {
		p.out.waits()
		n, err := p.read(sizes)
		p.out.works()
		if errors.Is(err, os.ErrClosed) {
			return errDeviceLost
		}
		if err != nil {
			p.count.readErrors.Add(1)
			p.readFailed.Do(func() {
				klog.Warningf("udp: reading from %s: %v (further failures within %v are only counted)", backend.TUNName, err, logInterval)
			})
			failures++
			pause(failures)
		} else {
			failures = 0
		}

		t := p.table.Load()
		datagrams = datagrams[:0]
		var bytes uint64
		for i := range n {
			packet := p.outSlots[i][:sizes[i]]
			d, v := route(t, packet)
			if v != carry {
				p.refuse(packet, v)
				continue
			}
			datagrams = append(datagrams, d)
			bytes += uint64(len(d.data))
		}
		if len(datagrams) == 0 {
			continue
		}
		refused, err := p.sock.send(datagrams)
		p.count.sent.Add(uint64(len(datagrams) - refused))
		p.count.sentBytes.Add(bytes)
		p.count.sendErrors.Add(uint64(refused))
		if err != nil {
			return fmt.Errorf("sending to peers: %w", err)
		}
	}
}

// read fills outSlots with at least one packet, more if they are waiting, and
// sizes with their sizes. Packets read count, also when there is an error.
func (p *path) read(sizes []int) (n int, err error) {
	n, err = p.dev.Read(p.outSlots, sizes, 0)
	for err == nil && n > 0 && n+batchSize <= len(p.outSlots) && p.dev.pending() {
		var more int
		more, err = p.dev.Read(p.outSlots[n:], sizes[n:], 0)
		n += more
	}
	return n, err
}

// verdict is what is to be done with a packet from the device.
type verdict int

const (
	carry verdict = iota
	notIPv4
	noSubnet
	expired
)

// route decides about a packet from the device. A packet that is to be carried
// is made ready for it: its TTL is one less.
func route(t *table, packet []byte) (datagram, verdict) {
	n := packetLen(packet)
	if n < 0 || n > len(packet) {
		return datagram{}, notIPv4
	}
	host, ok := t.lookup(binary.BigEndian.Uint32(packet[16:]))
	if !ok {
		return datagram{}, noSubnet
	}
	if packet[8] <= 1 {
		return datagram{}, expired
	}
	decrementTTL(packet)
	return datagram{host: host, data: packet[:n]}, carry
}

// refuse counts a packet that is not carried and answers it where that is due.
func (p *path) refuse(packet []byte, v verdict) {
	var typ byte
	switch v {
	case noSubnet:
		p.count.noSubnet.Add(1)
		typ = icmpUnreachable
	case expired:
		p.count.expired.Add(1)
		typ = icmpTimeExceeded
	default:
		p.count.notIPv4.Add(1)
		return
	}
	if p.icmp != nil && p.icmp.answer(typ, packet[:packetLen(packet)]) {
		p.count.icmpSent.Add(1)
	} else {
		p.count.icmpHeld.Add(1)
	}
}

// inbound is the worker from the socket to the device.
func (p *path) inbound() error {
	defer p.in.waits()
	batch := make([][]byte, 0, batchSize)
	for failures := 0; ; {
		p.in.waits()
		messages, err := p.sock.receive()
		p.in.works()
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("receiving from peers: %w", err)
		}
		if err != nil {
			p.count.receiveErrors.Add(1)
			p.receiveFailed.Do(func() {
				klog.Warningf("udp: receiving: %v (further failures within %v are only counted)", err, logInterval)
			})
			failures++
			pause(failures)
			continue
		}
		failures = 0

		t := p.table.Load()
		for i := range messages {
			from, slot, n, size := p.sock.message(i)
			if size <= 0 || size >= n { // a single datagram stays where it is
				switch {
				case !t.knows(from):
					p.count.unknownPeer.Add(1)
				case !whole(slot[headroom:][:n]):
					p.count.malformed.Add(1)
				default:
					batch = append(batch, slot[:headroom+n])
				}
				if batch, err = p.writeFull(batch); err != nil {
					return err
				}
				continue
			}
			if !t.knows(from) {
				p.count.unknownPeer.Add(uint64((n + size - 1) / size))
				continue
			}
			for first, rest := cut(slot[headroom:][:n], size); len(first) > 0; first, rest = cut(rest, size) {
				if !whole(first) {
					p.count.malformed.Add(1)
					continue
				}
				packet := p.inSlots[len(batch)][:headroom+len(first)]
				copy(packet[headroom:], first)
				if batch, err = p.writeFull(append(batch, packet)); err != nil {
					return err
				}
			}
		}
		if batch, err = p.write(batch); err != nil {
			return err
		}
	}
}

// writeFull writes the batch to the device if it is full. It returns the batch
// to go on with.
func (p *path) writeFull(batch [][]byte) ([][]byte, error) {
	if len(batch) < batchSize {
		return batch, nil
	}
	return p.write(batch)
}

// write writes the batch to the device and returns it empty.
func (p *path) write(batch [][]byte) ([][]byte, error) {
	if len(batch) == 0 {
		return batch, nil
	}
	var bytes uint64
	for _, packet := range batch {
		bytes += uint64(len(packet) - headroom)
	}
	p.count.received.Add(uint64(len(batch)))
	p.count.receivedBytes.Add(bytes)
	_, err := p.dev.Write(batch, headroom)
	if errors.Is(err, os.ErrClosed) {
		return nil, errDeviceLost
	}
	if err != nil { // while the device is down it is EIO
		p.count.deviceWriteErr.Add(1)
		p.writeFailed.Do(func() {
			klog.Warningf("udp: writing to %s: %v (further failures within %v are only counted)", backend.TUNName, err, logInterval)
		})
	}
	return batch[:0], nil
}

// pause keeps a worker from spinning when the same call fails again and again,
// without holding up packets for a failure that comes alone.
func pause(failures int) {
	time.Sleep(min(time.Duration(failures-1)*100*time.Microsecond, 10*time.Millisecond))
}

// packetLen is the length of the IPv4 packet that b begins with, as its header
// says, or -1 if b does not begin with an IPv4 header. The checksum is not
// looked at: the kernel has made it or will check it.
func packetLen(b []byte) int {
	if len(b) < ipHeader || b[0]>>4 != 4 {
		return -1
	}
	header, total := headerLen(b), int(binary.BigEndian.Uint16(b[2:]))
	if header < ipHeader || total < header {
		return -1
	}
	return total
}

// headerLen is the length in bytes of an IPv4 packet's header.
func headerLen(packet []byte) int { return int(packet[0]&0x0f) * 4 }

// whole reports whether b is one IPv4 packet and nothing else.
func whole(b []byte) bool { return packetLen(b) == len(b) }

// decrementTTL takes one from the TTL of an IPv4 packet, which must not be 0,
// and updates the header checksum as RFC 1624 equation 3 says: HC' = ~(~HC +
// ~m + m'), where m is the 16-bit word that TTL is in. A checksum that was
// wrong stays wrong.
func decrementTTL(packet []byte) {
	old := binary.BigEndian.Uint16(packet[8:])
	packet[8]--
	sum := uint32(^binary.BigEndian.Uint16(packet[10:])) + uint32(^old) + uint32(binary.BigEndian.Uint16(packet[8:]))
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(packet[10:], ^uint16(sum))
}
