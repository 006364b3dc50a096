package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// These in the environment make TestRandom do again what it did before, or more.
const (
	seedVar  = "FLANNELD_TEST_SEED"  // of the choices; without it each run has its own
	stepsVar = "FLANNELD_TEST_STEPS" // for each backend
	steps    = 150
)

// returning is the bound where etcd was away: it is asked again after a pause
// that grows to some seconds while it is.
const returning = 5 * time.Second

// Whatever happens in whatever order, to leases, kernel, daemon and etcd: after
// each step, while flanneld runs, kernel and leases agree within healing; and at
// READY after a start at once.
func TestRandom(t *testing.T) {
	seed, n := rand.Uint64N(1<<32), steps
	for name, set := range map[string]func(string) (err error){
		seedVar:  func(s string) (err error) { seed, err = strconv.ParseUint(s, 10, 64); return err },
		stepsVar: func(s string) (err error) { n, err = strconv.Atoi(s); return err },
	} {
		if s := os.Getenv(name); s != "" {
			if err := set(s); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	t.Logf("%s=%d %s=%d", seedVar, seed, stepsVar, n)
	for i, backend := range []string{`{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`} {
		t.Run(backend, func(t *testing.T) {
			c, s := newCluster(t)
			h := c.Node("h1", s)
			reserve(c, h, 1)
			w := &walk{
				Rand: rand.New(rand.NewPCG(seed, uint64(i))), t: t, c: c, typ: typeOf(backend),
				auditor: audit(c, h), peers: map[int]fake{}, running: true,
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("%s=%d: the steps were\n%s", seedVar, seed, strings.Join(w.taken, "\n"))
				}
			})
			w.configure(configOf(backend))
			for range 20 {
				w.change()
			}
			w.ready(t, "the first start")
			for range n {
				w.step()
			}
			w.recover()
		})
	}
}

// walk is a random sequence of steps on one host.
type walk struct {
	*rand.Rand
	*auditor
	t   *testing.T
	c   *cluster.Cluster
	typ string // of the backend

	peers   map[int]fake // by the number of their subnet
	taken   []string
	running bool     // flanneld is
	paused  bool     // etcd is
	away    bool     // etcd was, so that flanneld has yet to ask it again
	leases  []string // what the kernel has to hold while etcd is paused; nil if that depends on etcd
}

// note records a step.
func (w *walk) note(format string, args ...any) {
	w.taken = append(w.taken, fmt.Sprintf("%3d "+format, append([]any{len(w.taken)}, args...)...))
}

// step takes a step and checks what has to hold then.
func (w *walk) step() {
	w.t.Helper()
	switch p := w.IntN(100); {
	case p < 12:
		w.daemon()
	case p < 18:
		w.etcd()
	case p < 21 && !w.paused:
		w.outage()
	case p < 60 && !w.paused: // a write would wait for etcd
		w.change()
	default:
		w.harm()
	}
	w.verify()
}

// judged reports whether flanneld runs and knows the leases.
func (w *walk) judged() bool { return w.running && (!w.paused || w.leases != nil) }

// verify waits for kernel and leases to agree, where they have to.
func (w *walk) verify() {
	w.t.Helper()
	if !w.judged() {
		return
	}
	check := w.check
	if w.paused {
		check = func() error { return w.compare(w.leases) }
	}
	bound := healing
	if w.away {
		w.away, bound = false, returning
	}
	lab.Eventually(w.t, bound, "after "+w.taken[len(w.taken)-1], check)
}

// recover has all parts running at the end.
func (w *walk) recover() {
	w.t.Helper()
	if w.paused {
		w.etcd()
	}
	if !w.running {
		w.daemon()
	}
	w.verify()
}

// daemon stops, kills or starts flanneld.
func (w *walk) daemon() {
	w.t.Helper()
	switch {
	case !w.running:
		w.note("start")
		w.running = true
		if w.paused {
			w.h.Start() // it waits for etcd
			w.c.Must(w.h.Daemon.WaitLog("starts", 20*time.Second))
		} else {
			w.ready(w.t, w.taken[len(w.taken)-1])
		}
		return
	case w.IntN(2) == 0:
		w.note("stop")
		w.h.Stop()
	default:
		w.note("kill")
		w.h.Daemon.Kill()
	}
	w.running, w.leases = false, nil
}

// etcd pauses etcd, or lets it go on.
func (w *walk) etcd() {
	w.t.Helper()
	if w.paused {
		w.note("etcd continues")
		w.c.Etcd.Continue()
		w.paused, w.leases, w.away = false, nil, true
		if w.running {
			w.h.AwaitReady() // if it was started meanwhile
		}
		return
	}
	w.note("etcd pauses")
	if w.running {
		var err error
		w.leases, err = w.wanted(w.c.Leases())
		w.c.Must(err)
	}
	w.c.Etcd.Pause()
	w.paused = true
}

// outage restarts etcd and changes something before flanneld is back at it, so
// that no watch tells of that.
func (w *walk) outage() {
	w.t.Helper()
	w.note("etcd restarts")
	w.c.Etcd.Restart()
	w.change()
	w.away = true
}

// change changes leases.
func (w *walk) change() {
	w.t.Helper()
	switch p := w.IntN(20); {
	case p == 0:
		w.burst()
	case p == 1:
		w.note("the own lease goes")
		key := strings.ReplaceAll(w.h.Env().Subnet().String(), "/", "-")
		if _, there := w.c.Leases()[key]; there {
			w.c.DeleteLease(key)
		}
	case p == 2:
		n := 200 + w.IntN(5)
		w.note("a lease that is of no use: %d", n)
		w.c.PutLease(fakeKey(n), pick(w, []string{"{", `{"PublicIP":"172.31.0.9"}`, `{"PublicIP":"nobody","BackendType":"vxlan"}`, `{"PublicIP":"172.31.0.9","BackendType":"ipsec"}`}), time.Hour)
	case p < 5 && len(w.peers) >= 2:
		a, b := w.one(), w.one()
		w.swap(a, b, p == 3)
	case p < 9 && len(w.peers) > 0:
		n := w.one()
		w.note("peer %d leaves", n)
		delete(w.peers, n)
		w.c.DeleteLease(fakeKey(n))
	default:
		n, f := w.next()
		w.note("peer %d is %v", n, f)
		w.peers[n] = f
		f.put(w.c, w.typ, n)
	}
}

// swap exchanges the addresses or the MACs of two peers.
func (w *walk) swap(a, b int, macs bool) {
	w.t.Helper()
	f, g := w.peers[a], w.peers[b]
	if macs {
		f.mac, g.mac = g.mac, f.mac
	} else {
		f.ip, g.ip = g.ip, f.ip
	}
	w.note("peers %d and %d become %v and %v", a, b, f, g)
	if a != b {
		w.peers[a], w.peers[b] = f, g
		f.put(w.c, w.typ, a)
		g.put(w.c, w.typ, b)
	}
}

// burst makes a hundred changes, several at a time.
func (w *walk) burst() {
	w.t.Helper()
	var changes [4][]func()
	for range 100 {
		n, f := w.next()
		lane := &changes[n%len(changes)] // those of one subnet one after the other
		if _, there := w.peers[n]; there && w.IntN(3) == 0 {
			delete(w.peers, n)
			*lane = append(*lane, func() { w.c.DeleteLease(fakeKey(n)) })
		} else {
			w.peers[n] = f
			*lane = append(*lane, func() { f.put(w.c, w.typ, n) })
		}
	}
	w.note("a burst, after which the peers are %v", w.peers)
	var wg sync.WaitGroup
	for _, lane := range changes {
		wg.Go(func() {
			for _, f := range lane {
				f()
			}
		})
	}
	wg.Wait()
}

// one is a peer that there is.
func (w *walk) one() int {
	var all []int
	for n := range w.peers {
		all = append(all, n)
	}
	slices.Sort(all)
	return pick(w, all)
}

// next is a peer that is new, or that changes its MAC, its address or both. No
// two hosts have one MAC, but hosts may share an address, and one host may have
// two subnets.
func (w *walk) next() (int, fake) {
	n := 100 + w.IntN(60)
	f, there := w.peers[n]
	what := w.IntN(3)
	if !there || what != 0 {
		f.ip = fmt.Sprint(pick(w, []string{near, far}), 100+w.IntN(50))
	}
	if !there || what != 1 {
		var used []int
		for m, other := range w.peers {
			if m != n {
				used = append(used, other.mac)
			}
		}
		for f.mac = 1 + w.IntN(100); slices.Contains(used, f.mac); f.mac = 1 + w.IntN(100) {
		}
	}
	return n, f
}

func pick[T any](w *walk, all []T) T { return all[w.IntN(len(all))] }

// harm does something to the kernel's state by hand. Where flanneld is not
// running, or waits, there may be nothing to do it to.
func (w *walk) harm() {
	w.t.Helper()
	script := w.script()
	_, err := w.h.Exec("sh", "-c", script)
	result := "done"
	if err != nil {
		result = "in vain"
	}
	w.note("%s: %s", script, result)
}

func (w *walk) script() string {
	have, err := w.dump()
	w.c.Must(err)
	slices.Sort(have)
	var routes, neighs, fdb []string
	for _, line := range have {
		what, rest, _ := strings.Cut(line, " ")
		switch {
		case what == "route" && marked.MatchString(line) && !strings.Contains(line, " table "):
			routes = append(routes, rest)
		case what == "neigh" && strings.Contains(line, " dev flannel.1 "):
			neighs = append(neighs, rest)
		case what == "fdb" && strings.Contains(line, " dev flannel.1 "):
			fdb = append(fdb, strings.Fields(rest)[0])
		}
	}
	if w.typ != "vxlan" {
		neighs, fdb = nil, nil
	}
	via := "via " + near + strconv.Itoa(100+w.IntN(50)) + " dev eth0"
	if w.typ == "vxlan" && w.IntN(2) == 0 {
		via = fmt.Sprintf("via 10.1.%d.0 dev flannel.1 onlink", 100+w.IntN(60))
	}
	dst := fmt.Sprintf("10.1.%d.0/24", 100+w.IntN(120))
	mac := fmt.Sprintf("02:00:00:00:00:%02x", 1+w.IntN(120))
	ip := far + strconv.Itoa(100+w.IntN(50))
	all := []string{
		flushRoutes,
		"ip nexthop flush proto 102",
		fmt.Sprintf("ip route add %s %s proto 102", dst, via),
		fmt.Sprintf("ip route add %s %s metric %d proto 102", dst, via, 1+w.IntN(3)),
		fmt.Sprintf("ip route add blackhole %s proto 102", dst),
		fmt.Sprintf("ip route append %s %s proto 102", dst, via),
		"ip link set eth0 down; ip link set eth0 up; ip route add default via 172.30.0.1",
	}
	if len(routes) > 0 {
		words := strings.Fields(pick(w, routes))
		subnet, del := words[0], "ip route del "
		if words[0] == "blackhole" || words[0] == "unreachable" {
			subnet, del = words[1], del+words[0]+" "
		}
		del += subnet + " proto 102"
		if i := slices.Index(words, "metric"); i > 0 {
			del += " metric " + words[i+1]
		}
		all = append(all,
			del,
			del,
			fmt.Sprintf("ip route replace %s %s proto 102", subnet, via),
			fmt.Sprintf("ip route prepend %s %s proto 102", subnet, via),
			fmt.Sprintf("ip route replace blackhole %s proto 102", subnet),
			fmt.Sprintf("ip route replace unreachable %s proto 102", subnet),
		)
		if w.judged() { // or the peer could leave before flanneld sees it, and then it is not in flanneld's way
			all = append(all,
				fmt.Sprintf("ip route replace %s %s", subnet, via),
				fmt.Sprintf("ip route replace blackhole %s", subnet),
			)
		}
	}
	if w.typ == "vxlan" {
		all = append(all,
			"ip neigh flush dev flannel.1 nud permanent",
			"bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1; done",
			"ip link del flannel.1",
			"ip link set flannel.1 down",
			"ip link set flannel.1 down; ip link set flannel.1 up",
			"ip link set flannel.1 mtu 1300",
			"ip link set flannel.1 address "+strings.Replace(mac, "00:00:00:00", "00:00:00:01", 1), // none that a peer may have
			"ip addr flush dev flannel.1",
			"ip addr add 10.1.1.1/24 dev flannel.1",
			"ip link add flannel.9 type vxlan id 9 dev eth0 dstport 8472 nolearning",
			fmt.Sprintf("ip neigh replace %s lladdr %s dev flannel.1 nud permanent", strings.TrimSuffix(dst, "/24"), mac),
			fmt.Sprintf("bridge fdb replace %s dev flannel.1 dst %s", mac, ip),
			fmt.Sprintf("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst %s; bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst %s9", ip, far),
		)
	}
	if len(neighs) > 0 {
		words := strings.Fields(pick(w, neighs)) // as in "10.1.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT"
		n := words[0]
		all = append(all,
			fmt.Sprintf("ip neigh replace %s lladdr %s dev flannel.1 nud reachable", n, words[4]),
			fmt.Sprintf("ip neigh del %s dev flannel.1", n),
			fmt.Sprintf("ip neigh replace %s lladdr %s dev flannel.1 nud permanent", n, mac),
			fmt.Sprintf("ip neigh replace %s lladdr %s dev flannel.1 nud reachable", n, mac),
		)
	}
	if len(fdb) > 0 {
		f := pick(w, fdb)
		all = append(all,
			fmt.Sprintf("bridge fdb del %s dev flannel.1", f),
			fmt.Sprintf("bridge fdb replace %s dev flannel.1 dst %s", f, ip),
		)
	}
	return pick(w, all)
}
