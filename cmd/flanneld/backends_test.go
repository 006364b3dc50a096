package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// kind is one backend, in one configuration, under test.
type kind struct {
	name   string
	config string // the Backend object
	mtu    int
	// kernel is what the operator of host i of n sees: routes to the peers'
	// subnets, permanent neighbours, and the FDB of dev.
	dev    string
	kernel func(hosts []*cluster.Node, i int) (routes, neighs, fdb []string)
	// device is in the description of dev that ip gives.
	device []string
}

var kinds = []kind{
	{
		name: "vxlan", config: `{"Type": "vxlan"}`, mtu: 1450, dev: "flannel.1", kernel: vxlanEntries("flannel.1"),
		device: []string{"mtu 1450", "vxlan id 1 local 172.30.0.3 dev eth0", "dstport 8472", "nolearning", "state UNKNOWN", "inet 10.1.1.0/32"},
	},
	{
		name: "vxlan of another shape", config: `{"Type": "vxlan", "VNI": 7, "Port": 4789, "GBP": true, "MTU": 1400}`, mtu: 1350, dev: "flannel.7", kernel: vxlanEntries("flannel.7"),
		device: []string{"mtu 1350", "vxlan id 7 local 172.30.0.3 dev eth0", "dstport 4789", "nolearning", "gbp", "inet 10.1.1.0/32"},
	},
	{
		name: "vxlan with DirectRouting", config: `{"Type": "vxlan", "DirectRouting": true}`, mtu: 1450, dev: "flannel.1",
		kernel: gatewayEntries, device: []string{"mtu 1450", "vxlan id 1", "inet 10.1.1.0/32"},
	},
	{name: "host-gw", config: `{"Type": "host-gw"}`, mtu: 1500, kernel: gatewayEntries},
	{
		name: "udp", config: `{"Type": "udp"}`, mtu: 1472, dev: "flannel0", kernel: udpEntries,
		device: []string{"mtu 1472", "tun type tun", "inet 10.1.1.0/32"},
	},
	{
		name: "udp on another port", config: `{"Type": "udp", "Port": 7890}`, mtu: 1472, dev: "flannel0", kernel: udpEntries,
		device: []string{"mtu 1472", "tun type tun", "inet 10.1.1.0/32"},
	},
}

func vxlanEntries(dev string) func([]*cluster.Node, int) (routes, neighs, fdb []string) {
	return func(hosts []*cluster.Node, i int) (routes, neighs, fdb []string) {
		for j, h := range hosts {
			if j != i {
				zero := h.Env().Subnet().Addr()
				routes = append(routes, fmt.Sprintf("%v via %v dev %s proto 102 onlink", h.Env().Subnet(), zero, dev))
				neighs = append(neighs, fmt.Sprintf("%v dev %s lladdr %s PERMANENT", zero, dev, h.VtepMAC()))
				fdb = append(fdb, fmt.Sprintf("%s dst %v self permanent", h.VtepMAC(), h.Addr()))
			}
		}
		return routes, neighs, fdb
	}
}

func gatewayEntries(hosts []*cluster.Node, i int) (routes, neighs, fdb []string) {
	for j, h := range hosts {
		if j != i {
			routes = append(routes, fmt.Sprintf("%v via %v dev eth0 proto 102", h.Env().Subnet(), h.Addr()))
		}
	}
	return routes, nil, nil
}

func udpEntries([]*cluster.Node, int) (routes, neighs, fdb []string) {
	return []string{"10.1.0.0/16 dev flannel0 proto 102 scope link"}, nil, nil
}

// checkKernel compares all routes of the host, and all permanent neighbours and
// FDB entries, with what the operator was promised.
func (nw kind) checkKernel(t *testing.T, hosts []*cluster.Node, i int) {
	t.Helper()
	h := hosts[i]
	routes, neighs, fdb := nw.kernel(hosts, i)
	routes = append(routes,
		"default via 172.30.0.1 dev eth0",
		fmt.Sprintf("172.30.0.0/24 dev eth0 proto kernel scope link src %v", h.Addr()),
		fmt.Sprintf("%v dev docker0 proto kernel scope link src %v", h.Env().Subnet(), h.Env().Gateway.Addr()),
	)
	equal(t, "routes of "+h.String(), within, h.Routes, lines(routes)...)
	equal(t, "neighbours of "+h.String(), within, h.Neighbours, lines(neighs)...)
	if strings.HasPrefix(nw.dev, "flannel.") {
		equal(t, "FDB of "+h.String(), within, func() string { return h.FDB(nw.dev) }, lines(fdb)...)
	}
}

// Three hosts; a fourth joins, one leaves; each kernel holds what the leases
// say, and containers and hosts reach one another.
func TestBackends(t *testing.T) {
	for _, nw := range kinds {
		t.Run(nw.name, func(t *testing.T) {
			if strings.HasPrefix(nw.name, "udp") {
				if err := lab.TUN(); err != nil {
					t.Skip(err)
				}
			}
			c, s := newCluster(t)
			c.SetConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "Backend": %s}`, nw.config))
			var hosts []*cluster.Node
			var containers []*lab.Container
			add := func() {
				h, container := join(c, s, len(hosts)+1)
				hosts, containers = append(hosts, h), append(containers, container)
			}
			for range 3 {
				add()
			}
			text, err := os.ReadFile(hosts[0].SubnetFile())
			c.Must(err)
			if want := fmt.Sprintf("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", nw.mtu); string(text) != want {
				t.Errorf("the subnet file is\n%swant\n%s", text, want)
			}
			if nw.dev != "" {
				device := strings.Join(strings.Fields(hosts[0].Run("ip", "-d", "addr", "show", nw.dev)), " ")
				for _, part := range nw.device {
					if !strings.Contains(device, part) {
						t.Errorf("%s lacks %q: %s", nw.dev, part, device)
					}
				}
				if n := strings.Count(device, "inet "); n != 1 {
					t.Errorf("%s has %d addresses: %s", nw.dev, n, device)
				}
			}
			for i := range hosts {
				nw.checkKernel(t, hosts, i)
			}
			for _, from := range containers {
				for _, to := range containers {
					if from != to {
						reach(t, from, to, to.Addr(), from.Addr(), nw.mtu)
					}
				}
				for _, h := range hosts {
					if h.Host != from.Host {
						reach(t, from, h, h.Addr(), netip.Addr{}, 0)
						reach(t, h, from, from.Addr(), netip.Addr{}, 0)
					}
				}
			}

			add()
			for i := range hosts {
				nw.checkKernel(t, hosts, i)
			}
			reach(t, containers[3], containers[0], containers[0].Addr(), containers[3].Addr(), nw.mtu)
			reach(t, containers[1], containers[3], containers[3].Addr(), containers[1].Addr(), nw.mtu)

			hosts[1].Stop()
			c.DeleteLease("10.1.2.0-24")
			left := []*cluster.Node{hosts[0], hosts[2], hosts[3]}
			for i := range left {
				nw.checkKernel(t, left, i)
			}
			if _, err := containers[0].Ping(containers[1].Addr(), lab.Echo{Timeout: 200 * time.Millisecond}); err == nil {
				t.Error("a container of the host that has left still answers")
			}
			reach(t, containers[0], containers[2], containers[2].Addr(), containers[0].Addr(), nw.mtu)
		})
	}
}

// reach checks that from reaches to by ping, with packets of the whole MTU (0
// is any), and that a TCP transfer arrives whole, from the address it should
// (invalid is any).
func reach(t *testing.T, from, to place, addr, seen netip.Addr, mtu int) {
	t.Helper()
	lab.EventuallyPing(t, within, from, addr, lab.Echo{Timeout: 100 * time.Millisecond})
	if _, err := from.Ping(addr, lab.Echo{Count: 2}); err != nil {
		t.Fatalf("%v", err)
	}
	if mtu != 0 {
		if _, err := from.Ping(addr, lab.Echo{Size: mtu, DF: true}); err != nil {
			t.Fatalf("with packets of %d bytes: %v", mtu, err)
		}
		if _, err := from.Ping(addr, lab.Echo{Size: mtu + 1, DF: true, Timeout: 200 * time.Millisecond}); err == nil {
			t.Fatalf("a packet of %d bytes, more than the MTU, passes whole", mtu+1)
		}
	}
	source, err := lab.Transfer(from, to, addr, 1<<20)
	if err != nil {
		t.Fatalf("%v", err)
	} else if seen.IsValid() && source != seen {
		t.Fatalf("%v is seen as %v", seen, source)
	}
}

// place is a host or a container.
type place interface {
	lab.Place
	Ping(netip.Addr, lab.Echo) (lab.EchoStats, error)
}
