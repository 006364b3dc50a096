package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

// Two hosts on one segment, one on another, a router between: direct to the
// neighbour, VXLAN to the other segment, both carrying traffic.
func TestDirectRouting(t *testing.T) {
	c, a := newCluster(t)
	b := c.Segment("b", netip.MustParsePrefix("172.30.1.0/24"))
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Directrouting": true}}`)
	h1, c1 := join(c, a, 1)
	h2, c2 := join(c, a, 2)
	h3, c3 := join(c, b, 3)

	overlay := func(routes string) string { // without those of the host's own
		var ours []string
		for _, line := range strings.Split(routes, "\n") {
			if strings.Contains(line, "proto 102") {
				ours = append(ours, line)
			}
		}
		return strings.Join(ours, "\n")
	}
	check := func(what string, want ...string) {
		t.Helper()
		equal(t, what, within, func() string {
			return strings.Join([]string{overlay(h1.Routes()), h1.Neighbours(), h1.FDB("flannel.1")}, "\n")
		}, want...)
	}
	viaVXLAN := func() []string {
		return []string{
			"10.1.3.0 dev flannel.1 lladdr " + h3.VtepMAC() + " PERMANENT",
			fmt.Sprintf("%s dst %v self permanent", h3.VtepMAC(), h3.Addr()),
		}
	}
	check("one direct, one through VXLAN", append([]string{
		fmt.Sprintf("10.1.2.0/24 via %v dev eth0 proto 102", h2.Addr()),
		"10.1.3.0/24 via 10.1.3.0 dev flannel.1 proto 102 onlink",
	}, viaVXLAN()...)...)
	equal(t, "h3 has both through VXLAN", within, func() string { return overlay(h3.Routes()) },
		"10.1.1.0/24 via 10.1.1.0 dev flannel.1 proto 102 onlink",
		"10.1.2.0/24 via 10.1.2.0 dev flannel.1 proto 102 onlink")
	for _, from := range []*lab.Container{c1, c2, c3} {
		for _, to := range []*lab.Container{c1, c2, c3} {
			if from != to {
				reach(t, from, to, to.Addr(), from.Addr(), 1450)
			}
		}
	}

	// The choice follows the host's own routes: h2 is no longer on the link,
	// and then it is again.
	h1.Run("ip", "route", "add", fmt.Sprintf("%v/32", h2.Addr()), "via", "172.30.0.1", "proto", "static")
	check("both through VXLAN", append([]string{
		"10.1.2.0/24 via 10.1.2.0 dev flannel.1 proto 102 onlink",
		"10.1.3.0/24 via 10.1.3.0 dev flannel.1 proto 102 onlink",
		"10.1.2.0 dev flannel.1 lladdr " + h2.VtepMAC() + " PERMANENT",
		"10.1.3.0 dev flannel.1 lladdr " + h3.VtepMAC() + " PERMANENT",
	}, strings.Split(sortedLines(
		fmt.Sprintf("%s dst %v self permanent", h2.VtepMAC(), h2.Addr()),
		fmt.Sprintf("%s dst %v self permanent", h3.VtepMAC(), h3.Addr()),
	), "\n")...)...)
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
	h1.Run("ip", "route", "del", fmt.Sprintf("%v/32", h2.Addr()))
	check("one direct again", append([]string{
		fmt.Sprintf("10.1.2.0/24 via %v dev eth0 proto 102", h2.Addr()),
		"10.1.3.0/24 via 10.1.3.0 dev flannel.1 proto 102 onlink",
	}, viaVXLAN()...)...)
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
}

func sortedLines(all ...string) string { return strings.Join(lines(all), "\n") }

// A host-gw peer on another segment cannot be reached, is named once, and keeps
// nobody else from being reached.
func TestHostGatewayElsewhere(t *testing.T) {
	c, a := newCluster(t)
	b := c.Segment("b", netip.MustParsePrefix("172.30.1.0/24"))
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h1, c1 := join(c, a, 1)
	h3, _ := join(c, b, 3)
	_, c2 := join(c, a, 2)
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1500)
	said := fmt.Sprintf("Leaving out the lease of 10.1.3.0/24 (held by %v): it cannot be reached", h3.Addr())
	c.Must(h1.Daemon.WaitLog(regexpQuote(said), within))
	if n := strings.Count(h1.Daemon.Log(), said); n != 1 {
		t.Errorf("%q is in the log %d times", said, n)
	}
	if strings.Contains(h1.Routes(), "10.1.3.0") {
		t.Errorf("there is a route to it: %s", h1.Routes())
	}
}
