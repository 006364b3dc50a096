package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPercentile(t *testing.T) {
	for _, test := range []struct {
		all    []int
		p      float64
		result int
	}{
		{[]int{7}, 50, 7},
		{[]int{7}, 0, 7},
		{[]int{3, 1, 2}, 50, 2},
		{[]int{4, 1, 3, 2}, 50, 2},
		{[]int{4, 1, 3, 2}, 95, 4},
		{[]int{20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 95, 19},
	} {
		if got := percentile(test.all, test.p); got != test.result {
			t.Errorf("percentile %v of %v: %d instead of %d", test.p, test.all, got, test.result)
		}
	}
}

func TestBetween(t *testing.T) {
	const first = "I1121 05:56:22.900000    1234 follow.go:40] Listed 1 leases\n"
	const listed = "I1121 05:56:22.999001    1234 follow.go:40] Listed 8000 leases\n"
	const other = "W1121 05:56:23.000000    1234 node.go:7] Ready or not\nand a line that is none: Ready: 7\n"
	const ready = "I1121 05:56:23.010003    1234 node.go:136] Ready: 10.1.74.0/24 through vxlan, MTU 1450\n"
	for _, test := range []struct {
		log string
		d   time.Duration
		ok  bool
	}{
		{listed + other + ready, 11002 * time.Microsecond, true},
		{first + listed + ready + listed, 11002 * time.Microsecond, true},
		{other + ready, 0, false},
		{listed + other, 0, false},
		{"", 0, false},
	} {
		d, ok := between(test.log, `Listed \d+ leases`, `Ready: `)
		if ok != test.ok || ok && d != test.d {
			t.Errorf("%v, %v instead of %v, %v in\n%s", d, ok, test.d, test.ok, test.log)
		}
	}
}

func TestChildrenTime(t *testing.T) {
	const stat = "77 (a (odd) name) S 1 77 77 0 -1 4194560 3302 5806 0 2 11 12 13 14 20 0 9 0 100 200 300\n"
	if got, err := childrenTime(stat); err != nil || got != 270*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := childrenTime("77 (short) S 1"); err == nil {
		t.Errorf("%v without an error", got)
	}
}

func TestUsage(t *testing.T) {
	before := cpu{own: time.Second, children: 2 * time.Second}
	after := cpu{own: time.Second + 3*time.Millisecond, children: 2*time.Second + 10*time.Millisecond}
	if got, want := usage(before, after, 2*time.Second).String(), "0.65 % (0.15 own, 0.50 children)"; got != want {
		t.Errorf("%s instead of %s", got, want)
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Name:\tflanneld\nVmHWM:\t   20000 kB\nVmRSS:\t   10000 kB\nThreads:\t9\n")
	if want := (memory{rss: 10000 << 10, peak: 20000 << 10}); err != nil || got != want {
		t.Errorf("%v, %v instead of %v", got, err, want)
	}
	if got, err := parseStatus("Name:\tkthreadd\n"); err == nil {
		t.Errorf("%v without an error", got)
	}
}

func TestStoredLease(t *testing.T) {
	l := lease{netip.MustParsePrefix("10.253.36.0/24"), netip.MustParseAddr("172.16.16.81"), "ca:4f:c9:70:58:48"}
	for _, test := range []struct {
		kind  kind
		value string
	}{
		{vxlan, `{"PublicIP":"172.16.16.81","BackendType":"vxlan","BackendData":{"VtepMAC":"ca:4f:c9:70:58:48"}}`},
		{hostGW, `{"PublicIP":"172.16.16.81","BackendType":"host-gw"}`},
	} {
		if s := l.stored(test.kind); s.Key != "10.253.36.0-24" || s.Value != test.value || s.TTL != 86400 {
			t.Errorf("%v", s)
		}
	}
}

func TestDifference(t *testing.T) {
	l := func(subnet, host, mac string) lease {
		return lease{netip.MustParsePrefix(subnet), netip.MustParseAddr(host), mac}
	}
	stays := l("10.1.1.0/24", "172.30.1.1", "02:00:00:00:00:01")
	got := difference(vxlan,
		[]lease{stays, l("10.1.2.0/24", "172.30.1.2", "02:00:00:00:00:02"), l("10.1.3.0/24", "172.30.1.3", "02:00:00:00:00:03")},
		[]lease{stays, l("10.1.2.0/24", "172.30.1.2", "02:00:00:00:00:0a"), l("10.1.4.0/24", "172.30.1.4", "02:00:00:00:00:04")})
	want := map[string]string{
		"neigh 10.1.2.0": "02:00:00:00:00:0a", "fdb 02:00:00:00:00:02": "", "fdb 02:00:00:00:00:0a": "172.30.1.2",
		"route 10.1.3.0/24": "", "neigh 10.1.3.0": "", "fdb 02:00:00:00:00:03": "",
		"route 10.1.4.0/24": "10.1.4.0", "neigh 10.1.4.0": "02:00:00:00:00:04", "fdb 02:00:00:00:00:04": "172.30.1.4",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOnly(t *testing.T) {
	for _, test := range []struct {
		only    string
		scenes  []string
		parts   []string // of the control plane
		traffic []string
		layouts []string
		wrong   bool
	}{
		{"", []string{"vxlan", "host-gw", "udp"}, partNames(), trafficPartNames(), layoutNames(), false},
		{"start,idle", []string{"vxlan", "host-gw"}, []string{"start", "idle"}, trafficPartNames(), layoutNames(), false},
		{"host-gw,start", []string{"host-gw"}, []string{"start"}, trafficPartNames(), layoutNames(), false},
		{"host-gw", []string{"host-gw"}, partNames(), trafficPartNames(), layoutNames(), false},
		{"udp,wire,tcp1", []string{"udp"}, partNames(), []string{"tcp1"}, []string{"wire"}, false},
		{"ping,tcp4", []string{"udp"}, partNames(), []string{"tcp4", "ping"}, layoutNames(), false},
		{"whole", []string{"udp"}, partNames(), trafficPartNames(), []string{"whole"}, false},
		{"host-gw,start,ping", []string{"host-gw", "udp"}, []string{"start"}, []string{"ping"}, layoutNames(), false},
		{"udp,start", []string{"vxlan", "host-gw", "udp"}, []string{"start"}, trafficPartNames(), layoutNames(), false},
		{only: "strat", wrong: true},
	} {
		b := &bench{}
		err := b.parse([]string{"-only", test.only})
		if (err != nil) != test.wrong {
			t.Errorf("-only %s: %v", test.only, err)
		}
		if err != nil {
			continue
		}
		var scenes []string
		for _, s := range b.scenes() {
			scenes = append(scenes, s.name)
		}
		for _, list := range []struct {
			what      string
			got, want []string
		}{
			{"scenes", scenes, test.scenes},
			{"parts", b.chosen(partNames()), test.parts},
			{"parts of traffic", b.chosen(trafficPartNames()), test.traffic},
			{"layouts", b.chosen(layoutNames()), test.layouts},
		} {
			if diff := cmp.Diff(list.want, list.got); diff != "" {
				t.Errorf("-only %s, %s (-want +got):\n%s", test.only, list.what, diff)
			}
		}
	}
}
