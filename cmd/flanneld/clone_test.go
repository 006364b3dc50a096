package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// sharedIP is an address that two hosts have.
var sharedIP = netip.MustParseAddr("172.30.0.200")

// clones are two hosts with one public IP and one subnet file.
type clones struct {
	net   *cluster.Cluster
	hosts [2]*cluster.Node
	typ   string
	from  uint64 // etcd's index when the second was started
}

// start starts flanneld on one of the two.
func (x *clones) start(i int) {
	x.net.Helper()
	x.hosts[i].Start("--public-ip="+sharedIP.String(), "--healthz-port=2401")
}

// complaints are the lines of the log about another host with the same address.
func complaints(h *cluster.Node) []string {
	return regexp.MustCompile(`(?m)^E.*\] The lease of 10\.1\.1\.0/24 keeps changing hands: .*\n`).FindAllString(h.Daemon.Log(), -1)
}

// writes lists what has been written to the lease since an index of etcd's.
func writes(c *cluster.Cluster, since uint64) (all []keyState) {
	c.Helper()
	const end = "/end-of-writes" // beside the leases, so that nobody cares
	keyAt(c, http.MethodPut, end, url.Values{"value": {"x"}})
	for {
		e := keyAt(c, http.MethodGet, "", url.Values{"wait": {"true"}, "recursive": {"true"}, "waitIndex": {strconv.FormatUint(since+1, 10)}})
		switch {
		case strings.HasSuffix(e.Key, end):
			return all
		case strings.HasSuffix(e.Key, fakeKey(1)):
			all = append(all, e)
		}
		since = e.ModifiedIndex
	}
}

// Two hosts with one public IP, one perhaps a clone of the other: both say so,
// once, and by /healthz, and they do not write the lease as fast as they can.
// When one of them is stopped, the other has the lease.
func TestClones(t *testing.T) {
	c, s := newCluster(t)
	var all []*clones
	for i, backend := range leaseBackends {
		if typeOf(backend) == "udp" && lab.TUN() != nil {
			t.Log("left out without TUN devices: udp")
			continue
		}
		// A network for each, so that what takes its time does so for all at once.
		net := *c
		net.Prefix = "/" + typeOf(backend)
		net.SetConfig(configOf(backend))
		x := &clones{net: &net, typ: typeOf(backend)}
		for j := range x.hosts {
			h := net.Node(fmt.Sprintf("h%d%c", i, 'a'+j), s)
			h.Run("ip", "addr", "add", sharedIP.String()+"/32", "dev", "eth0") // as host-gw insists
			reserve(&net, h, 1)
			x.hosts[j] = h
		}
		x.start(0)
		all = append(all, x)
	}
	for _, x := range all {
		x.hosts[0].AwaitReady()
		x.from = leaseAt(x.net, 1).ModifiedIndex
	}
	start := time.Now()
	for _, x := range all {
		x.start(1)
	}
	for _, x := range all {
		for _, h := range x.hosts {
			lab.Eventually(t, 10*time.Second, fmt.Sprintf("%s: %v says that the lease changes hands", x.typ, h), func() error {
				lines := complaints(h)
				if len(lines) == 0 || !strings.Contains(lines[0], sharedIP.String()) {
					return fmt.Errorf("it says %q", lines)
				}
				return nil
			})
		}
		t.Logf("%s: both have said so %v after the second was started", x.typ, time.Since(start).Round(10*time.Millisecond))
		for _, h := range x.hosts {
			awaitHealthz(t, h, http.StatusServiceUnavailable, "lease: ")
		}
	}
	// What counts is what does not happen, which cannot be waited for.
	time.Sleep(time.Until(start.Add(20 * time.Second)))
	for _, x := range all {
		made := writes(x.net, x.from)
		t.Logf("%s: %d writes in %v", x.typ, len(made), time.Since(start).Round(time.Second))
		if len(made) >= 20 {
			t.Errorf("%s: the lease was written %d times: %+v", x.typ, len(made), made)
		}
		for _, h := range x.hosts {
			if lines := complaints(h); len(lines) != 1 {
				t.Errorf("%s: %v says %d times that the lease changes hands", x.typ, h, len(lines))
			}
			awaitHealthz(t, h, http.StatusServiceUnavailable, "lease: ")
		}
	}
	survivors := make([]*cluster.Node, len(all))
	for i, x := range all {
		// The one that goes is the one that has the lease, where that is to be told.
		gone := 1
		if x.typ == "vxlan" && strings.Contains(leaseAt(x.net, 1).Value, vtepMAC(x.hosts[0])) {
			gone = 0
		}
		x.hosts[gone].Stop()
		survivors[i] = x.hosts[1-gone]
	}
	for i, x := range all {
		lab.Eventually(t, time.Minute, x.typ+": the one that is left has the lease", func() error {
			now := leaseAt(x.net, 1)
			if now.TTL == 0 || !strings.Contains(now.Value, sharedIP.String()) || x.typ == "vxlan" && !strings.Contains(now.Value, vtepMAC(survivors[i])) {
				return fmt.Errorf("it is %+v", now)
			}
			return nil
		})
		x.net.PutLease(fakeKey(1), leaseAt(x.net, 1).Value, 4*time.Second)
	}
	for i, x := range all {
		lab.Eventually(t, time.Minute, x.typ+": the one that is left renews the lease", func() error {
			if now := x.net.Leases()[fakeKey(1)]; now.TTL < 86000 {
				return fmt.Errorf("it is %+v", now)
			}
			return nil
		})
		if h := survivors[i]; !h.Daemon.Running() || len(complaints(h)) != 1 {
			t.Errorf("%s: %v runs: %t, and says %q", x.typ, h, h.Daemon.Running(), complaints(h))
		}
	}
}

// vtepMAC is the MAC of the host's own VTEP.
func vtepMAC(h *cluster.Node) string {
	_, mac, _ := strings.Cut(h.Run("ip", "-o", "link", "show", "flannel.1"), "link/ether ")
	mac, _, _ = strings.Cut(mac, " ")
	return mac
}

// awaitPortFree waits until nothing listens on the port of /healthz any more: a
// command that flanneld was just about to start when it was killed has its
// sockets for a moment longer than flanneld itself.
func awaitPortFree(t *testing.T, h *cluster.Node, what string) {
	t.Helper()
	lab.Eventually(t, 5*time.Second, "the port of /healthz is free", func() error {
		l, err := h.Listen(netip.MustParseAddrPort("0.0.0.0:2401"))
		if err != nil {
			t.Log(what, err)
			return err
		}
		return l.Close()
	})
}

// A host that is restarted, in whatever way and however often, and one whose
// lease an operator writes again, is nobody's clone.
func TestNoClones(t *testing.T) {
	for _, backend := range leaseBackends {
		t.Run(backend, func(t *testing.T) {
			needTUN(t, backend)
			c, s := newCluster(t)
			c.SetConfig(configOf(backend))
			h := c.Node("h1", s)
			reserve(c, h, 1)
			fine := func(what string) {
				t.Helper()
				awaitHealthz(t, h, http.StatusOK, "ok")
				if log := h.Daemon.Log(); strings.Contains(log, "changing hands") {
					t.Errorf("%s: it is taken for a clone:\n%s", what, log)
				}
			}
			for range 3 {
				for _, how := range stops {
					h.Start("--healthz-port=2401")
					h.AwaitReady()
					fine("started")
					how.stop(h)
					awaitPortFree(t, h, how.name)
				}
			}
			h.Start("--healthz-port=2401")
			h.AwaitReady()
			value := leaseAt(c, 1).Value
			c.PutLease(fakeKey(1), value, 4*time.Second)
			awaitRenewed(t, c, 1, leaseAt(c, 1))
			fine("the lease was written again")
			c.DeleteLease(fakeKey(1))
			c.Must(h.Daemon.WaitLog(regexpQuote(claimed(1)), within))
			fine("the lease was deleted")
			if value != leaseAt(c, 1).Value {
				t.Errorf("the lease is %+v, and was %s", leaseAt(c, 1), value)
			}
		})
	}
}
