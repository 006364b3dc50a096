package udp

import "sync/atomic"

// Counters says what became of the packets, counted since the start.
type Counters struct {
	// Sent are packets given to the socket for a peer, SentBytes their size
	// without the datagram's own headers.
	Sent, SentBytes uint64
	// SendErrors are packets that the kernel refused to send to their peer.
	SendErrors uint64
	// NotIPv4 are packets from the device that are not IPv4, such as the IPv6
	// router solicitations that the kernel sends of its own accord.
	NotIPv4 uint64
	// NoSubnet are packets to an address in no known subnet.
	NoSubnet uint64
	// Expired are packets whose TTL ended here.
	Expired uint64
	// ICMPSent are answers to the packets of the two counters above, ICMPHeld
	// those not sent: above the rate limit, or to packets that must not be
	// answered.
	ICMPSent, ICMPHeld uint64
	// ReadErrors are reads from the device that failed.
	ReadErrors uint64

	// Received are packets of peers given to the device, ReceivedBytes their
	// size without the datagram's own headers.
	Received, ReceivedBytes uint64
	// UnknownPeer are datagrams from an address that is no peer's PublicIP.
	UnknownPeer uint64
	// Malformed are datagrams of peers that are not one whole IPv4 packet.
	Malformed uint64
	// ReceiveErrors are reads from the socket that failed, WriteErrors writes
	// to the device that did, each of one packet or several.
	ReceiveErrors, WriteErrors uint64

	// Reopened is how often device and socket were lost and opened again.
	Reopened uint64
}

// counters is what Counters is a snapshot of. Only the two workers write to it,
// mostly once per batch, so it costs the packet path next to nothing.
type counters struct {
	sent, sentBytes, sendErrors   atomic.Uint64
	notIPv4, noSubnet, expired    atomic.Uint64
	icmpSent, icmpHeld            atomic.Uint64
	readErrors                    atomic.Uint64
	received, receivedBytes       atomic.Uint64
	unknownPeer, malformed        atomic.Uint64
	receiveErrors, deviceWriteErr atomic.Uint64
	reopened                      atomic.Uint64
}

func (c *counters) snapshot() Counters {
	return Counters{
		Sent:          c.sent.Load(),
		SentBytes:     c.sentBytes.Load(),
		SendErrors:    c.sendErrors.Load(),
		NotIPv4:       c.notIPv4.Load(),
		NoSubnet:      c.noSubnet.Load(),
		Expired:       c.expired.Load(),
		ICMPSent:      c.icmpSent.Load(),
		ICMPHeld:      c.icmpHeld.Load(),
		ReadErrors:    c.readErrors.Load(),
		Received:      c.received.Load(),
		ReceivedBytes: c.receivedBytes.Load(),
		UnknownPeer:   c.unknownPeer.Load(),
		Malformed:     c.malformed.Load(),
		ReceiveErrors: c.receiveErrors.Load(),
		WriteErrors:   c.deviceWriteErr.Load(),
		Reopened:      c.reopened.Load(),
	}
}
