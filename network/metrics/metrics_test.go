package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flanneld/pkg/kernel"
	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

// scrape is what Prometheus gets, without comments, buckets and what is none of
// flannel's; of counters only those that have counted something.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var kept strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		counter := strings.Contains(line, "_total") || strings.Contains(line, "_seconds_")
		if strings.HasPrefix(line, "flannel_") && !strings.Contains(line, "_bucket{") && !(counter && strings.HasSuffix(line, " 0\n")) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func compare(t *testing.T, m *Metrics, want ...string) {
	t.Helper()
	want = append([]string{fmt.Sprintf(`flannel_build_info{goversion=%q,version="v1.2.3"} 1`, runtime.Version())}, want...)
	if diff := cmp.Diff(strings.Split(scrape(t, m), "\n"), append(want, "")); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestCompared(t *testing.T) {
	m := New("v1.2.3")
	m.Compared(kernel.Comparison{Cause: kernel.Start, Whole: true, Took: time.Second, Device: true,
		Routes: kernel.Entries{Wanted: 5, Programmed: 5, Changed: 5}})
	m.Compared(kernel.Comparison{Cause: kernel.Notice, Whole: true, Took: time.Second,
		Routes: kernel.Entries{Wanted: 5, Programmed: 5, Changed: 3, Repaired: 1}, FDB: kernel.Entries{Changed: 2, Repaired: 2}})
	m.Compared(kernel.Comparison{Cause: kernel.Input, Took: time.Second / 2,
		Routes:     kernel.Entries{Wanted: 6, Programmed: 4, Failed: 3, Changed: 1},
		Neighbours: kernel.Entries{Wanted: 8, Programmed: 8, Changed: 1},
		FDB:        kernel.Entries{Wanted: 7, Programmed: 7}, Faults: make([]error, 2), Failed: make([]error, 3)})
	m.Compared(kernel.Comparison{Cause: kernel.Retry, Whole: true, Took: time.Second,
		Routes:     kernel.Entries{Wanted: 6, Programmed: 4, Failed: 3},
		Neighbours: kernel.Entries{Wanted: 8, Programmed: 8},
		FDB:        kernel.Entries{Wanted: 7, Programmed: 7}, Faults: make([]error, 2)})
	m.Compared(kernel.Comparison{Cause: kernel.Periodic, Whole: true, Took: time.Second,
		Routes:     kernel.Entries{Wanted: 6, Programmed: 5, Failed: 1, Changed: 4, Repaired: 4},
		Neighbours: kernel.Entries{Wanted: 8, Programmed: 8},
		FDB:        kernel.Entries{Wanted: 7, Programmed: 7}, Faults: make([]error, 1)})
	compare(t, m,
		`flannel_kernel_entries{kind="fdb",state="failed"} 0`,
		`flannel_kernel_entries{kind="fdb",state="programmed"} 7`,
		`flannel_kernel_entries{kind="fdb",state="wanted"} 7`,
		`flannel_kernel_entries{kind="neighbour",state="failed"} 0`,
		`flannel_kernel_entries{kind="neighbour",state="programmed"} 8`,
		`flannel_kernel_entries{kind="neighbour",state="wanted"} 8`,
		`flannel_kernel_entries{kind="route",state="failed"} 1`,
		`flannel_kernel_entries{kind="route",state="programmed"} 5`,
		`flannel_kernel_entries{kind="route",state="wanted"} 6`,
		`flannel_leases_without_path 1`,
		`flannel_reconcile_duration_seconds_sum{scope="changes"} 0.5`,
		`flannel_reconcile_duration_seconds_count{scope="changes"} 1`,
		`flannel_reconcile_duration_seconds_sum{scope="whole"} 4`,
		`flannel_reconcile_duration_seconds_count{scope="whole"} 4`,
		`flannel_reconcile_repairs_total{cause="leases",kind="neighbour"} 1`,
		`flannel_reconcile_repairs_total{cause="leases",kind="route"} 3`,
		`flannel_reconcile_repairs_total{cause="notice",kind="fdb"} 2`,
		`flannel_reconcile_repairs_total{cause="notice",kind="route"} 1`,
		`flannel_reconcile_repairs_total{cause="periodic",kind="route"} 4`,
		`flannel_reconcile_repairs_total{cause="start",kind="device"} 1`,
		`flannel_reconcile_repairs_total{cause="start",kind="route"} 5`,
		`flannel_reconcile_runs_total{cause="leases"} 1`,
		`flannel_reconcile_runs_total{cause="notice"} 1`,
		`flannel_reconcile_runs_total{cause="periodic"} 1`,
		`flannel_reconcile_runs_total{cause="retry"} 1`,
		`flannel_reconcile_runs_total{cause="start"} 1`,
	)
}

func TestFirewall(t *testing.T) {
	m := New("v1.2.3")
	m.Firewall([]string{"added the jump", "added the chain"}, nil)
	m.Firewall([]string{"added the jump"}, errors.New("no filter table"))
	m.Firewall(nil, nil)
	compare(t, m, "flannel_iptables_repairs_total 3", "flannel_iptables_resync_failures_total 1", "flannel_iptables_resyncs_total 3",
		"flannel_leases_without_path 0")
}

func TestGauges(t *testing.T) {
	m := New("v1.2.3")
	healthy, away, ends := true, true, time.Time{}
	m.Health(func() (bool, bool) { return healthy, !healthy })
	m.Away(func() bool { return away })
	m.Lease(func() time.Time { return ends })
	m.Leases(func() int { return 8000 })
	compare(t, m, "flannel_etcd_away 1", "flannel_healthy 1", "flannel_lease_remaining_seconds +Inf", "flannel_lease_reservation 1",
		"flannel_leases 8000", "flannel_leases_without_path 0", "flannel_ready 0")
	healthy, away, ends = false, false, time.Now().Add(time.Hour)
	got := scrape(t, m)
	var left float64
	_, after, _ := strings.Cut(got, "flannel_lease_remaining_seconds ")
	if _, err := fmt.Sscan(after, &left); err != nil || left < 3590 || left > 3600 {
		t.Errorf("an hour is left: %v seconds, %v", left, err)
	}
	for _, want := range []string{"flannel_etcd_away 0\n", "flannel_healthy 0\n", "flannel_lease_reservation 0\n", "flannel_ready 1\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %s in\n%s", want, got)
		}
	}
}

// moody is a store whose watches end with an error each.
type moody struct {
	subnet.Store
	errs []error
}

func (s *moody) Watch(context.Context, uint64) subnet.Watcher { return s }

func (s *moody) Next() ([]subnet.Event, error) {
	err := s.errs[0]
	s.errs = s.errs[1:]
	return nil, err
}

// Each request is counted; an answer that says no is not an error, nor is what
// nobody waits for any more.
func TestCount(t *testing.T) {
	m := New("v1.2.3")
	memory := storetest.NewMemory()
	store := m.Count(&moody{memory, []error{nil, errors.New("no answer"), fmt.Errorf("%w", subnet.ErrWatchLost), fmt.Errorf("%w", subnet.ErrBehind), context.Canceled}})
	ctx, cancel := context.WithCancel(t.Context())
	const key, value = "10.1.5.0-24", `{"PublicIP":"192.0.2.5"}`
	store.Config(ctx)                                                 // not found
	store.Get(ctx, key)                                               // not found
	e, err := store.Create(ctx, key, value, time.Hour)                // made
	store.Create(ctx, key, value, time.Hour)                          // conflict
	store.Update(ctx, subnet.Entry{Key: key, Revision: 99}, value, 0) // conflict
	updated, uerr := store.Update(ctx, e, value, 0)                   // written
	store.Delete(ctx, updated)                                        // gone
	if entries, _, lerr := store.List(ctx); len(entries) != 0 || errors.Join(err, uerr, lerr) != nil {
		t.Errorf("the store counted does otherwise than the store: %v, %v, %v, %v", entries, err, uerr, lerr)
	}
	w := store.Watch(ctx, 0)
	for range 4 {
		w.Next()
	}
	memory.SetDown(true)
	store.Config(ctx)
	store.List(ctx)
	store.AwaitConfig(ctx, 0)
	store.Members(ctx)
	cancel()
	store.AwaitConfig(ctx, 0)
	w.Next()
	compare(t, m,
		`flannel_etcd_request_errors_total{operation="await_config"} 1`,
		`flannel_etcd_request_errors_total{operation="config"} 1`,
		`flannel_etcd_request_errors_total{operation="list"} 1`,
		`flannel_etcd_request_errors_total{operation="watch"} 1`,
		`flannel_etcd_requests_total{operation="await_config"} 2`,
		`flannel_etcd_requests_total{operation="config"} 2`,
		`flannel_etcd_requests_total{operation="create"} 2`,
		`flannel_etcd_requests_total{operation="delete"} 1`,
		`flannel_etcd_requests_total{operation="get"} 1`,
		`flannel_etcd_requests_total{operation="list"} 2`,
		`flannel_etcd_requests_total{operation="update"} 2`,
		`flannel_etcd_requests_total{operation="watch"} 5`,
		`flannel_etcd_watch_restarts_total{reason="behind"} 1`,
		`flannel_etcd_watch_restarts_total{reason="failed"} 1`,
		`flannel_etcd_watch_restarts_total{reason="lost"} 1`,
		"flannel_leases_without_path 0",
	)
}
