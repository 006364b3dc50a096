package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// elsewhere is the bound for what is written to other members than the one that
// a daemon watches, where that one has gone without a word or knows no better.
const elsewhere = 20 * time.Second

// newMembers is newPair on an etcd of three members.
func newMembers(t *testing.T) *pair {
	t.Helper()
	l, s := newSegment(t)
	return newPair(t, cluster.NewMembers(l, s, 3), s, nil)
}

// uses waits until the first host's daemon watches through one member alone, and
// is that member.
func (p *pair) uses(t *testing.T) (member *lab.Etcd) {
	t.Helper()
	lab.Eventually(t, 10*time.Second, "the member that is watched through", func() error {
		text := p.h.Run("ss", "-tnH", "state", "established", "dport", "=", ":2379")
		addrs := map[netip.Addr]bool{}
		for line := range strings.Lines(text) {
			f := strings.Fields(line) // the queues, the local address, the other
			if len(f) < 4 {
				continue
			}
			a, err := netip.ParseAddrPort(f[3])
			if err != nil {
				return err
			}
			addrs[a.Addr()] = true
		}
		for _, e := range p.c.Members {
			if addrs[e.Host().Addr()] && len(addrs) == 1 {
				member = e
				return nil
			}
		}
		return fmt.Errorf("its connections are\n%s", text)
	})
	return member
}

// through makes the test's own requests go to one of these members, once all of
// them know their leader.
func (p *pair) through(members lab.EtcdMembers) {
	p.c.Helper()
	for _, e := range members {
		e.Await()
	}
	p.c.Etcd = members[0]
}

// The leader of three members is killed, or another becomes it in good order:
// changes are followed meanwhile, nothing is lost, and the killed one coming
// back is nothing either.
func TestLeaderChanges(t *testing.T) {
	for _, test := range []struct {
		name string
		used bool // the leader is the member that the daemon watches through
	}{{"the one in use", true}, {"another", false}} {
		t.Run("killed, "+test.name, func(t *testing.T) {
			p := newMembers(t)
			leader := p.uses(t)
			if !test.used {
				leader = p.c.Members.Others(leader)[0]
			}
			p.c.Members.Lead(leader)
			rest := p.c.Members.Others(leader)
			p.through(rest)
			w := p.goes(t, outage{
				begin:     func() { leader.Stop(); p.through(rest) },
				change:    p.change,
				echoes:    200,
				meanwhile: func() { p.await(t, 10*time.Second, "the kernel, with the leader dead") },
				end: func() {
					leader.Restart()
					fake{far + "22", 22}.put(p.c, "vxlan", 22)
				},
			})
			// Until there is a leader again nothing can be read, which may be said.
			w.says(t, worksOn, w.count(waits), settled)
		})
	}
	t.Run("in good order", func(t *testing.T) {
		p := newMembers(t)
		w := p.goes(t, outage{
			begin: func() { // so that each has led
				for _, e := range p.c.Members {
					p.c.Members.Lead(e)
				}
			},
			change:    p.change,
			echoes:    200,
			meanwhile: func() { p.await(t, within, "the kernel, with another leader") },
			end:       func() { p.c.Members.Lead(p.c.Members[0]) },
		})
		w.quiet(t)
	})
}

// The member that a daemon watches through is cut off, from everybody or from
// the other members only, which the daemon cannot see: it stays silent, or
// answers and knows nothing new. What is written to the others reaches the kernel
// all the same, before that member is back.
func TestMemberCutOff(t *testing.T) {
	for _, test := range []struct {
		name string
		cut  func(*lab.Etcd)
	}{
		{"from everybody", (*lab.Etcd).Isolate},
		{"from its peers only", (*lab.Etcd).Partition},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newMembers(t)
			member := p.uses(t)
			rest := p.c.Members.Others(member)
			p.through(rest)
			w := p.goes(t, outage{
				begin:     func() { test.cut(member); p.through(rest) },
				change:    p.change,
				meanwhile: func() { p.await(t, elsewhere, "the kernel, with the member cut off") },
				end:       func() { member.Mend(); member.Await() },
			})
			w.says(t, worksOn, w.count(waits), settled)
		})
	}
}

// Two of three members are lost, and come back. Traffic goes on; the log says it
// once, and once that it is over, also where the daemon's own member is the one
// that is left, and answers as if nothing were wrong.
func TestMajorityLost(t *testing.T) {
	for _, test := range []struct {
		name string
		used bool
	}{{"with the one in use", true}, {"without the one in use", false}} {
		t.Run(test.name, func(t *testing.T) {
			p := newMembers(t)
			used := p.uses(t)
			lost := p.c.Members.Others(used)
			o := outage{
				end: func() {
					lost.Restart()
					p.through(p.c.Members)
					p.change() // which nobody can while there is no majority
				},
				// The watch goes on at the member that is left, or moves there, so
				// that something else has to tell. Then, asked for what a majority has
				// to agree on, a member alone takes its time to say that there is none.
				begins: waits, ends: worksOn, notice: 2 * elsewhere, echoes: 200,
			}
			if test.used {
				lost = append(lost[:1:1], used)
			}
			o.begin = func() {
				for _, e := range lost {
					e.Stop()
				}
			}
			p.goes(t, o)
		})
	}
}

// One of three endpoints is dead and says nothing: flanneld starts all the same,
// and has tried that one no more than once by then.
func TestDeadEndpoint(t *testing.T) {
	p := newMembers(t)
	dead := p.c.Members[0]
	dead.Stop()
	p.through(p.c.Members[1:]) // which may have lost their leader
	host := dead.Host()
	host.Run("iptables", "-I", "INPUT", "-p", "tcp", "--dport", "2379", "--syn", "-j", "DROP")
	syns := func() int {
		t.Helper()
		for line := range strings.Lines(host.Run("iptables", "-nvxL", "INPUT")) {
			if f := strings.Fields(line); slices.Contains(f, "dpt:2379") {
				n, err := strconv.Atoi(f[0])
				p.c.Must(err)
				return n
			}
		}
		t.Fatal("there is no such rule")
		return 0
	}
	// From Linux 6.5 on a SYN is sent again after one, two and three seconds, and a
	// third might just leave when the daemon gives up after two. Before, and so,
	// it is after one and three.
	p.h.Exec("sh", "-c", "echo 0 >/proc/sys/net/ipv4/tcp_syn_linear_timeouts")
	// Only the first host's are to be counted.
	p.h2.Stop()
	// Which endpoint is tried first may be left to chance.
	tried := 0
	for i := range 6 {
		p.h.Stop()
		host.Run("iptables", "-Z", "INPUT")
		if n := syns(); n != 0 {
			t.Fatalf("%d SYNs after the count was set to 0", n)
		}
		began := time.Now()
		p.h.Start()
		if err := p.h.Daemon.WaitReady(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		n := syns()
		t.Logf("start %d: ready after %.1f s, %d SYNs to the dead endpoint", i, time.Since(began).Seconds(), n)
		if n > 2 { // one, and one sent again before it was given up
			t.Errorf("%d SYNs to the dead endpoint", n)
		}
		if n > 0 {
			tried++
		}
		if err := p.check(); err != nil {
			t.Errorf("at READY: %v", err)
		}
	}
	t.Logf("the dead endpoint was tried in %d of 6 starts", tried)
	p.change()
	p.await(t, within, "the kernel, after a change")
	p.lossless(t)
}
