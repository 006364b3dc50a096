package kernel

import "testing"

func TestHostOnLink(t *testing.T) {
	link := func(dst, dev string) HostRoute { return HostRoute{Dst: pfx(dst), Dev: dev, OnLink: true} }
	via := func(dst, dev string) HostRoute { return HostRoute{Dst: pfx(dst), Dev: dev} }
	metric := func(r HostRoute, metric int) HostRoute { r.Metric = metric; return r }
	usual := []HostRoute{via("0.0.0.0/0", "eth0"), link("192.0.2.0/24", "eth0")}
	for _, test := range []struct {
		name   string
		routes []HostRoute
		addr   string
		want   bool
	}{
		{"no routes", nil, "192.0.2.7", false},
		{"connected", usual, "192.0.2.7", true},
		{"through the default gateway", usual, "198.51.100.1", false},
		{"default route without a gateway", []HostRoute{link("0.0.0.0/0", "eth0")}, "198.51.100.1", true},
		{"connected, on another interface", []HostRoute{link("192.0.2.0/24", "eth1")}, "192.0.2.7", false},
		{"longer prefix through a gateway", append(usual, via("192.0.2.0/28", "eth0")), "192.0.2.7", false},
		{"outside the longer prefix", append(usual, via("192.0.2.0/28", "eth0")), "192.0.2.17", true},
		{"longer prefix on another interface", append(usual, link("192.0.2.0/28", "eth1")), "192.0.2.7", false},
		{"longer prefix first", append([]HostRoute{via("192.0.2.0/28", "eth0")}, usual...), "192.0.2.7", false},
		{"shorter prefix through a gateway", append(usual, via("192.0.0.0/16", "eth0")), "192.0.2.7", true},
		{"one address on the link", append(usual, link("198.51.100.1/32", "eth0")), "198.51.100.1", true},
		{"its neighbour is not", append(usual, link("198.51.100.1/32", "eth0")), "198.51.100.2", false},
		{"one address through a gateway", append(usual, via("192.0.2.7/32", "eth0")), "192.0.2.7", false},
		// A blackhole or the like is a route with neither interface nor link.
		{"blackhole", append(usual, HostRoute{Dst: pfx("192.0.2.7/32")}), "192.0.2.7", false},
		{"lower metric through a gateway, last", append(usual, metric(via("192.0.2.0/24", "eth0"), 0), metric(link("192.0.2.0/24", "eth0"), 5)), "192.0.2.7", true},
		{"lower metric through a gateway", []HostRoute{metric(link("192.0.2.0/24", "eth0"), 100), metric(via("192.0.2.0/24", "eth0"), 50)}, "192.0.2.7", false},
		{"lower metric on the link", []HostRoute{metric(via("192.0.2.0/24", "eth0"), 100), metric(link("192.0.2.0/24", "eth0"), 50)}, "192.0.2.7", true},
		{"lower metric on the link, first", []HostRoute{metric(link("192.0.2.0/24", "eth0"), 50), metric(via("192.0.2.0/24", "eth0"), 100)}, "192.0.2.7", true},
		{"lower metric on another interface", []HostRoute{metric(link("192.0.2.0/24", "eth0"), 100), metric(link("192.0.2.0/24", "eth1"), 50)}, "192.0.2.7", false},
		{"a longer prefix counts before a lower metric", []HostRoute{metric(via("192.0.2.0/24", "eth0"), 0), metric(link("192.0.2.0/28", "eth0"), 100)}, "192.0.2.7", true},
		{"not IPv4", usual, "2001:db8::1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := NewHost(test.routes...).OnLink(ip(test.addr), "eth0"); got != test.want {
				t.Errorf("OnLink(%s) = %v", test.addr, got)
			}
		})
	}
	if (Host{}).OnLink(ip("192.0.2.7"), "") {
		t.Error("the zero Host has something on link")
	}
}
