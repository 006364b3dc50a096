package check

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/backend"
	"flanneld/backend/table"
	"flanneld/backend/udp"
	"flanneld/pkg/nldump"
	"flanneld/pkg/prefix"
)

// near is an address or a route of this host's own.
type near struct {
	prefix netip.Prefix // of an address, with its host bits
	dev    string       // empty where a route has several
	route  bool
	// via is the gateway of a route, invalid if it has none or several.
	via netip.Addr
	// onLink says that the hosts at the prefix's addresses are on the link of dev.
	onLink bool
	// plain says that a route bears no protocol of its own, as when it is made by ip
	// route add, and by older daemons.
	plain bool
}

func (n near) String() string {
	switch {
	case !n.route:
		return fmt.Sprintf("the address %v of %s", n.prefix, n.dev)
	case n.via.IsValid():
		return fmt.Sprintf("the route %v via %v", n.prefix, n.via)
	case n.dev == "":
		return fmt.Sprintf("the route %v", n.prefix)
	}
	return fmt.Sprintf("the route %v dev %s", n.prefix, n.dev)
}

// neighbourhood lists the addresses and the routes of the main table that flanneld
// has not made, without default routes and those that addresses bring along.
func neighbourhood() (all []near, err error) {
	links, _, err := nldump.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing the interfaces: %w", err)
	}
	names := map[int]string{}
	ours := map[int]bool{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		ours[l.Attrs().Index] = backend.Owner.Device(l.Attrs().Name, l.Type())
	}
	addrs, _, err := nldump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("listing the IPv4 addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ours[a.LinkIndex] {
			bits, _ := a.Mask.Size()
			all = append(all, near{prefix: netip.PrefixFrom(ip.Unmap(), bits), dev: names[a.LinkIndex], onLink: true})
		}
	}
	routes, _, err := nldump.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("listing the IPv4 routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || ours[r.LinkIndex] || r.Protocol == unix.RTPROT_KERNEL || uint8(r.Protocol) == backend.Owner.Protocol {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if !ok || bits == 0 {
			continue
		}
		via, _ := netip.AddrFromSlice(r.Gw)
		all = append(all, near{
			prefix: netip.PrefixFrom(ip.Unmap(), bits), dev: names[r.LinkIndex], route: true, via: via.Unmap(),
			onLink: r.Scope == netlink.SCOPE_LINK && r.Type == unix.RTN_UNICAST, plain: r.Protocol == unix.RTPROT_BOOT,
		})
	}
	return all, nil
}

// collides reports whether n and the network are in each other's way. own is the
// subnet of this host's containers, invalid if it has none yet.
func (n near) collides(c table.Config, own netip.Prefix) bool {
	p := n.prefix.Masked()
	switch {
	case !p.Overlaps(c.Network):
		return false
	case own.IsValid() && prefix.Contains(own, p):
		return false // the bridge of the containers
	case n.route && n.plain && p.Bits() == c.SubnetLen:
		return false // an older daemon's route to another host, which gives way
	case p.Bits() < c.Network.Bits():
		// What leads further away loses to the routes of the network, which are to
		// less; but what is on the link has hosts there.
		return n.onLink
	}
	return true
}

// overlap judges whether the network's addresses are in use by something else.
func overlap(c table.Config, own netip.Prefix, nearby []near, err error) Finding {
	const name = "network"
	if err != nil {
		return warning(name, "see whether something keeps flanneld from netlink", "whether %v is in use cannot be known: %v", c.Network, err)
	}
	hint := "choose a Network that nothing else uses"
	var all []string
	for _, n := range nearby {
		if n.collides(c, own) {
			all = append(all, n.String())
			if !n.route && n.dev == "docker0" {
				hint = "if dockerd chose its own address, stop it and run remove-docker0.sh, then start it with the subnet of flanneld; otherwise " + hint
			}
		}
	}
	if len(all) > 0 {
		return warning(name, hint, "%v overlaps what this host has already: %s", c.Network, few(all))
	}
	return ok(name, "%v overlaps no other address or route of this host", c.Network)
}

// far is an address beyond this host that it has to reach.
type far struct {
	name string // what is there
	addr netip.Addr
}

// farAway are those of the store's members that are named by address, and of the
// hosts with leases, this one not among them.
func farAway(said answers, self netip.Addr) (all []far) {
	for _, m := range said.members {
		u, err := url.Parse(m.Endpoint)
		if err != nil {
			continue
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
			all = append(all, far{"etcd at " + m.Endpoint, addr})
		}
	}
	for _, l := range said.leases {
		if l.PublicIP.IsValid() && l.PublicIP != self {
			all = append(all, far{fmt.Sprintf("the host %v", l.PublicIP), l.PublicIP})
		}
	}
	return all
}

// cutOff judges whether routes to containers will take the place of those by which
// this host reaches others now, which are to more than the network, as the default
// route is. One to as much or less stays in use.
func cutOff(c table.Config, nearby []near, all []far) []Finding {
	var lost []string
	for _, p := range all {
		stays := func(n near) bool { return n.prefix.Bits() >= c.Network.Bits() && n.prefix.Contains(p.addr) }
		if c.Network.Contains(p.addr) && !slices.ContainsFunc(nearby, stays) {
			lost = append(lost, p.name)
		}
	}
	const name, hint = "network", "choose a Network that has no host's address in it, or give this host a route to them"
	switch {
	case len(lost) == 0:
		return nil
	case c.BackendType == udp.Type:
		return []Finding{failure(name, hint, "%v has addresses in it that this host has to reach, and with the backend %s all of it leads to containers: %s", c.Network, udp.Type, few(lost))}
	}
	return []Finding{warning(name, hint, "%v has addresses in it that this host has to reach, and cannot once their subnet is leased: %s", c.Network, few(lost))}
}

// few lists some of what may be many.
func few(all []string) string {
	const most = 5
	if more := len(all) - most; more > 0 {
		all = append(all[:most:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(all, ", ")
}

// backendFits judges whether the backend can be used on this host as configured.
func backendFits(c table.Config, host backend.Host, placeErr error, m modules, running process) Finding {
	const name = "backend"
	if placeErr != nil {
		return skipped(name, "there is no interface for %s", c.BackendType)
	}
	b, err := c.Open(host)
	if err != nil {
		return failure(name, "change the network config, or this host's flags", "%v", err)
	}
	text := fmt.Sprintf("%s, with an MTU of %d for containers", c.BackendType, b.MTU())
	if b, is := b.(*udp.Backend); is && running.pid != 0 {
		// Its own devices, which are all that another backend needs, are in nobody's way.
		switch socket, known := running.socket(); {
		case !known:
			return skipped(name, "%s; whether its port is free cannot be known while the flanneld runs here that does not say what it uses", text)
		case socket == b.Local():
			return ok(name, "%s; its port is in use by the flanneld that runs here", text)
		}
	}
	switch {
	case c.BackendType == udp.Type && m.tun() != present:
		// Opening its file would load it.
		return ok(name, "%s; its port is not looked at while TUN is not loaded", text)
	}
	if err := b.Check(); err != nil {
		return failure(name, "give the backend what it needs, or choose another for the cluster", "%v", err)
	}
	return ok(name, "%s", text)
}
