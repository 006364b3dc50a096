package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// oldRules are those of a daemon of v0.11 with --ip-masq, for a network and a
// subnet, as arguments of iptables.
func oldRules(network, own string) []string {
	return []string{
		"-t nat -A POSTROUTING -s " + network + " -d " + network + " -j RETURN",
		"-t nat -A POSTROUTING -s " + network + " ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
		"-t nat -A POSTROUTING ! -s " + network + " -d " + own + " -j RETURN",
		"-t nat -A POSTROUTING ! -s " + network + " -d " + network + " -j MASQUERADE --random-fully",
		"-A FORWARD -s " + network + " -j ACCEPT",
		"-A FORWARD -d " + network + " -j ACCEPT",
	}
}

// The rules of an older daemon give way to ours and no packet notices, although
// nothing but these rules lets packets pass. What others have stays, and so do
// rules like those that somebody puts in later.
func TestTakeOver(t *testing.T) {
	iptablesKinds(t, func(t *testing.T, program string) {
		c, s := newCluster(t)
		c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`)
		h1, c1 := join(c, s, 1)
		_, c2 := join(c, s, 2)
		reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
		h1.Stop()

		// As the older daemon left the host.
		iptables := func(args string) string {
			return h1.Run(append([]string{program, "-w"}, strings.Fields(args)...)...)
		}
		for _, args := range []string{"-t nat -F", "-t nat -X", "-F", "-X"} {
			for _, p := range []string{"iptables", program} {
				h1.Run(append([]string{p, "-w"}, strings.Fields(args)...)...)
			}
		}
		c.Must(writeFile(h1.SubnetFile(), "FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"))
		iptables("-P FORWARD DROP")
		others := []string{
			"-A FORWARD -s 10.1.0.0/16 -i eth7 -j ACCEPT",
			"-t nat -A POSTROUTING -s 10.1.0.0/16 ! -d 224.0.0.0/4 -o eth7 -j MASQUERADE",
			"-t nat -A POSTROUTING -s 10.8.0.0/16 -d 10.8.0.0/16 -j RETURN",
			"-A FORWARD -m comment --comment rest -j DROP",
		}
		iptables(others[0])
		iptables(others[1])
		for _, rules := range [][]string{
			oldRules("10.1.0.0/16", "10.1.1.0/24"), oldRules("10.1.0.0/16", "10.1.1.0/24"),
			oldRules("10.1.0.0/16", "10.1.55.0/24"), oldRules("10.7.0.0/16", "10.7.3.0/24"),
		} {
			for _, rule := range rules {
				iptables(rule)
			}
		}
		iptables(others[2])
		iptables(others[3])

		ctx, stop := context.WithCancel(t.Context())
		var traffic sync.WaitGroup
		defer traffic.Wait()
		defer stop()
		traffic.Go(func() {
			stats, err := c1.Ping(c2.Addr(), lab.Echo{Count: 1 << 20, Interval: time.Millisecond, Timeout: 5 * time.Second, Context: ctx})
			if err != nil {
				t.Errorf("while the rules changed: %v, %v", stats, err)
			}
		})
		var connections atomic.Int64
		traffic.Go(func() {
			for n := connections.Load(); ctx.Err() == nil; n = connections.Add(1) {
				for _, way := range [][2]*lab.Container{{c1, c2}, {c2, c1}} {
					if seen, err := lab.SourceSeen(way[0], way[1], way[1].Addr()); err != nil || seen != way[0].Addr() {
						t.Errorf("connection %d from %v is seen from %v, %v", n, way[0].Addr(), seen, err)
						return
					}
				}
			}
		})
		goesOn := func() {
			t.Helper()
			before := connections.Load()
			lab.Eventually(t, mending, "connections", func() error {
				if n := connections.Load() - before; n < 10 {
					return fmt.Errorf("there were %d", n)
				}
				return nil
			})
		}
		goesOn()
		behindFrontDoor(t, h1, program)
		h1.Start("--iptables-resync=1")
		h1.AwaitReady()
		c.Must(h1.Daemon.WaitLog(`iptables: put right: .*filter: took out of FORWARD what an older daemon left: "-s 10.1.0.0/16 -j ACCEPT" \(3 times\), "-d 10.1.0.0/16 -j ACCEPT" \(3 times\), "-s 10.7.0.0/16 -j ACCEPT", "-d 10.7.0.0/16 -j ACCEPT"`, mending))
		goesOn()
		stop()
		traffic.Wait()

		want := "-A FORWARD -s 10.1.0.0/16 -i eth7 -j ACCEPT\n-A FORWARD -j FLANNEL-FWD\n-A FORWARD -m comment --comment rest -j DROP\n"
		if got := iptables("-S FORWARD"); !strings.HasSuffix(got+"\n", "-P FORWARD DROP\n"+want) {
			t.Errorf("FORWARD is\n%s", got)
		}
		want = "-A POSTROUTING -j FLANNEL-POSTRTG\n" + strings.TrimPrefix(others[1], "-t nat ") + "\n" + strings.TrimPrefix(others[2], "-t nat ") + "\n"
		if got := iptables("-t nat -S POSTROUTING"); !strings.HasSuffix(got+"\n", "-P POSTROUTING ACCEPT\n"+want) {
			t.Errorf("POSTROUTING is\n%s", got)
		}
		reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)

		// Somebody's own from now on.
		for _, rule := range oldRules("10.1.0.0/16", "10.1.1.0/24") {
			iptables(rule)
		}
		later := iptables("-S FORWARD") + iptables("-t nat -S POSTROUTING")
		for range 2 {
			iptables("-F FLANNEL-FWD")
			lab.Eventually(t, mending, "a resync", func() error {
				if now := iptables("-S FLANNEL-FWD"); !strings.Contains(now, "-A FLANNEL-FWD -d 10.1.0.0/16 -j ACCEPT") {
					return fmt.Errorf("FLANNEL-FWD is %s", now)
				}
				return nil
			})
		}
		if now := iptables("-S FORWARD") + iptables("-t nat -S POSTROUTING"); now != later {
			t.Errorf("of what was there:\n%s\nthere is now:\n%s", later, now)
		}
		if n := logged(h1, ".*an older daemon left.*"); n != 1 {
			t.Errorf("said in %d lines what was taken out", n)
		}
	})
}

// Rules that iptables does not show, because they were made with iptables-legacy
// before the host changed over, are said once.
func TestRulesInLegacy(t *testing.T) {
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Fatalf("%v: install the package iptables", err)
	}
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	for _, rule := range oldRules("10.1.0.0/16", "10.1.1.0/24") {
		h.Run(append([]string{"iptables-legacy", "-w"}, strings.Fields(rule)...)...)
	}
	program, err := exec.LookPath("iptables-nft")
	c.Must(err)
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-restore"} {
		c.Must(exec.Command("ln", "-s", program, dir+"/"+name).Run())
	}
	legacy, err := exec.LookPath("iptables-legacy-save")
	c.Must(err)
	c.Must(exec.Command("ln", "-s", legacy, dir+"/iptables-legacy-save").Run())
	h.Under = []string{"env", "PATH=" + dir}
	h.Start("--iptables-resync=1")
	h.AwaitReady()
	const says = "this host uses iptables-nft, and iptables-legacy has rules of flannel too, which count as well: 2 rules in FORWARD of filter, 4 rules in POSTROUTING of nat"
	c.Must(h.Daemon.WaitLog(says, mending))
	h.Run("iptables-nft", "-F", "FLANNEL-FWD")
	c.Must(h.Daemon.WaitLog("put right: filter: chain FLANNEL-FWD", mending))
	h.Run("iptables-nft", "-A", "FLANNEL-FWD", "-j", "RETURN")
	c.Must(h.Daemon.WaitLog("put right: filter: chain FLANNEL-FWD: took out", mending))
	if n := logged(h, says); n != 1 {
		t.Errorf("said %d times", n)
	}
}
