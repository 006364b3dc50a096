package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// Every config in the field leads to the network and lease one would expect.
func TestConfigsInTheField(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	for i, test := range []struct {
		config  string
		network string
		within  string // the subnets that may be leased
		backend string
		mtu     int
	}{
		{`{"Network": "172.7.0.0/16", "Backend": {"Type": "host-gw"}}`, "172.7.0.0/16", "172.7.1.0-172.7.255.0", `"host-gw"}`, 1500},
		{`{"Network": "172.7.0.0/16", "Backend": {"Type": "vxlan","Directrouting": true}}`, "172.7.0.0/16", "172.7.1.0-172.7.255.0", `"vxlan","BackendData":{"VtepMAC":"`, 1450},
		{`{"Network": "172.17.0.1/16","SubnetMin": "172.17.0.0", "SubnetMax": "172.17.254.0","Backend":{"Type":"vxlan"}}`, "172.17.0.0/16", "172.17.0.0-172.17.254.0", `"vxlan","BackendData":{"VtepMAC":"`, 1450},
		{`{"Network":"172.17.0.1/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}`, "172.17.0.0/16", "172.17.1.0-172.17.255.0", `"vxlan","BackendData":{"VtepMAC":"`, 1450},
		{`{"Network":"172.17.0.0/16","SubnetLen":24,"SubnetMin":"172.17.0.0","SubnetMax":"172.17.254.0","Backend":{"Type":"udp","Port":7890}}`, "172.17.0.0/16", "172.17.0.0-172.17.254.0", `"udp"}`, 1472},
		{`{"Network":"10.253.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}`, "10.253.0.0/16", "10.253.1.0-10.253.255.0", `"vxlan","BackendData":{"VtepMAC":"`, 1450},
		{`{ "Network": "10.1.0.0/16" }`, "10.1.0.0/16", "10.1.1.0-10.1.255.0", `"udp"}`, 1472},
		{`{"Network": "192.168.0.1/16","SubnetLen": 24,"Backend": {"Type": "host-gw"}}`, "192.168.0.0/16", "192.168.1.0-192.168.255.0", `"host-gw"}`, 1500},
	} {
		if strings.Contains(test.backend, "udp") && lab.TUN() != nil {
			t.Logf("left out without TUN devices: %s", test.config)
			continue
		}
		c.Prefix = fmt.Sprintf("/net%d/network", i)
		c.SetConfig(test.config)
		h.Start()
		h.AwaitReady()
		e := h.Env()
		low, high, _ := strings.Cut(test.within, "-")
		if e.Network.String() != test.network || e.MTU != test.mtu || e.Gateway.Bits() != 24 ||
			e.Subnet().Addr().Less(netip.MustParseAddr(low)) || netip.MustParseAddr(high).Less(e.Subnet().Addr()) {
			t.Errorf("%s: the subnet file says %+v", test.config, e)
		}
		leases := c.Leases()
		key := strings.ReplaceAll(e.Subnet().String(), "/", "-")
		want := fmt.Sprintf(`{"PublicIP":"%v","BackendType":%s`, h.Addr(), test.backend)
		if l := leases[key]; len(leases) != 1 || !strings.HasPrefix(l.Value, want) || l.TTL < 86390 || l.TTL > 86400 {
			t.Errorf("%s: the leases are %v, want %s with %s…", test.config, leases, key, want)
		}
		h.Stop()
	}
}

// Whatever the spelling of the prefix, it is the same place.
func TestPrefixes(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	for _, prefix := range []string{"/atomic.io/network", "kubernetes/network", "/dudu_flannel/network/", "/deep/er/and//deeper"} {
		c.Prefix = "/" + strings.Trim(prefix, "/")
		c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
		h.Start("-etcd-prefix", prefix)
		h.AwaitReady()
		if n := len(c.Leases()); n != 1 {
			t.Errorf("%s: %d leases", prefix, n)
		}
		h.Stop()
	}
}

// A config that cannot be used gets one message, and flanneld waits for a right
// one; nothing is leased or written before.
func TestBadConfigs(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	h.Start()
	c.Must(h.Daemon.WaitLog(`no network config yet \(/coreos.com/network/config is not in the store\)`, time.Minute))
	for _, test := range []struct{ config, message string }{
		{`hello`, `hello is not valid JSON`},
		{`{}`, `Network is missing`},
		{`{"Network": "fd00::/64"}`, `Network is "fd00::/64": must be an IPv4 prefix, IPv6 is not supported`},
		{`{"Network": 5}`, `Network is 5: must be a string`},
		{`{"Network": "10.1.0.0/16", "SubnetLen": 33}`, `SubnetLen is 33: must be a whole number from 18 to 30`},
		{`{"Network": "10.1.0.0/16", "SubnetMin": "10.2.0.0"}`, `SubnetMin is "10.2.0.0": lies outside Network, which is 10.1.0.0/16`},
		{`{"Network": "10.1.0.0/16", "Backend": {"Type": "ipip"}}`, `Backend.Type is "ipip": there is no such backend, only host-gw, udp, vxlan`},
		{`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": 10000000}}`, `Backend.VNI is 10000000: must be a whole number from 0 to 9999999`},
		{`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Port": 65536}}`, `Backend.Port is 65536: must be a whole number from 1 to 65535`},
		{`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": "yes"}}`, `Backend.DirectRouting is "yes": must be true or false`},
		{`{"Network": "10.1.0.0/16", "Backend": {"Type": "udp", "Port": 0}}`, `Backend.Port is 0: must be a whole number from 1 to 65535`},
	} {
		c.SetConfig(test.config)
		c.Must(h.Daemon.WaitLog(regexpQuote("waiting for it to be put right: "+test.message), within))
		// Written again without a change, it is not said again.
		c.SetConfig(test.config)
		if n := strings.Count(h.Daemon.Log(), test.message); n != 1 {
			t.Errorf("%s: said %d times", test.config, n)
		}
	}
	if n := len(c.Leases()); n != 0 {
		t.Errorf("%d leases without a config that can be used", n)
	}
	c.DeleteConfig()
	lab.Eventually(t, within, "the missing config is said again", func() error {
		if n := strings.Count(h.Daemon.Log(), "no network config yet"); n != 2 {
			return fmt.Errorf("said %d times", n)
		}
		return nil
	})
	c.SetConfig(`{"Network": "10.1.0.0/16", "EnableIPv6": false, "Backend": {"Type": "host-gw", "Speed": 9}}`)
	h.AwaitReady()
	for _, name := range []string{"EnableIPv6", "Backend.Speed"} {
		if !strings.Contains(h.Daemon.Log(), "not known here and has no effect: "+name+"\n") {
			t.Errorf("no warning names %s", name)
		}
	}
	// A change while it runs is said, and waits for a restart.
	c.SetConfig(`{"Network": "10.2.0.0/16", "Backend": {"Type": "host-gw"}}`)
	c.Must(h.Daemon.WaitLog(`was changed: Network is 10.2.0.0/16 instead of 10.1.0.0/16, .*; this host's subnet .* is none of its subnets, .*; restart flanneld to apply it`, within))
}

// A config that does not fit this host is an error that says what does not, and
// nothing is leased or written before.
func TestConfigForAnotherHost(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "MTU": 9000}}`)
	h := c.Node("h1", s)
	h.Start()
	status, err := h.Daemon.Wait(10 * time.Second)
	if err != nil || status != 1 || !strings.Contains(h.Daemon.Log(), "Backend.MTU is 9000, but eth0, which carries the packets, has an MTU of 1500") {
		t.Errorf("exit status %d, %v", status, err)
	}
	if _, err := os.Stat(h.SubnetFile()); !errors.Is(err, fs.ErrNotExist) || len(c.Leases()) != 0 {
		t.Errorf("there is a subnet file (%v) or a lease (%v)", err, c.Leases())
	}
}

// Leases that cannot be read are named once and left out; the others work.
func TestUnreadableLeases(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`)
	bad := map[string]string{
		"10.1.20.0-24": `garbage`,
		"10.1.21.0-24": `{"PublicIP":"nowhere","BackendType":"vxlan"}`,
		"10.1.22.0-24": `{"PublicIP":"172.30.0.22","BackendType":"vxlan"}`,
		"10.1.23.0-24": `{"PublicIP":"172.30.0.23","BackendType":"vxlan","BackendData":{"VtepMAC":"xx"}}`,
		"10.1.24.0-24": `{"PublicIP":"172.30.0.24","BackendType":"vxlan","BackendData":"none"}`,
		"10.1.25.0-24": `{"PublicIP":"172.30.0.25","BackendType":"host-gw"}`,
		"10.1.26-24":   `{"PublicIP":"172.30.0.26","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:26"}}`,
		"10.9.27.0-24": `{"PublicIP":"172.30.0.27","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:27"}}`,
		"0.0.0.0-0":    `{"PublicIP":"172.30.0.28","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:28"}}`,
	}
	for key, value := range bad {
		c.PutLease(key, value, time.Hour)
	}
	h1, c1 := join(c, s, 1)
	_, c2 := join(c, s, 2)
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
	for key := range bad {
		name, _, _ := strings.Cut(key, "-") // in messages it may be a prefix
		if n := strings.Count(h1.Daemon.Log(), name); n != 1 {
			t.Errorf("%s is in the log %d times", key, n)
		}
	}
	if got := strings.Count(h1.Routes(), "flannel.1"); got != 1 {
		t.Errorf("%d routes, want one:\n%s", got, h1.Routes())
	}
}
