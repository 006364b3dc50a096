package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// Who is seen as whom, with --ip-masq and without, with dockerd masquerading by
// itself where it is told to, and with FORWARD dropping by policy as dockerd
// sets it.
func TestSourceAddresses(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw", "udp"} {
		for _, masq := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s masq=%t", backend, masq), func(t *testing.T) {
				if backend == "udp" {
					if err := lab.TUN(); err != nil {
						t.Skip(err)
					}
				}
				c, s := newCluster(t)
				c.SetConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "Backend": {"Type": %q}}`, backend))
				var hosts []*cluster.Node
				var containers []*lab.Container
				for i := range 2 {
					h, container := join(c, s, i+1, "--iptables-resync=1", fmt.Sprintf("--ip-masq=%t", masq))
					h.Run("iptables", "-P", "FORWARD", "DROP")
					if !h.Env().IPMasq {
						// What dockerd adds when it starts, at the top.
						h.Run("iptables", "-t", "nat", "-I", "POSTROUTING", "-s", h.Env().Subnet().String(), "!", "-o", "docker0", "-j", "MASQUERADE")
					}
					hosts, containers = append(hosts, h), append(containers, container)
				}
				h1, c1, c2 := hosts[0], containers[0], containers[1]
				lab.Eventually(t, 5*time.Second, "flannel's rules come first", func() error {
					for _, h := range hosts {
						if rules := h.Run("iptables", "-t", "nat", "-S", "POSTROUTING"); !strings.HasPrefix(rules, "-P POSTROUTING ACCEPT\n-A POSTROUTING -j FLANNEL-POSTRTG") {
							return fmt.Errorf("%v has\n%s", h, rules)
						}
					}
					return nil
				})
				lab.EventuallyPing(t, within, c1, c2.Addr(), lab.Echo{Timeout: 100 * time.Millisecond})
				// The outside knows the way to both subnets, and goes through h1.
				outside := c.Router
				for _, h := range hosts {
					outside.Run("ip", "route", "add", h.Env().Subnet().String(), "via", h1.Addr().String())
				}
				overlay := map[string]netip.Addr{"vxlan": h1.Env().Subnet().Addr(), "udp": h1.Env().Subnet().Addr(), "host-gw": h1.Addr()}[backend]
				gateway := s.Gateway()
				through := gateway // outside to another host's subnet, through this host
				if masq {
					through = overlay
				}
				for _, test := range []struct {
					what     string
					from, to lab.Place
					addr     netip.Addr
					want     netip.Addr
				}{
					{"container to container on another host", c1, c2, c2.Addr(), c1.Addr()},
					{"and back", c2, c1, c1.Addr(), c2.Addr()},
					{"host to container on another host", h1, c2, c2.Addr(), overlay},
					{"host to its own container", h1, c1, c1.Addr(), h1.Env().Gateway.Addr()},
					{"container to its own host", c1, h1, h1.Addr(), c1.Addr()},
					{"container to the outside", c1, outside, gateway, h1.Addr()},
					{"outside to a container of this host", outside, c1, c1.Addr(), gateway},
					{"outside through this host to another", outside, c2, c2.Addr(), through},
				} {
					if got, err := lab.SourceSeen(test.from, test.to, test.addr); err != nil || got != test.want {
						t.Errorf("%s is seen as %v, %v; want %v", test.what, got, err, test.want)
					}
				}
			})
		}
	}
}

// Rules of another network or subnet go, and so do those that flags turn off.
func TestRulesFollow(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h := c.Node("h1", s)
	h.Run("iptables", "-A", "FORWARD", "-s", "192.0.2.1/32", "-j", "DROP") // somebody else's
	rules := func() string {
		return h.Run("iptables", "-S") + "\n" + h.Run("iptables", "-t", "nat", "-S")
	}
	await := func(what string, there, gone []string) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, what, func() error {
			now := rules()
			for _, text := range append(there, "-A FORWARD -s 192.0.2.1/32 -j DROP") {
				if !strings.Contains(now, text) {
					return fmt.Errorf("there is no %s in\n%s", text, now)
				}
			}
			for _, text := range gone {
				if strings.Contains(now, text) {
					return fmt.Errorf("there is %s in\n%s", text, now)
				}
			}
			return nil
		})
	}
	h.Start("--ip-masq")
	h.AwaitReady()
	await("rules", []string{"-A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT", "-A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE"}, nil)
	h.Stop()
	if !strings.Contains(rules(), "FLANNEL-FWD") {
		t.Error("the rules went when flanneld stopped")
	}
	c.SetConfig(`{"Network": "10.2.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h.Start()
	h.AwaitReady()
	await("rules for the new network", []string{"-A FLANNEL-FWD -s 10.2.0.0/16 -j ACCEPT", "-d 10.2.0.0/16 -j ACCEPT"}, []string{"10.1.", "MASQUERADE"})
	h.Stop()
	h.Start("--iptables-forward-rules=false")
	h.AwaitReady()
	await("no forward rules", []string{"FLANNEL-POSTRTG"}, []string{"FLANNEL-FWD"})
	h.Stop()
}

// Without an iptables program the network works all the same.
func TestWithoutIPTables(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h1 := c.Node("h1", s)
	reserve(c, h1, 1)
	h1.Daemon = h1.StartProgram(lab.Program{Name: "flanneld", Notify: true,
		// Nothing is in these directories: not even sbin, which is looked in too.
		Args: []string{"unshare", "--mount", "sh", "-c", "for d in /usr/sbin /sbin /usr/local/sbin; do mount -t tmpfs none $d 2>/dev/null; done; PATH=/nowhere exec \"$@\"", "sh",
			lab.Binary("flanneld"), "--etcd-endpoints=" + c.Etcd.Endpoint(), "--subnet-file=" + h1.SubnetFile(), "--healthz-port=2401"}})
	h1.AwaitReady()
	c.Must(h1.Daemon.WaitLog("Going on without firewall rules: no iptables program .* install the package iptables", 5*time.Second))
	_, c2 := join(c, s, 2)
	c1 := h1.AddContainer("c")
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
}
