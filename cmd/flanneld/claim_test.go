package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/cluster"
)

// A lease is kept over a restart, found again by its subnet file when it is
// gone, and moved along when the host's address changes; a stranger's is not
// taken.
func TestLeaseOverRestarts(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h := c.Node("h1", s)
	run := func() string {
		t.Helper()
		h.Start()
		h.AwaitReady()
		h.Stop()
		return strings.ReplaceAll(h.Env().Subnet().String(), "/", "-")
	}
	key := run()
	if again := run(); again != key {
		t.Errorf("%s became %s over a restart", key, again)
	}
	c.DeleteLease(key)
	if again := run(); again != key {
		t.Errorf("%s became %s after the lease was deleted", key, again)
	}

	old := h.Addr()
	readdress(h, old, netip.MustParseAddr("172.30.0.77"))
	if again := run(); again != key || len(c.Leases()) != 1 || !strings.Contains(c.Leases()[key].Value, "172.30.0.77") {
		t.Errorf("%s became %s when the address changed; the leases are %v", key, again, c.Leases())
	}

	// As a reservation it stays one.
	c.PutLease(key, c.Leases()[key].Value, 0)
	if again := run(); again != key || c.Leases()[key].TTL != 0 {
		t.Errorf("the reservation %s became %s with TTL %d", key, again, c.Leases()[key].TTL)
	}
	// Also when it is the address of the host that has changed.
	readdress(h, netip.MustParseAddr("172.30.0.77"), netip.MustParseAddr("172.30.0.78"))
	if again := run(); again != key || c.Leases()[key].TTL != 0 || !strings.Contains(c.Leases()[key].Value, "172.30.0.78") {
		t.Errorf("the reservation %s became %s when the address changed; the leases are %v", key, again, c.Leases())
	}

	// Another host has it by now.
	stranger := `{"PublicIP":"172.30.0.200","BackendType":"host-gw"}`
	c.PutLease(key, stranger, time.Hour)
	if again := run(); again == key || c.Leases()[key].Value != stranger {
		t.Errorf("%s was taken from its holder: %v", key, c.Leases())
	}
}

// readdress gives a host another address.
func readdress(h *cluster.Node, old, addr netip.Addr) {
	sh(h, fmt.Sprintf("ip addr del %v/24 dev eth0; ip addr add %v/24 dev eth0; ip route replace default via 172.30.0.1", old, addr))
}

// A subnet file that names a stranger's subnet, for whatever reason, does not
// take it from the stranger: his lease is not even written.
func TestStrangersSubnet(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "host-gw"}`))
	h, other := c.Node("h1", s), c.Node("h2", s)
	reserve(c, other, 2)
	other.Start()
	other.AwaitReady()
	memory := func(h *cluster.Node) string {
		t.Helper()
		text, err := os.ReadFile(h.SubnetFile() + ".lease")
		c.Must(err)
		return string(text)
	}
	copied := memory(other)
	other.Stop() // it would write again what is written below
	// What h itself has left, once with its lease.
	reserve(c, h, 1)
	h.Start()
	h.AwaitReady()
	h.Stop()
	c.DeleteLease(fakeKey(1))
	var mine struct {
		Subnet   netip.Prefix
		PublicIP netip.Addr
		Revision uint64
		MAC      string
	}
	c.Must(json.Unmarshal([]byte(memory(h)), &mine))
	was := func(addr string, subnet int, revision uint64) string {
		m := mine
		m.Subnet, m.PublicIP, m.Revision = netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", subnet)), netip.MustParseAddr(addr), revision
		text, err := json.Marshal(m)
		c.Must(err)
		return string(text)
	}
	const stranger = near + "200"
	for _, test := range []struct {
		name   string
		subnet int
		memory func(held keyState) string
	}{
		{"alone", 5, func(keyState) string { return "" }},
		{"garbage beside it", 5, func(keyState) string { return "{\x00" }},
		{"nothing in what is beside it", 5, func(keyState) string { return "{}" }},
		{"another host's beside it", 5, func(keyState) string { return copied }},
		{"both copied from another host", 2, func(keyState) string { return copied }},
		{"an old revision beside it", 5, func(held keyState) string { return was(stranger, 5, held.ModifiedIndex-1) }},
		{"no revision beside it", 5, func(keyState) string { return was(stranger, 5, 0) }},
		{"a revision to come beside it", 5, func(held keyState) string { return was(stranger, 5, held.ModifiedIndex+1) }},
		{"another address beside it", 5, func(held keyState) string { return was(near+"201", 5, held.ModifiedIndex) }},
		{"another subnet beside it", 5, func(held keyState) string { return was(stranger, 6, held.ModifiedIndex) }},
	} {
		for _, ttl := range []time.Duration{time.Hour, 0} {
			name := fmt.Sprintf("%s, TTL %v", test.name, ttl)
			value := `{"PublicIP":"` + stranger + `","BackendType":"host-gw"}`
			if test.subnet == 2 {
				value = leaseAt(c, 2).Value
			}
			c.PutLease(fakeKey(test.subnet), value, ttl)
			held := leaseAt(c, test.subnet)
			reserve(c, h, test.subnet)
			c.Must(os.RemoveAll(h.SubnetFile() + ".lease"))
			if text := test.memory(held); text != "" {
				c.Must(writeFile(h.SubnetFile()+".lease", text))
			}
			h.Start()
			h.AwaitReady()
			h.Stop()
			own := h.Env().Subnet()
			if own.String() == fmt.Sprintf("10.1.%d.0/24", test.subnet) {
				t.Errorf("%s: it has the stranger's subnet", name)
			}
			if now := leaseAt(c, test.subnet); now.ModifiedIndex != held.ModifiedIndex {
				t.Errorf("%s: the stranger's lease is %+v, and was %+v", name, now, held)
			}
			c.DeleteLease(strings.ReplaceAll(own.String(), "/", "-"))
		}
	}
	// The stranger may even have the address that this host had, and so what was
	// this host's lease.
	reserve(c, h, 7)
	c.Must(os.RemoveAll(h.SubnetFile() + ".lease"))
	h.Start()
	h.AwaitReady()
	h.Stop()
	addr := h.Addr()
	readdress(h, addr, netip.MustParseAddr(near+"77"))
	heir := c.Node("h3", s)
	readdress(heir, heir.Addr(), addr)
	heir.Start()
	heir.AwaitReady()
	if got := heir.Env().Subnet().String(); got != "10.1.7.0/24" {
		t.Errorf("the heir of the address has %s", got)
	}
	held := leaseAt(c, 7)
	h.Start()
	h.AwaitReady()
	if now := leaseAt(c, 7); h.Env().Subnet().String() == "10.1.7.0/24" || now.ModifiedIndex != held.ModifiedIndex {
		t.Errorf("the lease of the address's heir is %+v, and was %+v", now, held)
	}
}

// Ten hosts that ask for one subnet at the same moment: one of them gets it, the
// others get one each, also where there are just ten.
func TestRaceForSubnet(t *testing.T) {
	for _, last := range []int{99, 10} {
		t.Run(fmt.Sprintf("%d subnets", last), func(t *testing.T) {
			c, s := newCluster(t)
			var hosts []*cluster.Node
			for n := 1; n <= 10; n++ {
				h := c.Node(fmt.Sprintf("h%d", n), s)
				reserve(c, h, 5)
				h.Start()
				hosts = append(hosts, h)
			}
			for _, h := range hosts {
				c.Must(h.Daemon.WaitLog("no network config yet", time.Minute))
			}
			c.SetConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.1.0", "SubnetMax": "10.1.%d.0", "Backend": {"Type": "host-gw"}}`, last))
			holders := map[string]*cluster.Node{}
			for _, h := range hosts {
				h.AwaitReady()
				own := h.Env().Subnet().String()
				if holders[own] != nil {
					t.Errorf("%v and %v both have %s", holders[own], h, own)
				}
				holders[own] = h
			}
			if holders["10.1.5.0/24"] == nil {
				t.Error("nobody has the subnet that all wanted")
			}
			all := c.Leases()
			for own, h := range holders {
				if want := fmt.Sprintf(`{"PublicIP":"%v","BackendType":"host-gw"}`, h.Addr()); all[strings.ReplaceAll(own, "/", "-")].Value != want {
					t.Errorf("the lease of %s is not that of %v: %v", own, h, all)
				}
			}
			if len(all) != len(hosts) {
				t.Errorf("there are %d leases: %v", len(all), all)
			}
		})
	}
}
