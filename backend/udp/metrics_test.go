package udp

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Each counter has its own number here, and shows as that.
func TestMetrics(t *testing.T) {
	b := open(testHost("192.0.2.1"), defaultPort)
	c := &b.counters
	c.sent.Add(13)
	c.sentBytes.Add(1300)
	for _, packets := range []int{1, 1, 3, 8} {
		c.sentMessages.add(packets)
	}
	c.received.Add(66)
	c.receivedBytes.Add(6600)
	c.writes.add(2)
	c.writes.add(64)
	c.sendErrors.Add(1)
	c.tooLarge.Add(2)
	c.notIPv4.Add(3)
	c.noSubnet.Add(4)
	c.expired.Add(5)
	c.unknownPeer.Add(6)
	c.malformed.Add(7)
	c.oversize.Add(8)
	c.congested.Add(9)
	c.deviceWriteErr.Add(10)
	c.readErrors.Add(11)
	c.receiveErrors.Add(12)
	c.icmpSent.Add(13)
	c.icmpHeld.Add(14)
	c.reopened.Add(15)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var got strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			got.WriteString(strings.TrimPrefix(line, "flannel_udp_"))
		}
	}
	want := `batch_packets_bucket{direction="in",le="1"} 0
batch_packets_bucket{direction="in",le="2"} 1
batch_packets_bucket{direction="in",le="4"} 1
batch_packets_bucket{direction="in",le="8"} 1
batch_packets_bucket{direction="in",le="16"} 1
batch_packets_bucket{direction="in",le="32"} 1
batch_packets_bucket{direction="in",le="64"} 2
batch_packets_bucket{direction="in",le="+Inf"} 2
batch_packets_sum{direction="in"} 66
batch_packets_count{direction="in"} 2
batch_packets_bucket{direction="out",le="1"} 2
batch_packets_bucket{direction="out",le="2"} 2
batch_packets_bucket{direction="out",le="4"} 3
batch_packets_bucket{direction="out",le="8"} 4
batch_packets_bucket{direction="out",le="16"} 4
batch_packets_bucket{direction="out",le="32"} 4
batch_packets_bucket{direction="out",le="64"} 4
batch_packets_bucket{direction="out",le="+Inf"} 4
batch_packets_sum{direction="out"} 13
batch_packets_count{direction="out"} 4
bytes_total{direction="in"} 6600
bytes_total{direction="out"} 1300
dropped_packets_total{direction="in",reason="congested"} 9
dropped_packets_total{direction="in",reason="malformed"} 7
dropped_packets_total{direction="in",reason="oversize"} 8
dropped_packets_total{direction="in",reason="unknown_peer"} 6
dropped_packets_total{direction="in",reason="write_error"} 10
dropped_packets_total{direction="out",reason="no_subnet"} 4
dropped_packets_total{direction="out",reason="not_ipv4"} 3
dropped_packets_total{direction="out",reason="send_error"} 1
dropped_packets_total{direction="out",reason="too_large"} 2
dropped_packets_total{direction="out",reason="ttl_expired"} 5
icmp_errors_total{outcome="sent"} 13
icmp_errors_total{outcome="suppressed"} 14
packets_total{direction="in"} 66
packets_total{direction="out"} 13
read_errors_total{direction="in"} 12
read_errors_total{direction="out"} 11
reopened_total 15
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
