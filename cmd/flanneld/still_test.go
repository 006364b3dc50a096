package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// keyState is a key of etcd's with what only its v2 API tells of it.
type keyState struct {
	Key, Value                  string
	TTL                         int    // seconds; 0 when there is no end
	CreatedIndex, ModifiedIndex uint64 // another CreatedIndex is another key: the one before was gone
	action                      string
}

// keyAt asks etcd for a key, or does something to it, below the cluster's
// prefix, where Cluster has no words for it.
func keyAt(c *cluster.Cluster, method, key string, query url.Values) keyState {
	c.Helper()
	req, err := http.NewRequest(method, c.Etcd.Endpoint()+"/v2/keys"+c.Prefix+key+"?"+query.Encode(), nil)
	c.Must(err)
	resp, err := c.Router.HTTP().Do(req)
	c.Must(err)
	defer resp.Body.Close()
	var a struct {
		Action string
		Node   keyState
	}
	if resp.StatusCode >= 300 {
		c.Fatalf("%s %s: %s", method, req.URL, resp.Status)
	}
	c.Must(json.NewDecoder(resp.Body).Decode(&a))
	a.Node.action = a.Action
	return a.Node
}

func leaseAt(c *cluster.Cluster, n int) keyState {
	c.Helper()
	return keyAt(c, http.MethodGet, "/subnets/"+fakeKey(n), nil)
}

// removeAll removes a directory with all that is in it.
func removeAll(c *cluster.Cluster, dir string) {
	c.Helper()
	keyAt(c, http.MethodDelete, dir, url.Values{"recursive": {"true"}})
}

// awaitRenewed waits until a lease that ends in seconds has been renewed. It
// must not have been gone in between.
func awaitRenewed(t *testing.T, c *cluster.Cluster, n int, written keyState) {
	t.Helper()
	lab.Eventually(t, 10*time.Second, "the lease is renewed", func() error {
		switch now := leaseAt(c, n); {
		case now.CreatedIndex != written.CreatedIndex:
			t.Fatalf("the lease was gone: it is %+v and was %+v", now, written)
		case now.TTL < 86390 || now.TTL > 86400:
			return fmt.Errorf("it is %+v", now)
		}
		return nil
	})
}

// ofFlanneld is what there is in lines about devices and entries of flanneld's.
var ofFlanneld = regexp.MustCompile(`\bflannel[.\d]|\bproto 102\b`)

// kernelMonitor listens to what changes in a host's kernel.
type kernelMonitor struct {
	t        *testing.T
	h        *cluster.Node
	monitors [2]*lab.Process // of routes and so on, and of the FDB
	from     [2]int          // where in their logs what counts begins
	marks    int
}

// monitorKernel begins to listen.
func monitorKernel(t *testing.T, h *cluster.Node) *kernelMonitor {
	t.Helper()
	sh(h, "ip link add marks type bridge; ip link set marks up") // see caughtUp
	m := &kernelMonitor{t: t, h: h, monitors: [2]*lab.Process{
		h.Host.Start("ip-monitor", "ip", "monitor", "route", "neigh", "nexthop", "link"),
		h.Host.Start("bridge-monitor", "bridge", "monitor", "fdb"),
	}}
	m.reset()
	return m
}

// caughtUp returns when the monitors have told all that has happened before. The
// kernel tells things in order, so that this is so once they tell of something
// done afterwards, on a device that is nobody's.
func (m *kernelMonitor) caughtUp() {
	m.t.Helper()
	first := m.marks + 1
	told := func(i int, mark string) error {
		for n := first; n <= m.marks; n++ {
			if strings.Contains(m.monitors[i].Log(), fmt.Sprintf(mark, n>>8, n&0xff)) {
				return nil
			}
		}
		return fmt.Errorf("%v has not told of the marks from %d to %d", m.monitors[i], first, m.marks)
	}
	lab.Eventually(m.t, 10*time.Second, "the monitors", func() error {
		m.marks++ // another, as before they listen one is lost
		const route, fdb = "198.18.%d.%d dev marks", "02:00:00:ff:%02x:%02x dev marks"
		sh(m.h, fmt.Sprintf("ip route add "+route+"; bridge fdb add "+fdb+" self", m.marks>>8, m.marks&0xff, m.marks>>8, m.marks&0xff))
		return errors.Join(told(0, route), told(1, fdb))
	})
}

// reset makes it forget what there was.
func (m *kernelMonitor) reset() {
	m.t.Helper()
	m.caughtUp()
	for i, p := range m.monitors {
		m.from[i] = len(p.Log())
	}
}

// lines is what has changed of flanneld's since the last reset.
func (m *kernelMonitor) lines() []string {
	m.t.Helper()
	m.caughtUp()
	var all []string
	for i, p := range m.monitors {
		for line := range strings.Lines(p.Log()[m.from[i]:]) {
			if ofFlanneld.MatchString(line) {
				all = append(all, strings.TrimSpace(line))
			}
		}
	}
	return all
}

// still checks that nothing has changed.
func (m *kernelMonitor) still(what string) {
	m.t.Helper()
	if all := m.lines(); len(all) > 0 {
		m.t.Errorf("%s: this moved in the kernel of %v:\n%s", what, m.h, strings.Join(all, "\n"))
	}
}

// The monitor is of use only if it sees what moves.
func TestKernelMonitor(t *testing.T) {
	c, s := newCluster(t)
	m := monitorKernel(t, c.Node("h1", s))
	for _, test := range []struct{ script, want string }{
		{"ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dev eth0 dstport 8472 nolearning", "flannel.1: "},
		{"ip link set flannel.1 up", "state UNKNOWN"},
		{"ip link set flannel.1 mtu 1400", "mtu 1400"},
		{"ip route add 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink proto 102", "10.1.2.0/24 via 10.1.2.0 dev flannel.1"},
		{"ip route del 10.1.2.0/24", "Deleted 10.1.2.0/24"},
		{"ip neigh add 10.1.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent", "10.1.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT"},
		{"bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 172.31.0.2", "02:00:00:00:00:02 dev flannel.1 dst 172.31.0.2"},
		{"bridge fdb del 02:00:00:00:00:02 dev flannel.1", "Deleted 02:00:00:00:00:02 dev flannel.1"},
		{"ip nexthop add id 5 via 172.30.0.1 dev eth0 proto 102", "id 5 via 172.30.0.1"},
		{"ip route add 10.1.3.0/24 nhid 5 proto 102", "10.1.3.0/24 nhid 5 via 172.30.0.1"},
		{"ip nexthop del id 5", "Deleted id 5"},
		{"ip link del flannel.1", "Deleted "},
	} {
		m.reset()
		sh(m.h, test.script)
		if all := strings.Join(m.lines(), "\n"); !strings.Contains(all, test.want) {
			t.Errorf("%s: there is no %q in\n%s", test.script, test.want, all)
		}
	}
	m.reset()
	sh(m.h, "ip route add 192.0.2.0/24 via 172.30.0.1; ip link add vx0 type vxlan id 7 dev eth0 dstport 4789")
	m.still("what is not flanneld's")
}

// stillPair is two hosts with a container each, and with all that moves being
// watched.
type stillPair struct {
	t          *testing.T
	c          *cluster.Cluster
	segment    *lab.Segment
	hosts      [2]*cluster.Node // with the subnets 10.1.1.0/24 and 10.1.2.0/24
	containers [2]*lab.Container
	monitors   [2]*kernelMonitor
	leases     map[string]cluster.Lease // as the daemons have written them
	claims     [2]int                   // that each daemon's log tells of
}

func newStillPair(t *testing.T, backend string) *stillPair {
	t.Helper()
	needTUN(t, backend)
	c, s := newCluster(t)
	c.SetConfig(configOf(backend))
	p := &stillPair{t: t, c: c, segment: s}
	for i := range p.hosts {
		p.hosts[i], p.containers[i] = join(c, s, i+1)
	}
	p.leases = c.Leases()
	p.reach()
	for i, h := range p.hosts {
		p.monitors[i] = monitorKernel(t, h)
	}
	return p
}

func (p *stillPair) reach() {
	p.t.Helper()
	a, b := p.containers[0], p.containers[1]
	reach(p.t, a, b, b.Addr(), a.Addr(), p.hosts[0].Env().MTU)
	reach(p.t, b, a, a.Addr(), b.Addr(), p.hosts[1].Env().MTU)
}

func claimed(n int) string {
	return fmt.Sprintf("The lease of 10.1.%d.0/24 was gone from the store; claimed it again\n", n)
}

// awaitClaimed waits until the leases of the hosts with these subnets have been
// claimed again, and both are what they were.
func (p *stillPair) awaitClaimed(within time.Duration, subnets ...int) {
	p.t.Helper()
	lab.Eventually(p.t, within, "the leases are claimed again", func() error {
		for _, n := range subnets {
			if got := strings.Count(p.hosts[n-1].Daemon.Log(), claimed(n)); got != p.claims[n-1]+1 {
				return fmt.Errorf("%v has claimed its lease %d times, after %d before", p.hosts[n-1], got, p.claims[n-1])
			}
		}
		return p.check()
	})
	for _, n := range subnets {
		p.claims[n-1]++
	}
}

// check compares the leases with those the hosts have had from the start.
func (p *stillPair) check() error {
	now := p.c.Leases()
	for key, l := range p.leases {
		if now[key].Value != l.Value || now[key].TTL < 86390 {
			return fmt.Errorf("the lease %s is %+v, and was %+v", key, now[key], l)
		}
	}
	if len(now) != len(p.leases) {
		return fmt.Errorf("the leases are %v", now)
	}
	return nil
}

// undisturbed does something to the leases of the hosts with these subnets.
// They are claimed again, no echo between the containers is lost, and nothing
// moves in either kernel.
func (p *stillPair) undisturbed(what string, do func(), within time.Duration, subnets ...int) {
	p.t.Helper()
	for _, m := range p.monitors {
		m.reset()
	}
	a, b := p.containers[0], p.containers[1]
	ctx, stop := context.WithCancel(p.t.Context())
	defer stop()
	type result struct {
		stats lab.EchoStats
		err   error
	}
	results := make(chan result, 1)
	go func() {
		stats, err := a.Ping(b.Addr(), lab.Echo{Count: 1 << 30, Interval: 2 * time.Millisecond, Context: ctx})
		results <- result{stats, err}
	}()
	do()
	p.awaitClaimed(within, subnets...)
	// For longer than peers let a lease linger, as they may be about to act on it.
	if _, err := b.Ping(a.Addr(), lab.Echo{Count: 400, Interval: 2 * time.Millisecond}); err != nil {
		p.t.Errorf("%s: %v", what, err)
	}
	stop()
	if r := <-results; r.err != nil || r.stats.Sent < 100 {
		p.t.Errorf("%s: %v, %v", what, r.stats, r.err)
	}
	if err := p.check(); err != nil {
		p.t.Errorf("%s, a little later: %v", what, err)
	}
	for _, m := range p.monitors {
		m.still(what)
	}
}
