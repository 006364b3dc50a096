package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/nldump"
)

// Owner says by which marks the caller's entries are known.
type Owner struct {
	// Protocol is the routes' protocol number (rtnetlink(7), rtm_protocol): one
	// that nobody else on the host uses.
	Protocol int
	// Device reports whether a device of this name and kind ("vxlan", "tun")
	// is the caller's, if only from a run under another config. Such a device
	// is removed when the State has another or none.
	Device func(name, kind string) bool
}

// table reads and writes the kernel's tables through netlink.
type table struct {
	owner  Owner
	handle *netlink.Handle
	names  map[int]string  // interfaces by index, as of the last readLinks
	mine   map[string]bool // those that are ours
}

// readLinks notes the names of interfaces and returns those that are ours.
func (t *table) readLinks() (mine []netlink.Link, err error) {
	links, err := nldump.Whole(t.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing the network interfaces: %w", err)
	}
	t.names, t.mine = make(map[int]string, len(links)), map[string]bool{}
	for _, l := range links {
		t.names[l.Attrs().Index] = l.Attrs().Name
		if t.owner.Device(l.Attrs().Name, kindOf(l)) {
			mine = append(mine, l)
			t.mine[l.Attrs().Name] = true
		}
	}
	return mine, nil
}

// kindOf is the link's kind in the kernel's words. The kernel calls a TUN
// device "tun", the library "tuntap".
func kindOf(l netlink.Link) string {
	if l.Type() == "tuntap" {
		return "tun"
	}
	return l.Type()
}

func (t *table) index(name string) (int, bool) {
	for i, n := range t.names {
		if n == name {
			return i, true
		}
	}
	return 0, false
}

// readRoutes reads the main table: our routes and those in their slots into
// have, the rest into a Host.
func (t *table) readRoutes() (have, Host, error) {
	type both struct {
		have
		Host
	}
	b, err := nldump.Whole(func() (b both, err error) {
		b.have, b.Host, err = t.listRoutes()
		return b, err
	})
	if err != nil {
		return have{}, Host{}, fmt.Errorf("reading the routing table: %w", err)
	}
	return b.have, b.Host, nil
}

func (t *table) listRoutes() (h have, host Host, err error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	err = t.handle.RouteListFilteredIter(netlink.FAMILY_V4, filter, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		dev := t.names[r.LinkIndex]
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Dst != nil {
			a, _ := netip.AddrFromSlice(r.Dst.IP.To4())
			n, _ := r.Dst.Mask.Size()
			dst = netip.PrefixFrom(a, n)
		}
		var via netip.Addr
		if r.Gw != nil {
			via, _ = netip.AddrFromSlice(r.Gw.To4())
		}
		marked := int(r.Protocol) == t.owner.Protocol
		hr := haveRoute{
			Route: Route{Dst: dst, Via: via, Dev: dev, OnLink: r.Flags&unix.RTNH_F_ONLINK != 0},
			odd:   !marked || odd(r),
			raw:   r,
		}
		switch {
		case marked || t.mine[dev] && r.Protocol != unix.RTPROT_KERNEL:
			hr.claim = ours
		case r.Protocol == unix.RTPROT_BOOT || r.Protocol == unix.RTPROT_UNSPEC:
			hr.claim = free
		default:
			hr.claim = foreign
		}
		switch {
		case r.Priority == 0 && r.Tos == 0:
			h.routes = append(h.routes, hr)
		case hr.claim == ours:
			h.surplus = append(h.surplus, hr)
		}
		if hr.claim != ours && r.Tos == 0 { // as are the packets that routes are asked about here
			unicast := r.Type == unix.RTN_UNICAST && len(r.MultiPath) == 0
			host.add(HostRoute{Dst: dst, Dev: dev, OnLink: unicast && !via.IsValid() && r.Via == nil, Metric: r.Priority})
		}
		return true
	})
	return h, host, err
}

// odd reports whether a route has something that a Route cannot express.
func odd(r netlink.Route) bool {
	return r.Type != unix.RTN_UNICAST || len(r.MultiPath) > 0 || r.Via != nil || r.Encap != nil ||
		r.Src != nil || r.MTU != 0 || r.AdvMSS != 0 || r.Realm != 0 || r.Flags&unix.RTNH_F_DEAD != 0
}

// readEntries reads the neighbour and FDB entries of the device into h.
func (t *table) readEntries(h *have, device int) error {
	h.neighs, h.fdb = map[netip.Addr]haveNeighbour{}, map[MAC][]FDBEntry{}
	neighs, err := nldump.Whole(func() ([]netlink.Neigh, error) { return t.handle.NeighList(device, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("reading the neighbour table: %w", err)
	}
	for _, n := range neighs {
		if ip, ok := netip.AddrFromSlice(n.IP.To4()); ok {
			h.neighs[ip] = haveNeighbour{
				Neighbour: Neighbour{IP: ip, MAC: macOf(n.HardwareAddr)},
				permanent: n.State&unix.NUD_PERMANENT != 0,
			}
		}
	}
	fdb, err := nldump.Whole(func() ([]netlink.Neigh, error) { return t.handle.NeighList(device, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("reading the FDB: %w", err)
	}
	for _, f := range fdb {
		mac := macOf(f.HardwareAddr)
		dst, _ := netip.AddrFromSlice(f.IP.To4())
		if f.VNI != 0 {
			dst = netip.Addr{} // it is another than the device's
		}
		h.fdb[mac] = append(h.fdb[mac], FDBEntry{MAC: mac, Dst: dst})
	}
	return nil
}

func macOf(hw net.HardwareAddr) (m MAC) {
	copy(m[:], hw)
	return m
}

// apply makes one change. device is the index of the State's device.
func (t *table) apply(c change, device int) error {
	switch c.op {
	case setRoute:
		link, ok := t.index(c.route.Dev)
		if !ok {
			return fmt.Errorf("%v: there is no interface %s", c, c.route.Dev)
		}
		r := &netlink.Route{
			Dst: ipNet(c.route.Dst), LinkIndex: link, Table: unix.RT_TABLE_MAIN,
			Protocol: netlink.RouteProtocol(t.owner.Protocol), Type: unix.RTN_UNICAST,
		}
		if c.route.Via.IsValid() {
			r.Gw = c.route.Via.AsSlice()
		} else {
			r.Scope = netlink.SCOPE_LINK
		}
		if c.route.OnLink {
			r.Flags = int(netlink.FLAG_ONLINK)
		}
		return because(t.handle.RouteReplace(r), "%v", c)
	case delRoute:
		r := c.old.raw.(netlink.Route)
		return because(gone(t.handle.RouteDel(&r)), "%v", c)
	case setNeigh:
		return because(t.handle.NeighSet(&netlink.Neigh{
			LinkIndex: device, Family: unix.AF_INET, State: unix.NUD_PERMANENT,
			IP: c.neigh.IP.AsSlice(), HardwareAddr: c.neigh.MAC[:],
		}), "%v", c)
	case delNeigh:
		return because(gone(t.handle.NeighDel(&netlink.Neigh{
			LinkIndex: device, Family: unix.AF_INET, IP: c.neigh.IP.AsSlice(),
		})), "%v", c)
	case setFDB:
		return because(t.handle.NeighSet(fdbEntry(c.fdb, device)), "%v", c)
	case clearFDB, delFDB:
		return because(gone(t.handle.NeighDel(fdbEntry(c.fdb, device))), "%v", c)
	case conflict:
		return fmt.Errorf("%v: the host has a route of its own to %v, which stays", c, c.route.Dst)
	}
	panic("unknown change")
}

func fdbEntry(f FDBEntry, device int) *netlink.Neigh {
	dst := f.Dst
	if !dst.IsValid() {
		// To the kernel, that is all destinations, whatever their ports are.
		dst = netip.IPv4Unspecified()
	}
	return &netlink.Neigh{
		LinkIndex: device, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		HardwareAddr: f.MAC[:], IP: dst.AsSlice(),
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// gone takes it for done when what is to be deleted is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func because(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
