package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

// said checks that each text is in flanneld's log so many times, however often
// what it is about has been tried.
func said(t *testing.T, a *auditor, times int, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if n := strings.Count(a.h.Daemon.Log(), text); n != times {
			t.Errorf("%q is in the log %d times, not %d", text, n, times)
		}
	}
}

// Where the host has a route of its own to a peer's subnet, its route stays, and
// that is said once and shown in /healthz; the other peers are programmed and
// followed; and the peer's route is set when the obstacle goes. Over a link of
// the host's own no route is set, whether it has the peer's subnet or a part of
// it, and whichever was there first.
func TestObstacleRoute(t *testing.T) {
	const subnet = "10.1.11.0/24"
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "host-gw"}`} {
		for _, obstacle := range []struct {
			name, set, remove string
			lines             []string
		}{
			{"a static route", "ip route replace 10.1.11.0/24 via 172.30.0.1 proto static", "ip route del 10.1.11.0/24 proto static",
				[]string{"route 10.1.11.0/24 via 172.30.0.1 dev eth0 proto static"}},
			{"a static blackhole", "ip route replace blackhole 10.1.11.0/24 proto static", "ip route del 10.1.11.0/24 proto static",
				[]string{"route blackhole 10.1.11.0/24 proto static"}},
			{"a route through a next-hop object", "ip nexthop add id 7 via 172.30.0.1 dev eth0; ip route replace 10.1.11.0/24 nhid 7 proto bird", "ip route del 10.1.11.0/24 proto bird; ip nexthop del id 7",
				[]string{"route 10.1.11.0/24 nhid 7 via 172.30.0.1 dev eth0 proto bird", "nexthop id 7 via 172.30.0.1 dev eth0 scope link"}},
			// A link of the host's own: no route is set over it, or stays.
			{"a link with the subnet", "ip addr add 10.1.11.1/24 dev lan0", "ip addr del 10.1.11.1/24 dev lan0",
				[]string{"addr lan0 10.1.11.1/24", "route 10.1.11.0/24 dev lan0 proto kernel scope link src 10.1.11.1"}},
			{"a link with a part of the subnet", "ip addr add 10.1.11.129/25 dev lan0", "ip addr del 10.1.11.129/25 dev lan0",
				[]string{"addr lan0 10.1.11.129/25", "route 10.1.11.128/25 dev lan0 proto kernel scope link src 10.1.11.129"}},
		} {
			t.Run(backend+" "+obstacle.name, func(t *testing.T) {
				c, s := newCluster(t)
				h := c.Node("h1", s)
				reserve(c, h, 1)
				sh(h, "ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up")
				a := audit(c, h)
				a.configure(configOf(backend))
				putFakes(c, typeOf(backend), fakes())

				set := func() {
					t.Helper()
					sh(h, obstacle.set)
					a.add(obstacle.lines...)
					// Whether the entries that the route would use are there is
					// no matter; the route is looked at by itself.
					a.blind = regexp.MustCompile(`10\.1\.11\.|02:00:00:00:00:0b dev`)
				}
				theirs := func() error {
					have, err := a.dump()
					if err != nil {
						return err
					}
					only := func(lines []string) string {
						var about []string
						for _, line := range lines {
							if strings.HasPrefix(line, "route ") && strings.Contains(line, "10.1.11.") {
								about = append(about, line)
							}
						}
						return strings.Join(about, "\n")
					}
					if got, want := only(have), only(obstacle.lines); got != want {
						return fmt.Errorf("of the subnet there is\n%s\nwant\n%s", got, want)
					}
					return nil
				}
				inTheWay := func(time int) {
					t.Helper()
					lab.Eventually(t, healing, "their route alone", theirs)
					awaitHealthz(t, h, 503, subnet)
					// The others are followed and healed, and each time the
					// obstacle is met again.
					fake{near + "122", 111 + time}.put(c, typeOf(backend), 12)
					a.await(t, within, "another peer changes")
					sh(h, flushRoutes)
					a.await(t, healing, "all other routes are healed")
					if err := theirs(); err != nil {
						t.Error(err)
					}
					awaitHealthz(t, h, 503, subnet)
					said(t, a, time, "etting the route "+subnet)
				}
				remove := func() {
					t.Helper()
					sh(h, obstacle.remove)
					a.blind = nil
					for _, line := range obstacle.lines {
						a.drop(line)
					}
					a.await(t, healing, "the obstacle is gone")
					awaitHealthz(t, h, 200, "ok")
				}
				set()
				a.ready(t, "the start", "--healthz-port=2401")
				inTheWay(1)
				remove()
				set() // this time where ours is
				inTheWay(2)
				remove()
			})
		}
	}
}

// A device that flanneld can use, but that takes two FDB entries only: two
// peers are programmed whole, for the others it is said once each what is
// missing, and they are programmed as soon as there is room.
func TestObstacleFullTable(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	a := audit(c, h)
	a.configure(configOf(`{"Type": "vxlan"}`))
	peers := map[int]fake{}
	for n := 21; n <= 24; n++ {
		peers[n] = fake{far + fmt.Sprint(n), n}
	}
	putFakes(c, "vxlan", peers)
	sh(h, fmt.Sprintf("ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dev eth0 local %v dstport 8472 nolearning maxaddress 2", h.Addr()))
	h.Start("--healthz-port=2401")
	h.AwaitReady()

	// missing are the peers without an FDB entry; all else has to be right.
	missing := func() (without []int, err error) {
		want, err := a.wanted(c.Leases())
		if err != nil {
			return nil, err
		}
		have, err := a.dump()
		if err != nil {
			return nil, err
		}
		for n, f := range peers {
			entry := fmt.Sprintf("fdb 02:00:00:00:00:%02x dev flannel.1 dst %s self permanent", f.mac, f.ip)
			if !slices.Contains(have, entry) {
				without = append(without, n)
				want = slices.DeleteFunc(want, func(line string) bool { return line == entry })
			}
		}
		return without, a.compare(want)
	}
	await := func(what string, number int) (without []int) {
		t.Helper()
		lab.Eventually(t, healing, what, func() (err error) {
			without, err = missing()
			if err == nil && len(without) != number {
				err = fmt.Errorf("without an entry are %v", without)
			}
			return err
		})
		return without
	}
	without := await("two peers", 2)
	var names, texts []string
	for _, n := range without {
		names = append(names, fmt.Sprintf("02:00:00:00:00:%02x", n))
		texts = append(texts, fmt.Sprintf("etting the FDB entry 02:00:00:00:00:%02x", n))
	}
	awaitHealthz(t, h, 503, names...)
	// Each of these makes it try again.
	for n := range peers {
		sh(h, fmt.Sprintf("ip route del 10.1.%d.0/24", n))
		await("a route is healed", 2)
	}
	said(t, a, 1, texts...)

	// Room for one more.
	for n := range peers {
		if !slices.Contains(without, n) {
			c.DeleteLease(fakeKey(n))
			delete(peers, n)
			break
		}
	}
	still := await("room for one", 1)
	awaitHealthz(t, h, 503, fmt.Sprintf("02:00:00:00:00:%02x", still[0]))
	// Room for all.
	sh(h, "ip link del flannel.1")
	await("room for all", 0)
	awaitHealthz(t, h, 200, "ok")
	said(t, a, 1, texts...)
}

// A flanneld that may not change the kernel's tables says so of each entry, once,
// and goes on. What changes meanwhile it takes up all the same.
func TestObstaclePermission(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	audit(c, h).configure(configOf(`{"Type": "host-gw"}`))
	for n := 11; n <= 13; n++ {
		fake{near + fmt.Sprint(100+n), n}.put(c, "host-gw", n)
	}
	h.Under = []string{"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"}
	h.Start("--healthz-port=2401", "--iptables-forward-rules=false")
	h.AwaitReady()
	reason := func(n int) string {
		return fmt.Sprintf("etting the route 10.1.%d.0/24 via %s%d dev eth0: operation not permitted", n, near, 100+n)
	}
	shows := func(what string, numbers ...int) {
		t.Helper()
		lab.Eventually(t, healing, what, func() error {
			body, status, err := getHealthz(h)
			if err != nil {
				return err
			}
			for n := 11; n <= 14; n++ {
				if want := slices.Contains(numbers, n); status != 503 || strings.Contains(body, reason(n)) != want {
					return fmt.Errorf("got %d and\n%s\nwant %q in it: %v", status, body, reason(n), want)
				}
			}
			return nil
		})
	}
	shows("three that may not be set", 11, 12, 13)
	fake{near + "114", 14}.put(c, "host-gw", 14)
	c.DeleteLease(fakeKey(11))
	shows("one more and one less", 12, 13, 14)
	for n := 11; n <= 14; n++ {
		if times := strings.Count(h.Daemon.Log(), reason(n)); times != 1 {
			t.Errorf("%q is in the log %d times", reason(n), times)
		}
	}
	if !h.Daemon.Running() {
		t.Error("it has ended")
	}
}
