package udp

import (
	"errors"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"flanneld/backend"
	"flanneld/pkg/gso"
)

// inbound is the way from the peers to the device. It belongs to one goroutine.
type inbound struct {
	*path
	receive *receiver
	join    *gso.Joiner
	// maxPacket is the size of the largest packet that a peer may send.
	maxPacket int
	lost      bool // the device is
}

func newInbound(p *path, slots [][]byte, mtu int) *inbound {
	in := &inbound{path: p, receive: newReceiver(p.sock, slots), maxPacket: mtu}
	in.join = gso.NewJoiner(p.dev.datagrams, in.write)
	return in
}

// carry writes a batch of what has been received to the device. Without anything
// it returns unix.EAGAIN. An error other than errDeviceLost is of that moment only.
func (in *inbound) carry() error {
	messages, err := in.receive.receive()
	if err != nil {
		if err != unix.EAGAIN {
			in.count.receiveErrors.Add(1)
			if more, due := in.count.failures.due("receiving", err); due {
				klog.Warningf("udp: receiving: %v%s", err, more)
			}
		}
		return err
	}
	t := in.table.Load()
	for i := range messages {
		m := in.receive.message(i)
		if !t.knows(m.from) {
			datagrams := 1
			if m.size > 0 {
				datagrams = (len(m.data) + m.size - 1) / m.size
			}
			in.count.unknownPeer.Add(uint64(datagrams))
			continue
		}
		if len(m.data) == 0 {
			in.count.malformed.Add(1)
			continue
		}
		for first, rest := cut(m.data, m.size); len(first) > 0; first, rest = cut(rest, m.size) {
			in.packet(first, m.tos)
		}
	}
	in.join.Flush()
	if in.lost {
		return errDeviceLost
	}
	return nil
}

// packet passes on what was in one datagram of a peer.
func (in *inbound) packet(b []byte, outerTOS byte) {
	if !whole(b) {
		in.count.malformed.Add(1)
		return
	}
	if len(b) > in.maxPacket {
		in.count.oversize.Add(1)
		return
	}
	if outerTOS&ecnMask != b[1]&ecnMask {
		tos, ok := congestion(b[1], outerTOS)
		if !ok {
			in.count.congested.Add(1)
			return
		}
		if tos != b[1] {
			setTOS(b, tos)
		}
	}
	in.join.Add(b)
}

// write writes what the joiner made of packets to the device.
func (in *inbound) write(h gso.Header, pieces [][]byte) {
	bytes := 0
	for _, b := range pieces {
		bytes += len(b)
	}
	if h.Type != gso.None {
		bytes += (len(pieces) - 1) * int(h.Headers)
	}
	err := in.dev.write(h, pieces)
	if err == nil {
		in.count.received.Add(uint64(len(pieces)))
		in.count.receivedBytes.Add(uint64(bytes))
		in.count.writes.add(len(pieces))
		return
	}
	if errors.Is(err, errDeviceLost) {
		in.lost = true
		return
	}
	in.count.deviceWriteErr.Add(uint64(len(pieces))) // while the device is down it is EIO
	if more, due := in.count.failures.due("writing", err); due {
		klog.Warningf("udp: writing to %s: %v%s", backend.TUNName, err, more)
	}
}
