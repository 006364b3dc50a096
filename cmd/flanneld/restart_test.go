package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/cluster"
)

// foreignThings makes what belongs to others, some of it within Network and
// some where entries of flanneld's will be.
const foreignThings = `
	ip route add 10.1.240.0/24 via 172.30.0.1 proto static
	ip route add 10.1.241.0/24 via 172.30.0.1 proto bird
	ip route add 10.1.242.0/24 via 172.30.0.1
	ip route add 10.1.11.0/24 via 172.30.0.1 metric 100 proto static
	ip route add 10.1.14.0/24 via 172.30.0.1 metric 100
	ip route add blackhole 10.0.0.0/8 proto static
	ip route add 192.168.9.0/24 via 172.30.0.1
	ip route add 192.168.10.0/24 via 172.30.0.1 table 100 proto 102
	ip neigh add 172.30.0.200 lladdr 02:00:00:00:77:03 dev eth0 nud permanent
	ip link add vx0 address 02:00:00:00:77:01 type vxlan id 77 dev eth0 dstport 8472 nolearning
	ip link set vx0 up
	ip addr add 10.77.0.1/24 dev vx0
	ip neigh add 10.77.0.2 lladdr 02:00:00:00:77:02 dev vx0 nud permanent
	bridge fdb add 02:00:00:00:77:02 dev vx0 dst 172.31.0.77
	ip route add 10.1.243.0/24 via 10.77.0.2 dev vx0 proto static
	ip link add flannel-v6.1 type bridge
	ip nexthop add id 1 via 172.30.0.1 dev eth0 proto static
	ip nexthop add id 7 via 172.30.0.1 dev eth0
	ip nexthop add id 8 via 172.30.0.7 dev eth0
	ip nexthop add id 9 group 7/8
	ip route add 10.1.244.0/24 nhid 7 proto static
	ip route add 10.1.245.0/24 nhid 9 proto static
	iptables -P FORWARD DROP
	iptables -N OTHERS
	iptables -A FORWARD -j OTHERS
	iptables -A OTHERS -s 10.1.0.0/16 -d 198.51.100.7/32 -j DROP
	iptables -t nat -N OTHERS
	iptables -t nat -A POSTROUTING -s 10.1.0.0/16 ! -o docker0 -j OTHERS
	iptables -t nat -A OTHERS -d 198.51.100.7/32 -j RETURN`

// foreignRules are the iptables rules that are not flanneld's.
func foreignRules(h *cluster.Node) string {
	var kept []string
	for line := range strings.Lines(h.Run("sh", "-ec", "iptables -S; iptables -t nat -S")) {
		if !strings.Contains(line, "FLANNEL-") {
			kept = append(kept, strings.TrimSpace(line))
		}
	}
	return strings.Join(kept, "\n")
}

// restarted is a host with foreign things on it, on which flanneld is started
// again and again.
type restarted struct {
	*auditor
	rules string
}

// restartHost makes the host, which asks for 10.1.1.0/24.
func restartHost(t *testing.T) restarted {
	t.Helper()
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	sh(h, foreignThings)
	return restarted{audit(c, h), foreignRules(h)}
}

// again starts flanneld; at READY the kernel holds what the leases say, and
// foreign rules are what they were.
func (r restarted) again(t *testing.T, what string) {
	t.Helper()
	r.ready(t, what)
	if got := foreignRules(r.h); got != r.rules {
		t.Fatalf("%s: the rules of others are\n%s\nand were\n%s", what, got, r.rules)
	}
}

// Whatever becomes of the leases while flanneld is down, however it ended: at
// READY the kernel holds what they say now, nothing of before, and all foreign
// things.
func TestRestart(t *testing.T) {
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`, `{"Type": "udp"}`} {
		typ := typeOf(backend)
		peers := fakes()
		for _, how := range stops {
			t.Run(backend+" "+how.name, func(t *testing.T) {
				needTUN(t, backend)
				r := restartHost(t)
				c := r.c
				r.configure(configOf(backend))
				putFakes(c, typ, peers)
				r.again(t, "the first start")
				put := func(n int, ip string, mac int) { fake{ip, mac}.put(c, typ, n) }
				for _, step := range []struct {
					name   string
					change func()
					subnet int // that the host has then
				}{
					{"nothing has changed", func() {}, 1},
					{"peers have gone", func() { c.DeleteLease(fakeKey(11)); c.DeleteLease(fakeKey(14)) }, 1},
					{"peers are new", func() { put(11, near+"121", 111); put(14, far+"114", 114); put(17, far+"17", 17) }, 1},
					{"peers have other MACs", func() { put(12, near+"112", 112); put(15, far+"15", 115) }, 1},
					{"peers have other addresses", func() { put(12, near+"122", 112); put(15, far+"115", 115) }, 1},
					{"peers have other MACs and addresses", func() { put(12, near+"132", 212); put(15, far+"125", 215) }, 1},
					{"peers have come nearer and gone farther", func() { put(12, far+"12", 212); put(15, near+"115", 215) }, 1},
					{"peers have other subnets", func() {
						c.DeleteLease(fakeKey(13))
						c.DeleteLease(fakeKey(16))
						put(23, near+"113", 13)
						put(26, far+"16", 16)
					}, 1},
					{"peers have swapped MACs", func() { put(17, far+"17", 16); put(26, far+"16", 17) }, 1},
					{"peers have swapped addresses", func() { put(17, far+"16", 16); put(26, far+"17", 17) }, 1},
					{"peers have swapped subnets", func() {
						put(26, far+"16", 16)
						put(17, far+"17", 17)
						put(23, near+"121", 111)
						put(11, near+"113", 13)
					}, 1},
					{"a lease is unreadable, one is of another backend", func() {
						c.PutLease(fakeKey(11), "{", time.Hour)
						fake{far + "17", 17}.put(c, "ipsec", 17)
					}, 1},
					{"all peers have gone", func() {
						for key := range c.Leases() {
							if key != fakeKey(1) {
								c.DeleteLease(key)
							}
						}
					}, 1},
					{"all peers are back", func() { putFakes(c, typ, peers) }, 1},
					{"the own lease has gone", func() { c.DeleteLease(fakeKey(1)) }, 1},
					{"the own lease has gone and the subnet file names another subnet", func() { c.DeleteLease(fakeKey(1)); reserve(c, r.h, 77) }, 77},
					{"the own lease is reserved in another subnet", func() {
						value := c.Leases()[fakeKey(77)].Value
						c.DeleteLease(fakeKey(77))
						c.PutLease(fakeKey(78), value, 0)
					}, 78},
					{"the own subnet is now a peer's", func() { put(78, far+"78", 78) }, 0},
				} {
					how.stop(r.h)
					step.change()
					r.again(t, step.name)
					if got := r.h.Env().Subnet().String(); step.subnet != 0 && got != fmt.Sprintf("10.1.%d.0/24", step.subnet) {
						t.Errorf("%s: the host has the subnet %s", step.name, got)
					}
				}
			})
		}
	}
}

// A config for another backend, or for a device of another shape, is what
// counts at the next start, and nothing is left of the one before, however
// flanneld ended. The peers still have leases of the old backend at that moment,
// and follow later.
func TestRestartOtherBackend(t *testing.T) {
	for _, how := range stops {
		t.Run(how.name, func(t *testing.T) {
			needTUN(t, "udp")
			r := restartHost(t)
			r.configure(configOf(`{"Type": "vxlan"}`))
			putFakes(r.c, "vxlan", fakes())
			r.again(t, "the first start")
			for _, config := range []string{
				configOf(`{"Type": "host-gw"}`),
				configOf(`{"Type": "udp"}`),
				configOf(`{"Type": "vxlan"}`),
				configOf(`{"Type": "udp", "Port": 7890}`),
				configOf(`{"Type": "host-gw"}`),
				configOf(`{"Type": "vxlan", "DirectRouting": true}`),
				configOf(`{"Type": "vxlan", "DirectRouting": false}`),
				configOf(`{"Type": "vxlan", "DirectRouting": true, "VNI": 7}`),
				configOf(`{"Type": "vxlan", "VNI": 7, "Port": 4789}`),
				configOf(`{"Type": "vxlan", "Port": 4789}`),
				configOf(`{"Type": "vxlan", "VNI": 0, "Port": 4789, "GBP": true}`), // on 8472 is vx0, without GBP
				configOf(`{"Type": "vxlan", "VNI": 0, "MTU": 1400}`),
				configOf(`{"Type": "udp"}`),
				strings.Replace(configOf(`{"Type": "udp"}`), "10.1.0.0/16", "10.1.0.0/17", 1),
				strings.ReplaceAll(configOf(`{"Type": "vxlan"}`), "10.1.", "10.2."),
				configOf(`{"Type": "host-gw"}`),
			} {
				how.stop(r.h)
				r.configure(config)
				r.again(t, config)
				putFakes(r.c, typeOf(config), fakes())
				r.await(t, within, config+", and the peers follow")
			}
		})
	}
}

// A host whose subnet another host has taken ends with status 1, says who has
// it, and started again, as by Restart=on-failure, has a subnet of its own; what
// it had for the old one has become what leads to the new holder.
func TestRestartAfterLoss(t *testing.T) {
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`, `{"Type": "udp"}`} {
		typ := typeOf(backend)
		t.Run(backend, func(t *testing.T) {
			needTUN(t, backend)
			r := restartHost(t)
			r.configure(configOf(backend))
			putFakes(r.c, typ, fakes())
			r.again(t, "the first start")
			thief := fake{near + "99", 99}
			thief.put(r.c, typ, 1)
			status, err := r.h.Daemon.Wait(5 * time.Second)
			if err != nil || status != 1 {
				t.Errorf("exit status %d, %v", status, err)
			}
			if want := fmt.Sprintf("Stopping: the subnet 10.1.1.0/24 of this host (%v) is now leased by %s", r.h.Addr(), thief.ip); !strings.Contains(r.h.Daemon.Log(), want) {
				t.Errorf("the log lacks %q", want)
			}
			r.again(t, "the start after the loss")
			if own := r.h.Env().Subnet().String(); own == "10.1.1.0/24" {
				t.Error("it has the same subnet again")
			}
		})
	}
}
