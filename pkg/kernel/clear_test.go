package kernel

import (
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

// Clear takes what bears the owner's marks, whatever it looks like, and of the rest
// only those routes that it is told to.
func TestClear(t *testing.T) {
	h := newHost(t)
	h.Run("ip", "link", "set", "eth0", "addrgenmode", "none")
	h.Sysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
	h.Run("sh", "-ec", `
		ip link add vx0 type vxlan id 77 dev eth0 dstport 8472
		ip route add 10.1.240.0/24 via 172.16.16.1 proto static
		ip route add 10.1.241.0/24 via 172.16.16.1
		ip route add 10.1.3.0/24 via 172.16.16.3 metric 7
		ip route add 10.1.4.0/24 dev eth0
		ip route add 10.1.5.0/24 via 172.16.16.5 table 100 proto 102
		ip nexthop add id 7 via 172.16.16.7 dev eth0
		ip route add 10.1.6.0/24 nhid 7
		ip -6 nexthop add id 8 via fe80::8 dev eth0 proto 102
		ip -6 route add 2001:db8:8::/64 nhid 8
		ip nexthop add id 15 via 172.16.16.15 dev eth0 proto 102
		ip route add 10.1.15.0/24 nhid 15 proto static`)
	if lab.TUN() == nil {
		h.Run("ip", "tuntap", "add", "flannel0", "mode", "tap")
	}
	dump := func() string {
		return h.Run("sh", "-ec", "ip -o link; ip route show table all; ip -6 route; ip nexthop; ip neigh show nud permanent")
	}
	others := dump()
	h.Run("sh", "-ec", `
		ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472
		ip link add flannel.42 type vxlan id 42 dev eth0 dstport 8472
		ip link set flannel.1 up
		ip nexthop add id 11 via 10.1.9.0 dev flannel.1 onlink proto 102
		ip route add 10.1.9.0/24 nhid 11 proto 102
		ip route add 10.1.10.0/24 via 10.1.10.0 dev flannel.1 onlink proto static
		ip neigh add 10.1.9.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent
		ip nexthop add id 12 via 172.16.16.12 dev eth0 proto 102
		ip nexthop add id 13 via 172.16.16.13 dev eth0 proto 102
		ip nexthop add id 14 group 12/13 proto 102
		ip route add 10.1.12.0/24 nhid 12 proto 102
		ip route add 10.1.12.0/24 via 172.16.16.1 metric 9 proto 102
		ip route add 10.1.11.0/24 via 172.16.16.11 proto 102
		ip route add blackhole 10.1.13.0/24 proto 102
		ip route add 10.1.2.0/24 via 172.16.16.2`)
	all := dump()

	var asked []string
	clear := func(dry bool) (removed, left []string) {
		t.Helper()
		asked = nil
		err := h.Do(func() error {
			var failed []error
			removed, left, failed = Clear(testOwner, func(r Route) bool {
				asked = append(asked, r.String())
				return r.Dst == pfx("10.1.2.0/24") || r.Dst == pfx("10.1.240.0/24") || r.Dst == pfx("10.1.6.0/24")
			}, dry)
			for _, err := range failed {
				t.Error(err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(asked)
		return removed, left
	}
	want := []string{
		"the route 10.1.2.0/24 via 172.16.16.2 dev eth0",
		"the route 10.1.11.0/24 via 172.16.16.11 dev eth0",
		"the route 10.1.12.0/24 via 172.16.16.12 dev eth0",
		"the route 10.1.12.0/24 via 172.16.16.1 dev eth0",
		"the route 10.1.13.0/24",
		"the next hop 12 via 172.16.16.12 dev eth0", "the next hop 13 via 172.16.16.13 dev eth0", "the next hop 14",
		"the device flannel.1", "the device flannel.42",
	}
	equal := func(what string, got, want []string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for _, dry := range []bool{true, false} {
		removed, left := clear(dry)
		equal("removed", removed, want)
		equal("left", left, []string{"the next hop 15 via 172.16.16.15 dev eth0"})
		equal("asked of", asked, []string{"0.0.0.0/0 via 172.16.16.1 dev eth0", "10.1.2.0/24 via 172.16.16.2 dev eth0", "10.1.241.0/24 via 172.16.16.1 dev eth0"})
		if got := dump(); dry && got != all {
			t.Errorf("a dry run has left\n%s\nof\n%s", got, all)
		} else if !dry && got != others {
			t.Errorf("it has left\n%s\nand not\n%s", got, others)
		}
	}
	removed, left := clear(false)
	equal("removed the second time", removed, nil)
	equal("left the second time", left, []string{"the next hop 15 via 172.16.16.15 dev eth0"})
}
