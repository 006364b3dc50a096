package udp

import (
	"math/bits"
	"sync/atomic"

	"flanneld/pkg/gso"
)

// Counters says what became of the packets, counted since the start.
type Counters struct {
	// Sent are packets given to the socket for a peer, SentBytes their size
	// without the datagram's own headers.
	Sent, SentBytes uint64
	// SentMessages are the messages that they were sent in: how many packets go
	// in one says how well batches form.
	SentMessages Batches
	// SendErrors are packets that the kernel refused to send to their peer.
	SendErrors uint64
	// TooLarge are packets that do not fit the path to their peer and must not be
	// sent in fragments.
	TooLarge uint64
	// NotIPv4 are packets from the device that are not IPv4, such as the IPv6
	// router solicitations that the kernel sends of its own accord.
	NotIPv4 uint64
	// NoSubnet are packets to an address in no known subnet.
	NoSubnet uint64
	// Expired are packets whose TTL ended here.
	Expired uint64
	// ICMPSent are answers to packets of TooLarge, NoSubnet and Expired, ICMPHeld
	// those not sent: above the rate limit, or to packets that must not be
	// answered.
	ICMPSent, ICMPHeld uint64
	// ReadErrors are reads from the device that failed, or yielded a packet that
	// is not what its virtio-net header says.
	ReadErrors uint64

	// Received are packets of peers given to the device, ReceivedBytes their
	// size without the datagram's own headers.
	Received, ReceivedBytes uint64
	// Writes are the writes to the device that they were given by.
	Writes Batches
	// UnknownPeer are datagrams from an address that is no peer's PublicIP.
	UnknownPeer uint64
	// Malformed are datagrams of peers that are not one whole IPv4 packet.
	Malformed uint64
	// Oversize are packets of peers that are larger than the device's MTU.
	Oversize uint64
	// Congested are packets of peers dropped as their datagrams were marked for
	// congestion, of which their senders understand no other sign.
	Congested uint64
	// ReceiveErrors are reads from the socket that failed, WriteErrors packets of
	// peers that the device did not take.
	ReceiveErrors, WriteErrors uint64

	// Reopened is how often device and socket were lost and opened again.
	Reopened uint64
}

// Batches counts batches by how many packets are in one: the first number is of
// those with one packet, and each further one of those with up to twice as many as
// the one before allows. The last has room for the largest that there are.
type Batches [7]uint64

// Total is how many batches there are in all.
func (b Batches) Total() (n uint64) {
	for _, some := range b {
		n += some
	}
	return n
}

// That every batch has its place, or it does not compile.
const _ = uint(1<<(len(Batches{})-1) - max(maxSegments, gso.MaxPackets))

// batches is what Batches is a snapshot of.
type batches [len(Batches{})]atomic.Uint64

// add counts a batch of so many packets, at least one.
func (b *batches) add(packets int) { b[bits.Len(uint(packets-1))].Add(1) }

func (b *batches) snapshot() (now Batches) {
	for i := range b {
		now[i] = b[i].Load()
	}
	return now
}

// counters is what Counters is a snapshot of. Only the two workers write to it,
// mostly once per message, so it costs the packet path next to nothing.
type counters struct {
	sent, sentBytes               atomic.Uint64
	sentMessages, writes          batches
	sendErrors, tooLarge          atomic.Uint64
	notIPv4, noSubnet, expired    atomic.Uint64
	icmpSent, icmpHeld            atomic.Uint64
	readErrors                    atomic.Uint64
	received, receivedBytes       atomic.Uint64
	unknownPeer, malformed        atomic.Uint64
	oversize, congested           atomic.Uint64
	receiveErrors, deviceWriteErr atomic.Uint64
	reopened                      atomic.Uint64

	// failures counts as well, and like them goes on when device and socket are
	// opened again.
	failures failureLog
}

func (c *counters) snapshot() Counters {
	return Counters{
		Sent:          c.sent.Load(),
		SentBytes:     c.sentBytes.Load(),
		SentMessages:  c.sentMessages.snapshot(),
		SendErrors:    c.sendErrors.Load(),
		TooLarge:      c.tooLarge.Load(),
		NotIPv4:       c.notIPv4.Load(),
		NoSubnet:      c.noSubnet.Load(),
		Expired:       c.expired.Load(),
		ICMPSent:      c.icmpSent.Load(),
		ICMPHeld:      c.icmpHeld.Load(),
		ReadErrors:    c.readErrors.Load(),
		Received:      c.received.Load(),
		ReceivedBytes: c.receivedBytes.Load(),
		Writes:        c.writes.snapshot(),
		UnknownPeer:   c.unknownPeer.Load(),
		Malformed:     c.malformed.Load(),
		Oversize:      c.oversize.Load(),
		Congested:     c.congested.Load(),
		ReceiveErrors: c.receiveErrors.Load(),
		WriteErrors:   c.deviceWriteErr.Load(),
		Reopened:      c.reopened.Load(),
	}
}
