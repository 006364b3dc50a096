package udp

import "github.com/prometheus/client_golang/prometheus"

// The Backend is a prometheus.Collector. What it is asked for is read from the
// counters at that moment, so that who carries packets knows nothing of it.
var _ prometheus.Collector = (*Backend)(nil)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("flannel_udp_"+name, help, labels, nil)
}

const (
	direction = "direction"
	toPeers   = "out"
	fromPeers = "in"
)

var (
	packetsDesc  = desc("packets_total", "Packets carried to the peers (out) and from them (in).", direction)
	bytesDesc    = desc("bytes_total", "Bytes of the packets carried, without the headers of the datagrams they were in.", direction)
	batchDesc    = desc("batch_packets", "Packets in each message that was sent to a peer (out) and in each write to the device (in).", direction)
	droppedDesc  = desc("dropped_packets_total", "Packets that were not carried, by reason.", direction, "reason")
	readsDesc    = desc("read_errors_total", "Reads from the device (out) and from the socket (in) that failed or gave what is no packet.", direction)
	icmpDesc     = desc("icmp_errors_total", "ICMP errors about dropped packets, sent to who had sent the packets, or suppressed as there may be no answer to a packet or there are too many.", "outcome")
	reopenedDesc = desc("reopened_total", "How often device and socket were lost and opened again.")
)

// Describe implements prometheus.Collector.
func (b *Backend) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(b, to) }

// Collect implements prometheus.Collector.
func (b *Backend) Collect(to chan<- prometheus.Metric) {
	c := b.Counters()
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	counter(packetsDesc, c.Sent, toPeers)
	counter(packetsDesc, c.Received, fromPeers)
	counter(bytesDesc, c.SentBytes, toPeers)
	counter(bytesDesc, c.ReceivedBytes, fromPeers)
	to <- c.SentMessages.histogram(c.Sent, toPeers)
	to <- c.Writes.histogram(c.Received, fromPeers)
	counter(droppedDesc, c.SendErrors, toPeers, "send_error")
	counter(droppedDesc, c.TooLarge, toPeers, "too_large")
	counter(droppedDesc, c.NotIPv4, toPeers, "not_ipv4")
	counter(droppedDesc, c.NoSubnet, toPeers, "no_subnet")
	counter(droppedDesc, c.Expired, toPeers, "ttl_expired")
	counter(droppedDesc, c.UnknownPeer, fromPeers, "unknown_peer")
	counter(droppedDesc, c.Malformed, fromPeers, "malformed")
	counter(droppedDesc, c.Oversize, fromPeers, "oversize")
	counter(droppedDesc, c.Congested, fromPeers, "congested")
	counter(droppedDesc, c.WriteErrors, fromPeers, "write_error")
	counter(readsDesc, c.ReadErrors, toPeers)
	counter(readsDesc, c.ReceiveErrors, fromPeers)
	counter(icmpDesc, c.ICMPSent, "sent")
	counter(icmpDesc, c.ICMPHeld, "suppressed")
	counter(reopenedDesc, c.Reopened)
}

// histogram is what Prometheus makes of batches with so many packets in all.
func (b Batches) histogram(packets uint64, direction string) prometheus.Metric {
	upTo, n := map[float64]uint64{}, uint64(0)
	for i, some := range b {
		n += some
		upTo[float64(int(1)<<i)] = n
	}
	return prometheus.MustNewConstHistogram(batchDesc, n, float64(packets), upTo, direction)
}
