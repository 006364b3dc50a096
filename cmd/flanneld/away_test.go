package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

const (
	waits   = "Waiting for the store: "
	worksOn = "The store works again, after "
	settled = 5 * time.Second // the bound for everything to be as etcd says, once it is back
)

// newSegment is a lab with a segment, for an etcd that is not newCluster's.
func newSegment(t *testing.T) (*lab.Lab, *lab.Segment) {
	t.Helper()
	if err := lab.Tools("ip", "bridge", "iptables", "ss"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	return l, l.Segment("a", segmentA)
}

// passed waits until so much time has gone by, which is for what must not
// happen meanwhile.
func passed(t *testing.T, since time.Time, d time.Duration) {
	t.Helper()
	lab.Eventually(t, d+time.Second, "time to pass", func() error {
		if p := time.Since(since); p < d {
			return fmt.Errorf("it is %v", p)
		}
		return nil
	})
}

// A watched daemon is one whose log and processor time are looked at from some
// moment on.
type watched struct {
	h     *cluster.Node
	mark  int
	began time.Time
	used  time.Duration
}

func watch(t *testing.T, h *cluster.Node) watched {
	t.Helper()
	return watched{h, len(h.Daemon.Log()), time.Now(), cpuTime(t, h)}
}

// cpuTime is what the daemon has used of processors: utime and stime, fields 14
// and 15 of proc_pid_stat(5), in ticks of 10 ms.
func cpuTime(t *testing.T, h *cluster.Node) (used time.Duration) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.Daemon.Pid))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // from the third on
	for _, f := range fields[14-3 : 16-3] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		used += time.Duration(n) * 10 * time.Millisecond
	}
	return used
}

// idles checks that the daemon has waited and not been busy.
func (w watched) idles(t *testing.T) {
	t.Helper()
	took := time.Since(w.began)
	percent := 100 * float64(cpuTime(t, w.h)-w.used) / float64(took)
	t.Logf("%s has used %.1f %% of a core in %.1f s", w.h.Name, percent, took.Seconds())
	if percent >= 5 {
		t.Errorf("that is no waiting")
	}
}

// said are the lines of the log since then, without time and place, but for those
// about peers, which these tests have come and go.
func (w watched) said() (all []string) {
	for line := range strings.Lines(w.h.Daemon.Log()[w.mark:]) {
		if _, text, ok := strings.Cut(line, "] "); ok {
			line = text
		}
		if !strings.HasPrefix(line, "Peer") {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all
}

func (w watched) count(beginning string) (n int) {
	for _, line := range w.said() {
		if strings.HasPrefix(line, beginning) {
			n++
		}
	}
	return n
}

// says waits until so many lines with this beginning have been said.
func (w watched) says(t *testing.T, beginning string, times int, within time.Duration) {
	t.Helper()
	lab.Eventually(t, within, fmt.Sprintf("%q in the log of %s", beginning, w.h.Name), func() error {
		if n := w.count(beginning); n < times {
			return fmt.Errorf("%d times instead of %d; it says\n%s", n, times, strings.Join(w.said(), "\n"))
		}
		return nil
	})
}

var figure = regexp.MustCompile(`\d+`)

// once checks that each of these beginnings has been said just once, and that
// nothing else has been said twice, be it with another figure in it.
func (w watched) once(t *testing.T, beginnings ...string) {
	t.Helper()
	complain := func(format string, args ...any) {
		t.Helper()
		t.Errorf("the log of %s %s; it says\n%s", w.h.Name, fmt.Sprintf(format, args...), strings.Join(w.said(), "\n"))
	}
	for _, b := range beginnings {
		if n := w.count(b); n != 1 {
			complain("has %q %d times", b, n)
		}
	}
	seen := map[string]bool{}
	for _, line := range w.said() {
		like := figure.ReplaceAllString(line, "#")
		if seen[like] {
			complain("repeats %q", line)
		}
		seen[like] = true
	}
}

// quiet checks that nothing at all has been said.
func (w watched) quiet(t *testing.T) {
	t.Helper()
	if all := w.said(); len(all) > 0 {
		t.Errorf("%s says\n%s", w.h.Name, strings.Join(all, "\n"))
	}
}

// A pair is two hosts in a vxlan network with other leases, whose containers
// ping each other all the time. The first host is the one that etcd goes away
// from, and what its kernel has is compared with the leases.
type pair struct {
	*auditor
	h2     *cluster.Node
	c1, c2 *lab.Container
	ping   *pinger
}

// newPair makes it. The daemon of the first host is told of etcd by prepare, by
// the host's Endpoints and the flags that prepare returns; that of the second has
// the others.
func newPair(t *testing.T, c *cluster.Cluster, s *lab.Segment, prepare func(h *cluster.Node) []string, others ...string) *pair {
	t.Helper()
	h1 := c.Node("h1", s)
	reserve(c, h1, 1)
	p := &pair{auditor: audit(c, h1)}
	p.configure(configOf(`{"Type": "vxlan"}`))
	putFakes(c, "vxlan", fakes())
	var args []string
	if prepare != nil {
		args = prepare(h1)
	}
	p.ready(t, "the start", args...)
	p.c1 = h1.AddContainer("c")
	p.h2, p.c2 = join(c, s, 2, others...)
	p.await(t, within, "the second host")
	reach(t, p.c1, p.c2, p.c2.Addr(), p.c1.Addr(), 1450)
	for _, h := range []*cluster.Node{h1, p.h2} { // the last that each says at its start
		c.Must(h.Daemon.WaitLog("iptables: put right: ", 20*time.Second))
	}
	p.ping = startPinger(t, p.c1, p.c2.Addr())
	return p
}

// change changes leases in etcd: one is new, one is gone, one has another MAC.
func (p *pair) change() {
	p.c.Helper()
	fake{far + "21", 21}.put(p.c, "vxlan", 21)
	p.c.DeleteLease(fakeKey(12))
	fake{near + "111", 911}.put(p.c, "vxlan", 11)
}

// lossless ends the ping, of which nothing may be lost.
func (p *pair) lossless(t *testing.T) {
	t.Helper()
	p.ping.stop()
	for _, err := range <-p.ping.failed {
		t.Error(err)
	}
	t.Logf("%d echoes", p.ping.sent.Load())
}

// An outage is one way for etcd to be away from the first host.
type outage struct {
	begin, end func()
	// change is what becomes of the leases meanwhile.
	change func()
	// begins and ends are the lines that it is told by.
	begins, ends string
	// notice is how long it may take until it is said.
	notice time.Duration
	// echoes is how many more are sent before it ends.
	echoes int64
	// meanwhile is checked before it ends.
	meanwhile func()
}

// goes lets etcd go away, and come back.
func (p *pair) goes(t *testing.T, o outage) watched {
	t.Helper()
	key := fakeKey(1)
	own := p.c.Leases()[key]
	w := watch(t, p.h)
	o.begin()
	if o.change != nil {
		o.change()
	}
	if o.begins != "" {
		w.says(t, o.begins, 1, o.notice)
	}
	p.ping.await(t, "the beginning", o.echoes)
	if o.meanwhile != nil {
		o.meanwhile()
	}
	w.idles(t)
	o.end()
	ended := time.Now()
	p.await(t, settled, "the kernel, once etcd is back")
	t.Logf("the kernel was as etcd says %.1f s after the end", time.Since(ended).Seconds())
	if o.begins != "" {
		w.says(t, o.ends, 1, settled)
		w.once(t, o.begins, o.ends)
	} else {
		w.once(t)
	}
	if now := p.c.Leases()[key]; now.Index != own.Index {
		t.Errorf("the own lease was written: it was %v and is %v", own, now)
	}
	p.lossless(t)
	return w
}

// doorPort is where etcd used to be found on every host.
const doorPort = 4001

// behindDoor makes a host's daemon reach etcd by a door.
func behindDoor(t *testing.T, c *cluster.Cluster, h *cluster.Node) *lab.Door {
	t.Helper()
	d := c.Etcd.Door(h.Host, doorPort)
	t.Cleanup(d.Close)
	h.Endpoints = []string{d.Endpoint()}
	return d
}

// etcd goes away from one host, in each way there is, and comes back. Traffic
// goes on, not one echo is lost; the log says it once, and once that it is over;
// the daemon waits at its ease; and soon the kernel has what was changed.
func TestEtcdAway(t *testing.T) {
	for _, mode := range []struct {
		name string
		mode lab.DoorMode
	}{
		{"refused", lab.DoorClosed},
		{"503", lab.DoorUnavailable},
	} {
		t.Run(mode.name, func(t *testing.T) {
			c, s := newCluster(t)
			var d *lab.Door
			p := newPair(t, c, s, func(h *cluster.Node) []string { d = behindDoor(t, c, h); return nil })
			other, before := watch(t, p.h2), 0
			p.goes(t, outage{
				begin: func() { before = d.Requests(); d.Set(mode.mode) }, end: func() { d.Set(lab.DoorPass) }, change: p.change,
				begins: waits, ends: worksOn, notice: 5 * time.Second, echoes: 1000,
				meanwhile: func() {
					// After the first second there is a request in a second or two,
					// of each of the parts that ask.
					if n := d.Requests() - before; n > 25 {
						t.Errorf("%d requests in a few seconds", n)
					}
				},
			})
			other.quiet(t)
		})
	}

	t.Run("silent", func(t *testing.T) {
		c, s := newCluster(t)
		p := newPair(t, c, s, nil)
		other := watch(t, p.h2)
		end := func() {}
		p.goes(t, outage{
			begin: func() { end = p.h.Silence(c.Etcd.Host().Addr(), 0) }, end: func() { end() }, change: p.change,
			// Nothing says that nobody is there, so it takes a while to find out.
			begins: waits, ends: worksOn, notice: 20 * time.Second, echoes: 200,
		})
		other.quiet(t)
	})

	// So short that the daemon need not notice, but longer than packets wait to
	// be sent again.
	t.Run("silent for seven seconds", func(t *testing.T) {
		c, s := newCluster(t)
		p := newPair(t, c, s, nil)
		end, began := func() {}, time.Now()
		w := p.goes(t, outage{
			begin: func() { began = time.Now(); end = p.h.Silence(c.Etcd.Host().Addr(), 0) }, end: func() { end() }, change: p.change,
			meanwhile: func() { passed(t, began, 7*time.Second) },
		})
		w.says(t, worksOn, w.count(waits), settled)
	})

	// Both daemons lose it, and nobody can change anything meanwhile.
	t.Run("stopped", func(t *testing.T) {
		c, s := newCluster(t)
		p := newPair(t, c, s, nil)
		other := watch(t, p.h2)
		p.goes(t, outage{
			begin: c.Etcd.Stop, end: c.Etcd.Restart,
			begins: waits, ends: worksOn, notice: 5 * time.Second, echoes: 1000,
		})
		other.says(t, worksOn, 1, settled)
		other.once(t, waits, worksOn)
		_, c3 := join(c, s, 3)
		lab.EventuallyPing(t, settled, p.c1, c3.Addr(), lab.Echo{Timeout: 100 * time.Millisecond})
	})
}

// etcd takes two seconds for each answer: the log says that it is slow, once,
// and that it no longer is; nobody speaks of an outage; changes are followed
// all the same.
func TestEtcdSlow(t *testing.T) {
	c, s := newCluster(t)
	var d *lab.Door
	p := newPair(t, c, s, func(h *cluster.Node) []string { d = behindDoor(t, c, h); return nil })
	slow := fmt.Sprintf("etcd at %s answers slowly: ", d.Endpoint())
	fast := fmt.Sprintf("etcd at %s answers in time again", d.Endpoint())
	w := watch(t, p.h)
	p.goes(t, outage{
		begin: func() { d.Set(lab.DoorSlow) }, end: func() { d.Set(lab.DoorPass) }, change: p.change,
		begins: slow, ends: fast, notice: 10 * time.Second, echoes: 200,
		// Of three changes the last comes after three answers, and whatever is
		// asked for before that.
		meanwhile: func() {
			p.await(t, 15*time.Second, "the kernel, while etcd is slow")
			if n := w.count(waits); n > 0 {
				t.Errorf("an outage is said %d times:\n%s", n, strings.Join(w.said(), "\n"))
			}
		},
	})
	// The door cuts off what is being asked when it becomes faster.
	w.says(t, worksOn, w.count(waits), settled)
}

// etcd can be read and not written: changes are followed at once, and as long
// as this host has nothing to write nobody says anything. Then its lease has to
// be renewed: that this does not work is said once, whatever is read meanwhile,
// and it is renewed when that is possible again.
func TestEtcdReadOnly(t *testing.T) {
	c, s := newCluster(t)
	var d *lab.Door
	p := newPair(t, c, s, func(h *cluster.Node) []string { d = behindDoor(t, c, h); return nil })
	w := watch(t, p.h)
	d.Set(lab.DoorReadOnly)
	p.change()
	p.await(t, within+time.Second, "the kernel, while etcd is read-only") // the watch was ended too
	w.quiet(t)

	// Given a time shorter than the margin, it is renewed in a second.
	key := fakeKey(1)
	own := c.Leases()[key]
	c.PutLease(key, own.Value, 50*time.Minute)
	w.says(t, waits, 1, 10*time.Second)
	if !strings.Contains(strings.Join(w.said(), "\n"), "writing ") {
		t.Errorf("it says\n%s", strings.Join(w.said(), "\n"))
	}
	for i := range 3 {
		d.Set(lab.DoorReadOnly) // each time all is listed again
		fake{near + "111", 1000 + i}.put(c, "vxlan", 11)
		p.await(t, settled, "a change meanwhile")
	}
	w.idles(t)
	w.once(t, waits)
	if n := w.count(worksOn); n > 0 {
		t.Errorf("the store is said to work, and cannot be written:\n%s", strings.Join(w.said(), "\n"))
	}
	d.Set(lab.DoorPass)
	lab.Eventually(t, settled, "the lease is renewed", func() error {
		if now := c.Leases()[key]; now.Value != own.Value || now.TTL < 23*60*60 {
			return fmt.Errorf("it is %v", now)
		}
		return nil
	})
	w.says(t, worksOn, 1, settled)
	w.once(t, waits, worksOn)
	p.await(t, within, "the kernel, at the end")
	p.lossless(t)
}

// The database of etcd is full. Its v2 API goes on all the same, as that keeps
// its data elsewhere: flanneld need not notice.
func TestEtcdFull(t *testing.T) {
	l, s := newSegment(t)
	c := cluster.On(l, l.Host("etcd", s).Etcd("--quota-backend-bytes=1000000"))
	p := newPair(t, c, s, nil)
	w := watch(t, p.h)
	value := base64.StdEncoding.EncodeToString(make([]byte, 200<<10))
	lab.Eventually(t, 10*time.Second, "the alarm", func() error {
		_, err := c.Etcd.Ask(http.MethodPost, "/v3/kv/put", map[string]string{"key": "eA==", "value": value})
		if err == nil {
			return errors.New("there is still room")
		} else if !strings.Contains(err.Error(), "database space exceeded") {
			t.Fatal(err)
		}
		return nil
	})
	var alarms struct{ Alarms []struct{ Alarm string } }
	body, err := c.Etcd.Ask(http.MethodPost, "/v3/maintenance/alarm", map[string]string{"action": "GET"})
	if err == nil {
		err = json.Unmarshal(body, &alarms)
	}
	if err != nil || len(alarms.Alarms) != 1 || alarms.Alarms[0].Alarm != "NOSPACE" {
		t.Fatalf("the alarms are %s, %v", body, err)
	}
	p.change()
	p.await(t, within, "the kernel, with etcd full")
	c.DeleteLease(fakeKey(13))
	p.await(t, within, "the kernel, with etcd still full")
	w.quiet(t)
	// Leases can be written too: a new host gets one.
	_, c3 := join(c, s, 3)
	lab.EventuallyPing(t, settled, p.c1, c3.Addr(), lab.Echo{Timeout: 100 * time.Millisecond})
	p.lossless(t)
}

// etcd wants certificates. The host's has expired, and is renewed on disk; then
// etcd's is by another CA, whose file is replaced on disk. Both times flanneld
// waits, and goes on without being started again.
func TestEtcdCertificates(t *testing.T) {
	newCA := func(l *lab.Lab, name string) *lab.CA {
		t.Helper()
		ca, err := lab.NewCA(name)
		l.Must(err)
		return ca
	}
	start := func(t *testing.T) (p *pair, ca *lab.CA, file func(string) string, give func(until time.Time)) {
		t.Helper()
		l, s := newSegment(t)
		ca = newCA(l, "ca")
		c := cluster.On(l, l.Host("etcd", s).EtcdTLS(ca))
		issue := func(dir string, until time.Time) []string {
			t.Helper()
			cert, err := ca.Issue("host", until)
			l.Must(err)
			l.Must(lab.Replace(filepath.Join(dir, "client-key.pem"), cert.Key))
			l.Must(lab.Replace(filepath.Join(dir, "client.pem"), cert.Cert))
			l.Must(lab.Replace(filepath.Join(dir, "ca.pem"), ca.PEM))
			return []string{"--etcd-cafile=" + filepath.Join(dir, "ca.pem"), "--etcd-certfile=" + filepath.Join(dir, "client.pem"), "--etcd-keyfile=" + filepath.Join(dir, "client-key.pem")}
		}
		dir := t.TempDir()
		p = newPair(t, c, s, func(h *cluster.Node) []string { return issue(h.Dir, time.Now().Add(time.Hour)) }, issue(dir, time.Now().Add(time.Hour))...)
		return p, ca, func(name string) string { return filepath.Join(p.h.Dir, name) }, func(until time.Time) { issue(p.h.Dir, until) }
	}

	t.Run("expired", func(t *testing.T) {
		p, _, _, give := start(t)
		p.goes(t, outage{
			// It counts for connections that are made from then on.
			begin:  func() { give(time.Now().Add(-time.Minute)); p.c.Etcd.Restart() },
			end:    func() { give(time.Now().Add(time.Hour)) },
			change: p.change,
			begins: waits, ends: worksOn, notice: 10 * time.Second, echoes: 1000,
		})
	})
	t.Run("CA replaced", func(t *testing.T) {
		p, _, file, _ := start(t)
		other := newCA(p.c.Lab, "another")
		p.c.Etcd.Certify(other)
		p.goes(t, outage{
			begin:  p.c.Etcd.Restart,
			end:    func() { p.c.Must(lab.Replace(file("ca.pem"), other.PEM)) },
			change: p.change,
			begins: waits, ends: worksOn, notice: 10 * time.Second, echoes: 1000,
		})
	})
}

// etcd wants a password, and no longer takes the one that flanneld has; then it
// does again.
func TestEtcdPassword(t *testing.T) {
	c, s := newCluster(t)
	passwords(c)
	p := newPair(t, c, s, func(*cluster.Node) []string { return login("host1") }, login("host2")...)
	other := watch(t, p.h2)
	p.goes(t, outage{
		begin: func() { c.Etcd.SetUser("host1", "wrong", c.Prefix) }, end: func() { c.Etcd.SetUser("host1", "right", c.Prefix) }, change: p.change,
		begins: waits, ends: worksOn, notice: 10 * time.Second, echoes: 1000,
	})
	other.quiet(t)
}

// passwords makes etcd demand one of each of two hosts.
func passwords(c *cluster.Cluster) {
	c.Helper()
	c.Etcd.EnableAuth()
	for _, name := range []string{"host1", "host2"} {
		c.Etcd.SetUser(name, "right", c.Prefix)
	}
}

func login(name string) []string { return []string{"--etcd-username=" + name, "--etcd-password=right"} }

// etcd is away when flanneld starts, in each way: it waits, says so once, and
// starts by itself when etcd is there.
func TestEtcdAwayAtStart(t *testing.T) {
	for _, test := range []struct {
		name, why string
		begin     func(c *cluster.Cluster, d *lab.Door)
		end       func(c *cluster.Cluster, d *lab.Door)
	}{
		{"refused", "connection refused",
			func(_ *cluster.Cluster, d *lab.Door) { d.Set(lab.DoorClosed) },
			func(_ *cluster.Cluster, d *lab.Door) { d.Set(lab.DoorPass) }},
		{"503", "",
			func(_ *cluster.Cluster, d *lab.Door) { d.Set(lab.DoorUnavailable) },
			func(_ *cluster.Cluster, d *lab.Door) { d.Set(lab.DoorPass) }},
		{"wrong password", "credentials",
			func(c *cluster.Cluster, _ *lab.Door) { passwords(c); c.Etcd.SetUser("host1", "wrong", c.Prefix) },
			func(c *cluster.Cluster, _ *lab.Door) { c.Etcd.SetUser("host1", "right", c.Prefix) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, s := newCluster(t)
			h := c.Node("h1", s)
			reserve(c, h, 1)
			a := audit(c, h)
			a.configure(configOf(`{"Type": "vxlan"}`))
			putFakes(c, "vxlan", fakes())
			d := behindDoor(t, c, h)
			test.begin(c, d)
			h.Start(login("host1")...)
			w := watched{h: h, began: time.Now()}
			w.says(t, waits, 1, 10*time.Second)
			if !strings.Contains(h.Daemon.Log(), test.why) {
				t.Errorf("it does not say %q:\n%s", test.why, h.Daemon.Log())
			}
			// Some tries later it still waits.
			passed(t, time.Now(), 4*time.Second)
			w.idles(t)
			if slices.Contains(h.Daemon.Notified(), "READY=1") {
				t.Error("READY=1 without etcd")
			}
			test.end(c, d)
			if err := h.Daemon.WaitReady(settled + within); err != nil {
				t.Fatal(err)
			}
			if err := a.check(); err != nil {
				t.Errorf("at READY: %v", err)
			}
			w.says(t, worksOn, 1, within)
			w.once(t, waits, worksOn)
		})
	}
}

// While etcd is away from one host, so much is written that etcd no longer
// knows it all, among it a peer's new MAC. What the host then has is exact.
func TestEtcdHistoryExpired(t *testing.T) {
	c, s := newCluster(t)
	var d *lab.Door
	p := newPair(t, c, s, func(h *cluster.Node) []string { d = behindDoor(t, c, h); return nil })
	p.goes(t, outage{
		begin: func() { d.Set(lab.DoorClosed) }, end: func() { d.Set(lab.DoorPass) },
		change: func() {
			p.change()
			var many []cluster.Lease
			for i := range 1100 { // etcd knows the last 1000
				n := 30 + i%3
				f := fake{far + strconv.Itoa(n), i}
				many = append(many, cluster.Lease{Key: fakeKey(n), Value: f.value(c, "vxlan"), TTL: 3600})
			}
			c.Writer(4).Write(many...)
			// The three that are left at the end do not share a MAC.
			for n := 30; n < 33; n++ {
				fake{far + strconv.Itoa(n), 2000 + n}.put(c, "vxlan", n)
			}
		},
		begins: waits, ends: worksOn, notice: 5 * time.Second, echoes: 10,
	})
}
