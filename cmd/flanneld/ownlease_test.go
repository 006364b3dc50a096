package main

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// leaseBackends are the backends that tests of leases go through.
var leaseBackends = []string{`{"Type": "vxlan"}`, `{"Type": "host-gw"}`, `{"Type": "udp"}`}

// A lease that somebody deletes, alone or with all that is in etcd, is its
// host's again at once: the network does not notice.
func TestOwnLease(t *testing.T) {
	for _, backend := range leaseBackends {
		t.Run(backend, func(t *testing.T) {
			p := newStillPair(t, backend)
			p.undisturbed("a lease deleted", func() { p.c.DeleteLease(fakeKey(1)) }, within, 1)
			p.undisturbed("both deleted", func() { p.c.DeleteLease(fakeKey(1)); p.c.DeleteLease(fakeKey(2)) }, within, 1, 2)
			p.undisturbed("all leases removed with their directory", func() { removeAll(p.c, "/subnets") }, within, 1, 2)
			p.undisturbed("the whole prefix removed", func() {
				removeAll(p.c, "")
				p.c.SetConfig(configOf(backend))
			}, within, 1, 2)
			// What is found out here would have been found out above.
			for _, m := range p.monitors {
				m.reset()
				sh(m.h, "ip route add 10.1.250.0/24 via 172.30.0.1 proto 102")
				if len(m.lines()) == 0 {
					t.Errorf("a change in the kernel of %v is not seen", m.h)
				}
			}
		})
	}
}

// etcd that has lost all its data, and has got its config again: every host has
// its subnet as before, and the network does not notice.
func TestEtcdWiped(t *testing.T) {
	for _, backend := range leaseBackends {
		t.Run(backend, func(t *testing.T) {
			p := newStillPair(t, backend)
			p.undisturbed("etcd wiped", func() {
				p.c.Etcd.Wipe()
				p.c.Must(p.hosts[0].Daemon.WaitLog("Waiting for the store", 10*time.Second))
				p.c.Etcd.Restart()
				p.c.SetConfig(configOf(backend))
			}, settled, 1, 2)
			// A host that joins shows that everybody follows again.
			_, c3 := join(p.c, p.segment, 3)
			lab.EventuallyPing(t, within, p.containers[0], c3.Addr(), lab.Echo{Timeout: 100 * time.Millisecond})
		})
	}
}

// A lease that ends while its host is cut off from etcd, or hangs: the others do
// without it for that time, while its own kernel stays as it is; and it is the
// same one again when the host is back.
func TestOwnLeaseExpired(t *testing.T) {
	for _, backend := range leaseBackends {
		for _, way := range []struct {
			name string
			away func(p *stillPair) (home func())
		}{
			{"cut off", func(p *stillPair) func() { return p.hosts[0].Silence(p.c.Etcd.Host().Addr(), 0) }},
			{"hanging", func(p *stillPair) func() { d := p.hosts[0].Daemon; d.Pause(); return d.Continue }},
		} {
			t.Run(backend+" "+way.name, func(t *testing.T) {
				p := newStillPair(t, backend)
				h1, h2 := p.hosts[0], p.hosts[1]
				home := way.away(p)
				p.c.PutLease(fakeKey(1), p.leases[fakeKey(1)].Value, time.Second)
				lab.Eventually(t, 5*time.Second, "the lease ends", func() error {
					if _, there := p.c.Leases()[fakeKey(1)]; there {
						return errors.New("it is still there")
					}
					return nil
				})
				lab.Eventually(t, within, "the peer does without it", func() error {
					if strings.Contains(h2.Routes(), "10.1.1.0/24") {
						return fmt.Errorf("the routes are\n%s", h2.Routes())
					}
					if _, err := p.containers[1].Ping(p.containers[0].Addr(), lab.Echo{Timeout: 50 * time.Millisecond}); err == nil {
						return errors.New("the container still answers")
					}
					return nil
				})
				home()
				p.awaitClaimed(settled, 1)
				p.reach()
				p.monitors[0].still("the lease ended")
				if n := strings.Count(h2.Daemon.Log(), claimed(2)); n != 0 || !h1.Daemon.Running() {
					t.Errorf("the other host has claimed its own lease %d times", n)
				}
			})
		}
	}
}

// Twenty hosts whose leases all go at the same moment: each has its own again,
// and nothing moves in any kernel.
func TestOwnLeaseOfMany(t *testing.T) {
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "host-gw"}`} {
		t.Run(backend, func(t *testing.T) {
			const many = 20
			c, s := newCluster(t)
			c.SetConfig(configOf(backend))
			var hosts []*cluster.Node
			for n := 1; n <= many; n++ {
				h := c.Node(fmt.Sprintf("h%d", n), s)
				reserve(c, h, n)
				h.Start()
				hosts = append(hosts, h)
			}
			var monitors []*kernelMonitor
			for _, h := range hosts {
				h.AwaitReady()
				lab.Eventually(t, 20*time.Second, "routes to all others", func() error {
					if n := strings.Count(h.Routes(), "proto 102"); n != many-1 {
						return fmt.Errorf("%d routes", n)
					}
					return nil
				})
				monitors = append(monitors, monitorKernel(t, h))
			}
			first, last := hosts[0].AddContainer("c"), hosts[many-1].AddContainer("c")
			reach(t, first, last, last.Addr(), first.Addr(), hosts[0].Env().MTU)
			values := func() map[string]string {
				all := map[string]string{}
				for key, l := range c.Leases() {
					if l.TTL > 86000 {
						all[key] = l.Value
					}
				}
				return all
			}
			before := values()
			for _, m := range monitors {
				m.reset()
			}
			removeAll(c, "/subnets")
			lab.Eventually(t, 10*time.Second, "all leases are claimed again", func() error {
				if now := values(); !maps.Equal(now, before) {
					return fmt.Errorf("there are %d of %d: %v, and there were %v", len(now), len(before), now, before)
				}
				return nil
			})
			if _, err := first.Ping(last.Addr(), lab.Echo{Count: 400, Interval: 2 * time.Millisecond}); err != nil {
				t.Error(err)
			}
			for i, m := range monitors {
				m.still("all leases removed")
				if n := strings.Count(hosts[i].Daemon.Log(), claimed(i+1)); n != 1 {
					t.Errorf("%v says %d times that it has claimed its lease", hosts[i], n)
				}
			}
			if now := values(); !maps.Equal(now, before) {
				t.Errorf("the leases are %v, and were %v", now, before)
			}
		})
	}
}

// A host whose subnet another host has by now says who, and ends with status 1.
// Started again, as systemd would, it has another subnet, and nothing on it is
// left of the old one.
func TestOwnLeaseLost(t *testing.T) {
	for _, backend := range leaseBackends {
		t.Run(backend, func(t *testing.T) {
			needTUN(t, backend)
			c, s := newCluster(t)
			c.SetConfig(configOf(backend))
			h := c.Node("h1", s)
			reserve(c, h, 1)
			h.Start("--ip-masq")
			h.AwaitReady()
			const old = "10.1.1."
			about := func() string {
				var all []string
				for line := range strings.Lines(h.Run("sh", "-ec", `
					ip -4 -o addr; ip -4 route show table all; ip neigh; bridge fdb; ip nexthop
					iptables -S; iptables -t nat -S; cat subnet.env*`)) {
					if strings.Contains(line, old) {
						all = append(all, strings.TrimSpace(line))
					}
				}
				return strings.Join(all, "\n")
			}
			lab.Eventually(t, 5*time.Second, "rules for the subnet", func() error {
				if text := about(); !strings.Contains(text, "-d 10.1.1.0/24") {
					return fmt.Errorf("there is only\n%s", text)
				}
				return nil
			})
			// Of a backend that is not this network's, so that the holder itself gets
			// no entry in the kernel.
			thief := `{"PublicIP":"172.30.0.99","BackendType":"ipsec"}`
			c.PutLease(fakeKey(1), thief, time.Hour)
			taken := leaseAt(c, 1)
			status, err := h.Daemon.Wait(5 * time.Second)
			c.Must(err)
			if status != 1 {
				t.Errorf("exit status %d", status)
			}
			if want := fmt.Sprintf("Stopping: the subnet 10.1.1.0/24 of this host (%v) is now leased by 172.30.0.99: ", h.Addr()); !strings.Contains(h.Daemon.Log(), want) {
				t.Errorf("the log lacks %q:\n%s", want, h.Daemon.Log())
			}
			h.Start("--ip-masq")
			h.AwaitReady()
			if h.Env().Subnet().String() == "10.1.1.0/24" {
				t.Error("it has the same subnet again")
			}
			lab.Eventually(t, 5*time.Second, "nothing of the old subnet", func() error {
				if text := about(); text != "" {
					return fmt.Errorf("there is\n%s", text)
				}
				return nil
			})
			if now := leaseAt(c, 1); now.ModifiedIndex != taken.ModifiedIndex || now.Value != thief {
				t.Errorf("the other's lease is %+v, and was %+v", now, taken)
			}
		})
	}
}

// Peers follow a host that has lost its subnet to another.
func TestPeersOfOwnLeaseLost(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h1, _ := join(c, s, 1)
	h2, c2 := join(c, s, 2)
	thief := fake{near + "99", 99}
	thief.put(c, "vxlan", 1)
	status, err := h1.Daemon.Wait(5 * time.Second)
	c.Must(err)
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	h1.Start()
	h1.AwaitReady()
	h1.RemoveContainers()
	c1 := h1.AddContainer("again")
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
	if !strings.Contains(h2.FDB("flannel.1"), "02:00:00:00:00:63 dst 172.30.0.99 self permanent") {
		t.Errorf("the other host does not know the new holder:\n%s", h2.FDB("flannel.1"))
	}
}

// A lease that somebody has given a short time is renewed before it ends.
func TestShortLease(t *testing.T) {
	p := newStillPair(t, `{"Type": "vxlan"}`)
	for range 2 {
		p.c.PutLease(fakeKey(1), p.leases[fakeKey(1)].Value, 4*time.Second)
		awaitRenewed(t, p.c, 1, leaseAt(p.c, 1))
	}
	for _, m := range p.monitors {
		m.still("the lease was given a short time")
	}
	if strings.Contains(p.hosts[0].Daemon.Log(), claimed(1)) {
		t.Error("it was gone for a time")
	}
}
