package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// Who is seen as whom, with --ip-masq and without, with dockerd masquerading by
// itself where it is told to, and with FORWARD dropping by policy as dockerd
// sets it.
func TestSourceAddresses(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw", "udp"} {
		for _, masq := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s masq=%t", backend, masq), func(t *testing.T) {
				if backend == "udp" {
					if err := lab.TUN(); err != nil {
						t.Skip(err)
					}
				}
				c, s := newCluster(t)
				c.SetConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "Backend": {"Type": %q}}`, backend))
				var hosts []*cluster.Node
				var containers []*lab.Container
				for i := range 2 {
					h, container := join(c, s, i+1, "--iptables-resync=1", fmt.Sprintf("--ip-masq=%t", masq))
					h.Run("iptables", "-P", "FORWARD", "DROP")
					if !h.Env().IPMasq {
						// What dockerd adds when it starts, at the top.
						h.Run("iptables", "-t", "nat", "-I", "POSTROUTING", "-s", h.Env().Subnet().String(), "!", "-o", "docker0", "-j", "MASQUERADE")
					}
					hosts, containers = append(hosts, h), append(containers, container)
				}
				h1, c1, c2 := hosts[0], containers[0], containers[1]
				lab.Eventually(t, 5*time.Second, "flannel's rules come first", func() error {
					for _, h := range hosts {
						if rules := h.Run("iptables", "-t", "nat", "-S", "POSTROUTING"); !strings.HasPrefix(rules, "-P POSTROUTING ACCEPT\n-A POSTROUTING -j FLANNEL-POSTRTG") {
							return fmt.Errorf("%v has\n%s", h, rules)
						}
					}
					return nil
				})
				lab.EventuallyPing(t, within, c1, c2.Addr(), lab.Echo{Timeout: 100 * time.Millisecond})
				// The outside knows the way to both subnets, and goes through h1.
				outside := c.Router
				for _, h := range hosts {
					outside.Run("ip", "route", "add", h.Env().Subnet().String(), "via", h1.Addr().String())
				}
				overlay := map[string]netip.Addr{"vxlan": h1.Env().Subnet().Addr(), "udp": h1.Env().Subnet().Addr(), "host-gw": h1.Addr()}[backend]
				gateway := s.Gateway()
				through := gateway // outside to another host's subnet, through this host
				if masq {
					through = overlay
				}
				for _, test := range []struct {
					what     string
					from, to lab.Place
					addr     netip.Addr
					want     netip.Addr
				}{
					{"container to container on another host", c1, c2, c2.Addr(), c1.Addr()},
					{"and back", c2, c1, c1.Addr(), c2.Addr()},
					{"host to container on another host", h1, c2, c2.Addr(), overlay},
					{"host to its own container", h1, c1, c1.Addr(), h1.Env().Gateway.Addr()},
					{"container to its own host", c1, h1, h1.Addr(), c1.Addr()},
					{"container to the outside", c1, outside, gateway, h1.Addr()},
					{"outside to a container of this host", outside, c1, c1.Addr(), gateway},
					{"outside through this host to another", outside, c2, c2.Addr(), through},
				} {
					if got, err := lab.SourceSeen(test.from, test.to, test.addr); err != nil || got != test.want {
						t.Errorf("%s is seen as %v, %v; want %v", test.what, got, err, test.want)
					}
				}
			})
		}
	}
}

// What the addresses of a connection do not tell: multicast, packets that kube-proxy
// has marked, what the host sends from any address, and that it is the forward
// rules that let packets pass; with each kind of iptables.
func TestFirewallPackets(t *testing.T) {
	iptablesKinds(t, func(t *testing.T, program string) {
		c, s := newCluster(t)
		c.SetConfig(vxlanConfig)
		var hosts []*cluster.Node
		var containers []*lab.Container
		for i := range 2 {
			h := c.Node(fmt.Sprintf("h%d", i+1), s)
			reserve(c, h, i+1)
			behindFrontDoor(t, h, program)
			h.Run(program, "-P", "FORWARD", "DROP")
			h.Start("--ip-masq", "--iptables-resync=1")
			h.AwaitReady()
			c.Must(h.Daemon.WaitLog("put right: .*filter: added the jump", mending))
			hosts, containers = append(hosts, h), append(containers, h.AddContainer("c"))
		}
		h1, c1, c2 := hosts[0], containers[0], containers[1]
		reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
		outside := c.Router
		outside.Run("ip", "route", "add", h1.Env().Subnet().String(), "via", h1.Addr().String())
		gateway := h1.Env().Gateway.Addr()
		overlay := h1.Env().Subnet().Addr()

		// Multicast from an address of the network keeps it, on the way where all
		// else does not.
		group := netip.MustParseAddr("239.1.2.3")
		if seen, err := datagramSeen(h1.Node, outside, s.Name, gateway, group); err != nil || seen != gateway {
			t.Errorf("multicast from %v is seen from %v, %v", gateway, seen, err)
		}
		if seen, err := datagramSeen(h1.Node, outside, s.Name, gateway, s.Gateway()); err != nil || seen != h1.Addr() {
			t.Errorf("a datagram from %v to the outside is seen from %v, %v; want %v", gateway, seen, err, h1.Addr())
		}

		// The host, from an address that the other host has no way back to.
		strange := netip.MustParseAddr("198.51.100.7")
		h1.Run("ip", "addr", "add", strange.String()+"/32", "dev", "lo")
		if seen, err := datagramSeen(h1.Node, c2.Node, "eth0", strange, c2.Addr()); err != nil || seen != overlay {
			t.Errorf("a datagram from %v of the host to a container of another is seen from %v, %v; want %v", strange, seen, err, overlay)
		}

		// kube-proxy's mark: it masquerades, behind our rules, what keeps its
		// source otherwise.
		h1.Run(program, "-w", "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE")
		if seen, err := lab.SourceSeen(c1, c2, c2.Addr()); err != nil || seen != c1.Addr() {
			t.Errorf("without the mark %v is seen as %v, %v", c1.Addr(), seen, err)
		}
		h1.Run(program, "-w", "-t", "mangle", "-A", "PREROUTING", "-s", c1.Addr().String(), "-j", "MARK", "--set-xmark", "0x4000/0x4000")
		if seen, err := lab.SourceSeen(c1, c2, c2.Addr()); err != nil || seen != overlay {
			t.Errorf("with the mark %v is seen as %v, %v; want %v", c1.Addr(), seen, err, overlay)
		}

		h1.Stop()
		h1.Start("--ip-masq", "--iptables-forward-rules=false")
		h1.AwaitReady()
		c.Must(h1.Daemon.WaitLog("put right: .*filter: took out chain FLANNEL-FWD", mending))
		if _, err := c1.Ping(c2.Addr(), lab.Echo{Timeout: 300 * time.Millisecond}); err == nil {
			t.Error("without the forward rules packets pass, although FORWARD drops them")
		}
		h1.Stop()
		h1.Start("--ip-masq")
		h1.AwaitReady()
		lab.EventuallyPing(t, mending, c1, c2.Addr(), lab.Echo{Timeout: 100 * time.Millisecond})
	})
}

// datagramSeen is the address that one node sees a datagram come from, which
// another sends from an address of its own to one of the first, or to a group that
// the first is in by an interface.
func datagramSeen(from, to *lab.Node, iface string, src, dst netip.Addr) (seen netip.Addr, err error) {
	var receiver, sender *net.UDPConn
	err = to.Do(func() error {
		addr := net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0))
		if !dst.IsMulticast() {
			receiver, err = net.ListenUDP("udp4", addr)
			return err
		}
		i, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		receiver, err = net.ListenMulticastUDP("udp4", i, addr)
		return err
	})
	if err != nil {
		return seen, err
	}
	defer receiver.Close()
	err = from.Do(func() error {
		sender, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)))
		if err != nil || !dst.IsMulticast() {
			return err
		}
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return ipv4.NewPacketConn(sender).SetMulticastInterface(i)
	})
	if err != nil {
		return seen, err
	}
	defer sender.Close()
	port := uint16(receiver.LocalAddr().(*net.UDPAddr).Port)
	buf := make([]byte, 64)
	// Again when one got lost, as while the neighbour is asked for.
	for range 20 {
		if _, err = sender.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(dst, port)); err != nil {
			return seen, err
		}
		receiver.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		var peer netip.AddrPort
		if _, peer, err = receiver.ReadFromUDPAddrPort(buf); err == nil {
			return peer.Addr().Unmap(), nil
		}
	}
	return seen, err
}

// Rules of another network or subnet go, and so do those that flags turn off.
func TestRulesFollow(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h := c.Node("h1", s)
	h.Run("iptables", "-A", "FORWARD", "-s", "192.0.2.1/32", "-j", "DROP") // somebody else's
	rules := func() string {
		return h.Run("iptables", "-S") + "\n" + h.Run("iptables", "-t", "nat", "-S")
	}
	await := func(what string, there, gone []string) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, what, func() error {
			now := rules()
			for _, text := range append(there, "-A FORWARD -s 192.0.2.1/32 -j DROP") {
				if !strings.Contains(now, text) {
					return fmt.Errorf("there is no %s in\n%s", text, now)
				}
			}
			for _, text := range gone {
				if strings.Contains(now, text) {
					return fmt.Errorf("there is %s in\n%s", text, now)
				}
			}
			return nil
		})
	}
	h.Start("--ip-masq")
	h.AwaitReady()
	await("rules", []string{"-A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT", "-A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE"}, nil)
	h.Stop()
	if !strings.Contains(rules(), "FLANNEL-FWD") {
		t.Error("the rules went when flanneld stopped")
	}
	c.SetConfig(`{"Network": "10.2.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h.Start()
	h.AwaitReady()
	await("rules for the new network", []string{"-A FLANNEL-FWD -s 10.2.0.0/16 -j ACCEPT", "-d 10.2.0.0/16 -j ACCEPT"}, []string{"10.1.", "MASQUERADE"})
	h.Stop()
	// In the same network the host gets another subnet, as when it lost its own.
	h.Start("--ip-masq")
	h.AwaitReady()
	own := h.Env().Subnet()
	await("rules for the subnet", []string{"-A FLANNEL-POSTRTG ! -s 10.2.0.0/16 -d " + own.String() + " -j RETURN"}, nil)
	h.Stop()
	c.SetConfig(`{"Network": "10.2.0.0/16", "SubnetMin": "10.2.200.0", "SubnetMax": "10.2.200.0", "Backend": {"Type": "host-gw"}}`)
	c.PutLease("10.2.200.0-24", fmt.Sprintf(`{"PublicIP": "%v", "BackendType": "host-gw"}`, h.Addr()), 0)
	h.Start("--ip-masq")
	h.AwaitReady()
	await("rules for the other subnet", []string{"-A FLANNEL-POSTRTG ! -s 10.2.0.0/16 -d 10.2.200.0/24 -j RETURN"}, []string{own.String()})
	h.Stop()
	h.Start("--iptables-forward-rules=false")
	h.AwaitReady()
	await("no forward rules", []string{"FLANNEL-POSTRTG"}, []string{"FLANNEL-FWD"})
	h.Stop()
}
