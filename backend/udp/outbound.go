package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"flanneld/backend"
	"flanneld/pkg/gso"
)

const (
	// readSize is the room that one read from the device wants.
	readSize = gso.HeaderLen + maxPacket
	// arenaSize is the room for what is read before it is sent. More does not pay:
	// it is to stay in the processor's cache.
	arenaSize = 2*readSize + 4096
	// headersSize is the room for the headers of packets that are cut.
	headersSize = 64 << 10
)

// outbound is the way from the device to the peers. It belongs to one goroutine.
type outbound struct {
	*path
	send *sender
	icmp *icmpSender // nil where it cannot be had

	arena   []byte // that packets are read into
	headers []byte // of packets that are cut
	used    int    // of headers
	quote   []byte // a packet that an ICMP error is about
}

func newOutbound(p *path, arena []byte, source netip.Addr) *outbound {
	o := &outbound{
		path:    p,
		send:    newSender(p.sock, p.count),
		arena:   arena,
		headers: make([]byte, headersSize),
		quote:   make([]byte, maxPacket),
	}
	o.send.tooLarge = o.tooLarge
	var err error
	if o.icmp, err = newICMPSender(source); err != nil {
		if _, due := p.count.failures.due("answering", err); due {
			klog.Warningf("udp: packets that cannot be carried are dropped without an answer: %v", err)
		}
	}
	return o
}

func (o *outbound) close() error {
	if o.icmp == nil {
		return nil
	}
	return o.icmp.close()
}

// carry sends what waits on the device, a batch at most. Without anything it
// returns unix.EAGAIN. An error other than errDeviceLost is of that moment only.
func (o *outbound) carry() error {
	t := o.table.Load()
	packets, at := 0, 0
	var err error
	for at+readSize <= len(o.arena) && packets < sendDatagrams {
		var n int
		if n, err = o.dev.read(o.arena[at : at+readSize]); err != nil {
			break
		}
		packets++
		if n >= gso.HeaderLen {
			o.packet(t, gso.ParseHeader(o.arena[at:]), o.arena[at+gso.HeaderLen:at+n])
		} else {
			o.broken(fmt.Errorf("%d bytes are no virtio-net header", n))
		}
		at += (n + 63) &^ 63 // that each begins a line of the cache
	}
	o.flush()
	switch {
	case err == unix.EAGAIN && packets > 0:
		return nil
	case err != nil && err != unix.EAGAIN && !errors.Is(err, errDeviceLost):
		o.count.readErrors.Add(1)
		if more, due := o.count.failures.due("reading", err); due {
			klog.Warningf("udp: reading from %s: %v%s", backend.TUNName, err, more)
		}
	}
	return err
}

// verdict is what is to be done with a packet from the device.
type verdict int

const (
	carry verdict = iota
	notIPv4
	noSubnet
	expired
)

// route decides about a packet from the device.
func route(t *table, packet []byte) (host uint32, v verdict) {
	if !whole(packet) {
		return 0, notIPv4
	}
	host, ok := t.lookup(binary.BigEndian.Uint32(packet[16:]))
	if !ok {
		return 0, noSubnet
	}
	if packet[8] <= 1 {
		return 0, expired
	}
	return host, carry
}

// packet sends a packet or what a super-packet stands for.
func (o *outbound) packet(t *table, h gso.Header, packet []byte) {
	if n := packetLen(packet); n >= 0 && n < len(packet) {
		packet = packet[:n]
	}
	host, v := route(t, packet)
	if v == carry {
		decrementTTL(packet)
	}
	switch {
	case v == notIPv4:
		o.count.notIPv4.Add(1)
	case h.Type == gso.None:
		if err := gso.Complete(h, packet); err != nil {
			o.broken(err)
		} else if v == carry {
			o.send.add(host, packet[1], packet, nil)
		} else {
			o.refuse(v, packet)
		}
	default:
		c, err := gso.NewCutter(h, packet)
		if err != nil {
			o.broken(err)
		} else if v == carry {
			o.cut(host, packet[1], &c)
		} else {
			o.refuse(v, o.first(&c))
		}
	}
}

// cut sends what a super-packet stands for.
func (o *outbound) cut(host uint32, tos byte, c *gso.Cutter) {
	for c.Packets() > 0 {
		if o.used+c.HeaderLen > len(o.headers) {
			o.flush()
		}
		header := o.headers[o.used : o.used+c.HeaderLen]
		o.used += c.HeaderLen
		o.send.add(host, tos, header, c.Next(header))
	}
}

// first is the first of the packets that a super-packet stands for, to be quoted.
func (o *outbound) first(c *gso.Cutter) []byte {
	n := c.HeaderLen
	n += copy(o.quote[n:], c.Next(o.quote))
	return o.quote[:n]
}

func (o *outbound) flush() {
	o.send.flush()
	o.used = 0
}

func (o *outbound) broken(err error) {
	o.count.readErrors.Add(1)
	if more, due := o.count.failures.due("broken", err); due {
		klog.Warningf("udp: a packet from %s is dropped: %v%s", backend.TUNName, err, more)
	}
}

// refuse counts a packet that is not carried and answers it where that is due.
func (o *outbound) refuse(v verdict, packet []byte) {
	switch v {
	case noSubnet:
		o.count.noSubnet.Add(1)
		o.answer(icmpUnreachable, codeNet, 0, packet)
	case expired:
		o.count.expired.Add(1)
		o.answer(icmpTimeExceeded, codeTTL, 0, packet)
	}
}

// tooLarge tells the sender of a packet that it does not fit the path to its host
// in one piece, as where a router on the way has a link with a smaller MTU (RFC
// 1812 section 4.2.2.7).
func (o *outbound) tooLarge(host uint32, header, payload []byte) {
	o.count.tooLarge.Add(1)
	n := copy(o.quote, header)
	n += copy(o.quote[n:], payload)
	incrementTTL(o.quote) // it is quoted as it came
	o.answer(icmpUnreachable, codeTooLarge, host, o.quote[:n])
}

func (o *outbound) answer(typ, code byte, host uint32, packet []byte) {
	if o.icmp == nil || !o.icmp.allows(code, packet) {
		o.count.icmpHeld.Add(1)
		return
	}
	mtu := 0
	if code == codeTooLarge {
		var err error
		if mtu, err = o.sock.pathMTU(host); err != nil {
			o.count.icmpHeld.Add(1)
			klog.V(1).Info(fmt.Errorf("udp: %w", err))
			return
		}
		mtu -= overhead
	}
	if o.icmp.send(typ, code, uint16(mtu), packet) {
		o.count.icmpSent.Add(1)
	} else {
		o.count.icmpHeld.Add(1)
	}
}
