package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// back is the bound for a lease that is to be back in etcd after etcd itself has
// been away, or has been out of reach: TCP tries again after a time that doubles.
const back = 10 * time.Second

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

// ofFlanneld is what there is in lines about devices and entries of flanneld's.
var ofFlanneld = regexp.MustCompile(`\bflannel[.\d]|\bproto 102\b`)

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

// leaseBackends are the backends that tests of leases go through.
var leaseBackends = []string{`{"Type": "vxlan"}`, `{"Type": "host-gw"}`, `{"Type": "udp"}`}

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
			}, back, 1, 2)
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
				p.awaitClaimed(back, 1)
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

// A reservation stays one whatever happens to it, and what an operator makes a
// lease of is one.
func TestReservation(t *testing.T) {
	for _, backend := range leaseBackends {
		t.Run(backend, func(t *testing.T) {
			needTUN(t, backend)
			c, s := newCluster(t)
			c.SetConfig(configOf(backend))
			h := c.Node("h1", s)
			// As an operator writes it, who knows nothing of VTEPs.
			bare := fmt.Sprintf(`{"PublicIP": "%v"}`, h.Addr())
			c.PutLease(fakeKey(1), bare, 0)
			var own string
			reserved := func(what string) {
				t.Helper()
				lab.Eventually(t, within, what, func() error {
					now := leaseAt(c, 1)
					if own == "" {
						own = now.Value
					}
					if len(c.Leases()) != 1 || now.Value != own || now.Value == bare || now.TTL != 0 {
						return fmt.Errorf("the leases are %v", c.Leases())
					}
					return nil
				})
			}
			// An operator who writes a lease too often is taken for another host, so
			// each of his doings meets a flanneld that has not seen one yet.
			start := func() {
				t.Helper()
				h.Start()
				h.AwaitReady()
			}
			stop := func() {
				t.Helper()
				if log := h.Daemon.Log(); strings.Contains(log, "changing hands") {
					t.Errorf("the operator is taken for another host:\n%s", log)
				}
				h.Stop()
			}
			start()
			reserved("taken over at the start")
			for _, how := range stops {
				how.stop(h)
				start()
				reserved(how.name + " and started")
			}
			values := []string{own}
			if typeOf(backend) != "udp" { // where there is no more to say
				values = append(values, bare)
			}
			for _, value := range values {
				stop()
				start()
				c.DeleteLease(fakeKey(1))
				c.PutLease(fakeKey(1), value, 0)
				reserved("deleted and written again at once")
				c.DeleteLease(fakeKey(1))
				lab.Eventually(t, within, "claimed again", func() error {
					if _, there := c.Leases()[fakeKey(1)]; !there {
						return errors.New("it is not there")
					}
					return nil
				})
				c.PutLease(fakeKey(1), value, 0)
				reserved("deleted and written again")
			}

			stop()
			start()
			c.PutLease(fakeKey(1), own, 4*time.Second)
			awaitRenewed(t, c, 1, leaseAt(c, 1))
			c.PutLease(fakeKey(1), own, 0)
			reserved("a lease, renewed, and a reservation again")

			stop()
			start()
			c.PutLease(fakeKey(1), own, 3*time.Second)
			c.PutLease(fakeKey(2), `{"PublicIP":"172.30.0.99"}`, 3*time.Second) // which nobody renews
			c.PutLease(fakeKey(1), own, 0)
			written := leaseAt(c, 1)
			lab.Eventually(t, 10*time.Second, "the time the lease would have had is over", func() error {
				if _, there := c.Leases()[fakeKey(2)]; there {
					return errors.New("it is not")
				}
				return nil
			})
			reserved("a lease, and at once a reservation again")
			if now := leaseAt(c, 1); now.CreatedIndex != written.CreatedIndex {
				t.Errorf("the reservation was gone: it is %+v and was %+v", now, written)
			}
			stop()
			start()
			reserved("and started")
		})
	}
}
