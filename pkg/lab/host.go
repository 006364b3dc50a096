package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// A Segment is a network on which hosts reach each other directly: a bridge in
// the router's namespace, with the prefix's first address.
type Segment struct {
	Name   string
	Prefix netip.Prefix

	lab   *Lab
	addrs addrs
}

// addrs hands out the addresses of a prefix, each once.
type addrs struct {
	prefix netip.Prefix
	taken  map[netip.Addr]bool
}

func newAddrs(p netip.Prefix, taken netip.Addr) addrs {
	return addrs{p.Masked(), map[netip.Addr]bool{taken: true}}
}

// take gives the wanted address, or the next free one if none is wanted.
func (a *addrs) take(wanted ...netip.Addr) (netip.Prefix, error) {
	if len(wanted) > 0 {
		w := wanted[0]
		if !a.prefix.Contains(w) || a.taken[w] {
			return netip.Prefix{}, fmt.Errorf("address %v is taken or not in %v", w, a.prefix)
		}
		a.taken[w] = true
		return netip.PrefixFrom(w, a.prefix.Bits()), nil
	}
	// The last address is the broadcast address, so one with a successor in
	// the prefix is wanted.
	for w := a.prefix.Addr().Next(); a.prefix.Contains(w.Next()); w = w.Next() {
		if !a.taken[w] {
			a.taken[w] = true
			return netip.PrefixFrom(w, a.prefix.Bits()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no address left in %v", a.prefix)
}

// Segment adds a segment to the lab. Its name is its bridge's, so 15
// characters at most; its prefix is /29 or larger, or there is no room in it.
func (l *Lab) Segment(name string, prefix netip.Prefix) *Segment {
	l.Helper()
	router := prefix.Masked().Addr().Next()
	if err := l.Router.bridge(name, netip.PrefixFrom(router, prefix.Bits()), 0); err != nil {
		l.Fatalf("making segment %s: %v", name, err)
	}
	return &Segment{Name: name, Prefix: prefix.Masked(), lab: l, addrs: newAddrs(prefix, router)}
}

// Gateway is the address of the router on the segment.
func (s *Segment) Gateway() netip.Addr { return s.Prefix.Addr().Next() }

// A Host stands for a machine of its own: a namespace with eth0 on a segment
// and a default route to the router. It does not forward packets until
// something in it turns that on, as on a real machine.
type Host struct {
	*Node

	attached int
	docker   *docker
}

// Host adds a host on a segment, with the given address or the next free one.
// Its name and "-eth0" have to fit into the 15 characters of a device's name.
func (l *Lab) Host(name string, s *Segment, addr ...netip.Addr) *Host {
	l.Helper()
	n, err := l.newNode(name)
	if err != nil {
		l.Fatalf("making host %s: %v", name, err)
	}
	h := &Host{Node: n}
	h.addr = h.Attach(s, addr...)
	if err := h.defaultRoute(s.Gateway()); err != nil {
		l.Fatalf("making host %s: %v", name, err)
	}
	return h
}

// Attach connects the host to a further segment, by eth1, eth2 and so on, with
// the given address or the next free one, and returns that address.
func (h *Host) Attach(s *Segment, addr ...netip.Addr) netip.Addr {
	h.lab.Helper()
	dev := fmt.Sprintf("eth%d", h.attached)
	h.lab.mu.Lock()
	p, err := s.addrs.take(addr...)
	h.lab.mu.Unlock()
	if err == nil {
		err = h.lab.Router.plug(s.Name, h.Name+"-"+dev, h.Node, dev, p, 0)
	}
	if err != nil {
		h.lab.Fatalf("attaching %s to segment %s: %v", h.Name, s.Name, err)
	}
	h.attached++
	return p.Addr()
}

// bridge makes a bridge with an address in the namespace; mtu 0 is the
// kernel's default.
func (n *Node) bridge(name string, addr netip.Prefix, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	// Without an address of its own a bridge takes that of a port and changes
	// it as ports come and go, and neighbours send to the old one for a while.
	b := addr.Addr().As4()
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
	snooping := false // or the bridge holds multicast back until it has seen a query
	link := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := n.nl.LinkAdd(link); err != nil {
		return fmt.Errorf("adding bridge %s in %s: %w", name, n.Name, err)
	}
	if err := n.nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("adding address %v to %s in %s: %w", addr, name, n.Name, err)
	}
	if err := n.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up in %s: %w", name, n.Name, err)
	}
	return nil
}

// plug connects a port of n's bridge to a new device of another node, gives
// that device its address, and waits until packets can pass.
func (n *Node) plug(bridge, port string, to *Node, dev string, addr netip.Prefix, mtu int) error {
	br, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding bridge %s in %s: %w", bridge, n.Name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = port, mtu, br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: dev, PeerNamespace: netlink.NsFd(to.ns)}
	if err := n.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding veth %s to %s in %s: %w", port, bridge, n.Name, err)
	}
	peer, err := to.nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", dev, to.Name, err)
	}
	if err := to.nl.AddrAdd(peer, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("adding address %v to %s in %s: %w", addr, dev, to.Name, err)
	}
	if err := errors.Join(n.nl.LinkSetUp(veth), to.nl.LinkSetUp(peer)); err != nil {
		return fmt.Errorf("setting %s and %s up: %w", port, dev, err)
	}
	// The kernel lets packets through a little after the carrier is there.
	// Until then they are lost, and ARP tries again only after a second.
	return Poll(5*time.Second, "waiting for "+port+" to be up", func() error {
		return errors.Join(n.up(port), n.up(bridge), to.up(dev))
	})
}

func (n *Node) up(dev string) error {
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return err
	}
	if s := link.Attrs().OperState; s != netlink.OperUp {
		return fmt.Errorf("%s in %s is %v", dev, n.Name, s)
	}
	return nil
}

func (n *Node) defaultRoute(via netip.Addr) error {
	if err := n.nl.RouteAdd(&netlink.Route{Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("adding the default route via %v in %s: %w", via, n.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
