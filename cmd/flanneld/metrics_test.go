package main

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// scrape is what Prometheus gets from a flanneld that was started with
// --healthz-port=2401: the value of each series, by its name with labels.
func scrape(h *cluster.Node) (map[string]float64, error) {
	resp, err := h.HTTP().Get("http://127.0.0.1:2401/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		if i := strings.LastIndexByte(line, ' '); !strings.HasPrefix(line, "#") {
			if all[line[:i]], err = strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err != nil {
				return nil, fmt.Errorf("%s: %w", line, err)
			}
		}
	}
	return all, nil
}

// series are what a test expects of some series of a scrape.
type series map[string]func(now, before float64) bool

func is(want float64) func(now, before float64) bool {
	return func(now, _ float64) bool { return now == want }
}

func grows(now, before float64) bool { return now > before }

func growsBy(n float64) func(now, before float64) bool {
	return func(now, before float64) bool { return now == before+n }
}

// shows has something happen, and waits until a scrape shows all that is expected
// of it.
func shows(t *testing.T, h *cluster.Node, what string, happen func(), want series) {
	t.Helper()
	before, err := scrape(h)
	if err != nil {
		t.Fatal(err)
	}
	happen()
	lab.Eventually(t, patience, what, func() error {
		now, err := scrape(h)
		if err != nil {
			return err
		}
		for name, right := range want {
			if value, there := now[name]; !there || !right(value, before[name]) {
				return fmt.Errorf("%s is %v (there: %v) and was %v before", name, value, there, before[name])
			}
		}
		return nil
	})
}

// What is done to the host or to etcd shows in the metrics.
func TestMetrics(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	c.SetConfig(configOf(`{"Type": "vxlan"}`))
	putFakes(c, "vxlan", fakes())
	peers := float64(len(fakes()))
	h.Start("--healthz-port=2401", "--iptables-resync=1")
	h.AwaitReady()

	entries := func(kind string, wanted, programmed, failed float64) series {
		name := func(state string) string { return fmt.Sprintf(`flannel_kernel_entries{kind=%q,state=%q}`, kind, state) }
		return series{name("wanted"): is(wanted), name("programmed"): is(programmed), name("failed"): is(failed)}
	}
	with := func(all ...series) series {
		sum := series{}
		for _, one := range all {
			maps.Copy(sum, one)
		}
		return sum
	}
	allThere := with(entries("route", peers, peers, 0), entries("neighbour", peers, peers, 0), entries("fdb", peers, peers, 0))
	shows(t, h, "the start", func() {}, with(allThere, series{
		`flannel_leases`:    is(peers + 1),
		`flannel_healthy`:   is(1),
		`flannel_ready`:     is(1),
		`flannel_etcd_away`: is(0),
		`flannel_build_info{goversion="` + runtime.Version() + `",version="lab"}`: is(1),
		`flannel_lease_reservation`:                                       is(0),
		`flannel_lease_remaining_seconds`:                                 func(now, _ float64) bool { return now > 23*3600 && now <= 24*3600 },
		`flannel_leases_without_path`:                                     is(0),
		`flannel_reconcile_runs_total{cause="start"}`:                     is(1),
		`flannel_reconcile_repairs_total{cause="start",kind="route"}`:     is(peers),
		`flannel_reconcile_repairs_total{cause="start",kind="neighbour"}`: is(peers),
		`flannel_reconcile_repairs_total{cause="start",kind="fdb"}`:       is(peers),
		`flannel_reconcile_repairs_total{cause="start",kind="device"}`:    is(1),
		`flannel_etcd_requests_total{operation="create"}`:                 is(1),
		`flannel_etcd_request_errors_total{operation="create"}`:           is(0),
		`flannel_iptables_resyncs_total`:                                  grows,
		`flannel_iptables_resync_failures_total`:                          is(0),
		`process_start_time_seconds`:                                      func(now, _ float64) bool { return now > float64(time.Now().Unix()-60) },
	}))

	// Other hosts come, and one that this one has no path to.
	shows(t, h, "a lease more", func() { fake{far + "17", 17}.put(c, "vxlan", 17) }, with(entries("route", peers+1, peers+1, 0), series{
		`flannel_leases`: is(peers + 2),
		`flannel_reconcile_repairs_total{cause="leases",kind="route"}`: growsBy(1),
		`flannel_reconcile_repairs_total{cause="leases",kind="fdb"}`:   growsBy(1),
	}))
	shows(t, h, "a lease less", func() { c.DeleteLease(fakeKey(17)) }, with(allThere, series{`flannel_leases`: is(peers + 1)}))
	shows(t, h, "a lease of another backend", func() { fake{far + "18", 18}.put(c, "host-gw", 18) }, with(allThere, series{
		`flannel_leases`: is(peers + 2), `flannel_leases_without_path`: is(1), `flannel_healthy`: is(1)}))

	// Somebody changes the kernel's tables.
	const byNotice = `flannel_reconcile_repairs_total{cause="notice",kind=%q}`
	shows(t, h, "a route deleted", func() { sh(h, "ip route del 10.1.14.0/24") }, with(allThere, series{
		fmt.Sprintf(byNotice, "route"): growsBy(1), fmt.Sprintf(byNotice, "fdb"): growsBy(0)}))
	shows(t, h, "an FDB entry deleted", func() { sh(h, "bridge fdb del 02:00:00:00:00:0e dev flannel.1") }, with(allThere, series{
		fmt.Sprintf(byNotice, "route"): growsBy(0), fmt.Sprintf(byNotice, "fdb"): growsBy(1)}))
	shows(t, h, "a neighbour deleted", func() { sh(h, "ip neigh del 10.1.14.0 dev flannel.1") }, with(allThere, series{
		fmt.Sprintf(byNotice, "neighbour"): growsBy(1)}))
	shows(t, h, "the device's MTU changed", func() { sh(h, "ip link set flannel.1 mtu 1300") }, with(allThere, series{
		fmt.Sprintf(byNotice, "device"): growsBy(1)}))
	shows(t, h, "a foreign route in the way", func() { sh(h, "ip route replace 10.1.14.0/24 via 172.30.0.1 proto static") },
		with(entries("route", peers, peers-1, 1), entries("fdb", peers, peers, 0), series{`flannel_healthy`: is(0), `flannel_ready`: is(1)}))
	shows(t, h, "the foreign route is gone", func() { sh(h, "ip route del 10.1.14.0/24 proto static") },
		with(allThere, series{`flannel_healthy`: is(1)}))

	// Somebody changes the rules, or they cannot be looked at.
	shows(t, h, "a chain flushed", func() { sh(h, "iptables -F FLANNEL-FWD") }, series{
		`flannel_iptables_repairs_total`: grows, `flannel_iptables_resync_failures_total`: growsBy(0), `flannel_healthy`: is(1)})

	// etcd goes and comes back.
	shows(t, h, "etcd is away", c.Etcd.Stop, with(allThere, series{
		`flannel_etcd_away`: is(1),
		`flannel_etcd_request_errors_total{operation="list"}`: grows,
		`flannel_etcd_watch_restarts_total{reason="failed"}`:  grows,
		`flannel_healthy`: is(1),
		`flannel_leases`:  is(peers + 2),
	}))
	shows(t, h, "etcd is back", c.Etcd.Start, series{
		`flannel_etcd_away`:                             is(0),
		`flannel_etcd_requests_total{operation="list"}`: grows,
	})
}

// A host with a reservation has its lease for ever.
func TestMetricsReservation(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "host-gw"}`))
	h := c.Node("h1", s)
	c.PutLease("10.1.5.0-24", fmt.Sprintf(`{"PublicIP":"%v"}`, h.Addr()), 0)
	h.Start("--healthz-port=2401")
	h.AwaitReady()
	endless := func(now, _ float64) bool { return now > 1e300 }
	shows(t, h, "a reservation", func() {}, series{`flannel_lease_reservation`: is(1), `flannel_lease_remaining_seconds`: endless})
}

// Packets that udp carries and drops show in the metrics.
func TestMetricsUDP(t *testing.T) {
	needTUN(t, "udp")
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "udp"}`))
	h1, c1 := join(c, s, 1, "--healthz-port=2401")
	_, c2 := join(c, s, 2)
	stranger := c.Host("stranger", s)
	lab.EventuallyPing(t, patience, c1, c2.Addr(), lab.Echo{})
	ping := func(to netip.Addr, n int, want string) {
		t.Helper()
		for range n {
			if _, err := c1.Ping(to, lab.Echo{Timeout: time.Second}); (err == nil) != (want == "answered") {
				t.Errorf("a ping to %v was to be %s: %v", to, want, err)
			}
		}
	}
	const in, out = `{direction="in"}`, `{direction="out"}`
	dropped := func(direction, reason string) string {
		return fmt.Sprintf(`flannel_udp_dropped_packets_total{direction=%q,reason=%q}`, direction, reason)
	}
	shows(t, h1, "three pings", func() { ping(c2.Addr(), 3, "answered") }, series{
		"flannel_udp_packets_total" + in:        func(now, before float64) bool { return now >= before+3 },
		"flannel_udp_packets_total" + out:       func(now, before float64) bool { return now >= before+3 },
		"flannel_udp_bytes_total" + in:          func(now, before float64) bool { return now >= before+3*28 },
		"flannel_udp_bytes_total" + out:         func(now, before float64) bool { return now >= before+3*28 },
		"flannel_udp_batch_packets_count" + in:  grows,
		"flannel_udp_batch_packets_count" + out: grows,
		dropped("in", "unknown_peer"):           is(0),
		dropped("out", "no_subnet"):             is(0),
	})
	shows(t, h1, "pings to a subnet without a host", func() { ping(netip.MustParseAddr("10.1.77.5"), 2, "in vain") }, series{
		dropped("out", "no_subnet"): growsBy(2), `flannel_udp_icmp_errors_total{outcome="sent"}`: grows})
	shows(t, h1, "a datagram of a stranger", func() {
		conn, err := stranger.Dial(t.Context(), "udp4", netip.AddrPortFrom(h1.Addr(), udpPort))
		c.Must(err)
		defer conn.Close()
		_, err = conn.Write([]byte("who am I?"))
		c.Must(err)
	}, series{dropped("in", "unknown_peer"): growsBy(1), dropped("in", "malformed"): is(0)})
	shows(t, h1, "the device deleted", func() { sh(h1, "ip link del flannel0") }, series{
		"flannel_udp_reopened_total":                              growsBy(1),
		`flannel_kernel_entries{kind="route",state="programmed"}`: is(1),
		`flannel_kernel_entries{kind="route",state="failed"}`:     is(0),
		`flannel_healthy`: is(1),
	})

	// It has all that there is, so what alerts and dashboard look at.
	all, err := scrape(h1)
	c.Must(err)
	served := map[string]bool{"up": true} // which is Prometheus' own
	for name := range all {
		name, _, _ = strings.Cut(name, "{")
		served[name] = true
	}
	for _, file := range []string{"../../dist/monitoring/flannel-alerts.yml", "../../dist/monitoring/flannel-dashboard.json"} {
		text, err := os.ReadFile(file)
		c.Must(err)
		names := regexp.MustCompile(`\b(flannel|process|go)_\w+|\bup\b`).FindAllString(string(text), -1)
		if len(names) < 10 {
			t.Errorf("%s looks at %q only", file, names)
		}
		for _, name := range names {
			if !served[name] {
				t.Errorf("%s looks at %s, which is not served", file, name)
			}
		}
	}
}
