// Package metrics is what Prometheus is told of this node. The parts of the node
// know nothing of it: they hand out plain numbers, and here each of these gets a
// name, in New, in the Node's gauges or, for requests to the store, in Count.
package metrics

import (
	"math"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"flanneld/backend"
	"flanneld/pkg/kernel"
)

// namespace is what the names of all but those of the process and of Go begin with.
const namespace = "flannel"

// Metrics are those of one node. All methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	entries      *prometheus.GaugeVec
	withoutPath  prometheus.Gauge
	runs         *prometheus.CounterVec
	repairs      *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	requests     *prometheus.CounterVec
	errors       *prometheus.CounterVec
	restarts     *prometheus.CounterVec
	resyncs      prometheus.Counter
	resyncFailed prometheus.Counter
	rulesSet     prometheus.Counter
}

// New makes the metrics of a node that runs this version of flanneld. Each series
// of a counter is there from the beginning, so that its first increase shows.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	add := func(c prometheus.Collector) { m.registry.MustRegister(c) }
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
		add(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
		add(c)
		return c
	}
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info",
		Help: "Always 1; the labels say which flanneld this is and which Go it was built with."}, []string{"version", "goversion"})
	info.WithLabelValues(version, runtime.Version()).Set(1)
	add(info)

	m.entries = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "kernel_entries",
		Help: "Entries of the kernel's tables that the leases ask for (wanted), those of them that are there (programmed), and those missing, or still there and not wanted (failed)."}, []string{"kind", "state"})
	m.withoutPath = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "leases_without_path",
		Help: "Leases of other hosts that this host cannot reach or leaves out; the log says why."})
	m.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "reconcile_duration_seconds",
		Help:    "How long comparisons with the kernel took, with the changes they led to: those that read all tables (whole) and those that looked at changed leases only (changes).",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}, []string{"scope"})
	add(m.entries)
	add(m.withoutPath)
	add(m.duration)
	m.runs = counters("reconcile_runs_total", "Comparisons of the leases with the kernel, by what they were made for: the start, changed leases or a check that all goes on (leases), something the kernel told (notice), an earlier failure (retry), or because it was time (periodic).", "cause")
	m.repairs = counters("reconcile_repairs_total", "Changes made to the kernel: at the start, because the leases ask for something else (leases), and to put right what was right before, by the cause of the comparison that has found it; those by notice and periodic undo what somebody else did.", "cause", "kind")
	m.requests = counters("etcd_requests_total", "Requests to etcd, each try counted.", "operation")
	m.errors = counters("etcd_request_errors_total", "Requests that etcd did not answer, or not as it should. That a key is not there or was written by another host is an answer.", "operation")
	m.restarts = counters("etcd_watch_restarts_total", "Watches on the leases that ended, after which all are listed again: as etcd did not answer (failed), has no longer what was missed (lost), or as so much was missed that a list is less work (behind).", "reason")
	m.resyncs = counter("iptables_resyncs_total", "Comparisons of the iptables rules.")
	m.resyncFailed = counter("iptables_resync_failures_total", "Comparisons of the iptables rules that failed, so that the rules may not be in place.")
	m.rulesSet = counter("iptables_repairs_total", "Changes made to the iptables rules.")

	for _, cause := range causes {
		m.runs.WithLabelValues(cause)
		for _, kind := range []string{device, route, neighbour, fdb} {
			m.repairs.WithLabelValues(cause, kind)
		}
	}
	for _, op := range operations {
		m.requests.WithLabelValues(op)
		m.errors.WithLabelValues(op)
	}
	for _, reason := range []string{watchFailed, watchLost, watchBehind} {
		m.restarts.WithLabelValues(reason)
	}
	return m
}

// Handler answers scrapes. An answer is some 20 kB, and what would compress it takes
// up forty times as much memory.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true})
}

// The kinds of what is in the kernel.
const (
	device    = "device"
	route     = "route"
	neighbour = "neighbour"
	fdb       = "fdb"
)

// causes are the labels of the reasons for a comparison.
var causes = map[kernel.Cause]string{
	kernel.Start:    "start",
	kernel.Notice:   "notice",
	kernel.Input:    "leases",
	kernel.Retry:    "retry",
	kernel.Periodic: "periodic",
}

// Compared takes note of a comparison with the kernel.
func (m *Metrics) Compared(c kernel.Comparison) {
	cause, scope := causes[c.Cause], "changes"
	if c.Whole {
		scope = "whole"
	}
	m.runs.WithLabelValues(cause).Inc()
	m.duration.WithLabelValues(scope).Observe(c.Took.Seconds())
	m.withoutPath.Set(float64(len(c.Faults)))
	for kind, e := range map[string]kernel.Entries{route: c.Routes, neighbour: c.Neighbours, fdb: c.FDB} {
		m.entries.WithLabelValues(kind, "wanted").Set(float64(e.Wanted))
		m.entries.WithLabelValues(kind, "programmed").Set(float64(e.Programmed))
		m.entries.WithLabelValues(kind, "failed").Set(float64(e.Failed))
		asked := max(e.Changed-e.Repaired, 0) // a counter that is to go down is a panic
		if c.Cause == kernel.Start {
			m.repairs.WithLabelValues(cause, kind).Add(float64(asked))
		} else {
			m.repairs.WithLabelValues(causes[kernel.Input], kind).Add(float64(asked))
			m.repairs.WithLabelValues(cause, kind).Add(float64(e.Repaired))
		}
	}
	if c.Device {
		m.repairs.WithLabelValues(cause, device).Inc()
	}
}

// Firewall takes note of a comparison of the firewall rules.
func (m *Metrics) Firewall(changes []string, err error) {
	m.resyncs.Inc()
	m.rulesSet.Add(float64(len(changes)))
	if err != nil {
		m.resyncFailed.Inc()
	}
}

// Backend adds what the backend itself has to tell, if it is a
// prometheus.Collector. There can be one.
func (m *Metrics) Backend(b backend.Backend) {
	if c, ok := b.(prometheus.Collector); ok {
		m.registry.MustRegister(c)
	}
}

// Health adds whether the node works and is ready, which is asked at each scrape.
func (m *Metrics) Health(now func() (healthy, ready bool)) {
	m.gauge("healthy", "1 while all that this host was asked to do is in place, as /healthz says.", func() float64 {
		healthy, _ := now()
		return one(healthy)
	})
	m.gauge("ready", "1 from the moment this host's subnet is known and the kernel has been compared with the leases.", func() float64 {
		_, ready := now()
		return one(ready)
	})
}

// Away adds whether etcd does not answer, which is asked at each scrape.
func (m *Metrics) Away(now func() bool) {
	m.gauge("etcd_away", "1 while something waits for etcd, which does not answer.", func() float64 { return one(now()) })
}

// Lease adds when this host's lease ends, zero for a reservation, which is asked
// at each scrape.
func (m *Metrics) Lease(ends func() time.Time) {
	m.gauge("lease_remaining_seconds", "How long this host's lease lasts unless it is renewed, negative once it has ended; +Inf for a reservation.", func() float64 {
		if t := ends(); !t.IsZero() {
			return time.Until(t).Seconds()
		}
		return math.Inf(+1)
	})
	m.gauge("lease_reservation", "1 if this host's lease is a reservation, which does not end.", func() float64 { return one(ends().IsZero()) })
}

// Leases adds how many leases are known, which is asked at each scrape.
func (m *Metrics) Leases(known func() int) {
	m.gauge("leases", "Leases of the network in etcd, this host's own among them.", func() float64 { return float64(known()) })
}

func (m *Metrics) gauge(name, help string, now func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, now))
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
