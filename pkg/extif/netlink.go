package extif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/nldump"
)

// look reads the snapshot from the kernel; canReach may be the zero Addr.
func look(canReach netip.Addr) (snapshot, error) {
	var s snapshot
	links, _, err := nldump.Whole(netlink.LinkList)
	if err != nil {
		return s, fmt.Errorf("listing the interfaces: %w", err)
	}
	addrs, _, err := nldump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return s, fmt.Errorf("listing the IPv4 addresses: %w", err)
	}
	s.defaults, _, err = nldump.Whole(defaultRoutes)
	if err != nil {
		return s, fmt.Errorf("listing the IPv4 routes: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		entry := link{
			name: a.Name, index: a.Index, mtu: a.MTU,
			up:       a.Flags&net.FlagUp != 0,
			loopback: a.Flags&net.FlagLoopback != 0,
			port:     a.MasterIndex != 0,
		}
		// Tunnels have an IP address here, the loopback has zeros.
		if len(a.HardwareAddr) == 6 && !entry.loopback {
			entry.mac = a.HardwareAddr.String()
		}
		for _, addr := range addrs {
			if addr.LinkIndex != a.Index || addr.IPNet == nil {
				continue
			}
			ip, ok := netip.AddrFromSlice(addr.IP)
			if !ok {
				continue
			}
			// An address with a peer's address opposite has a mask of 32 here.
			bits, _ := addr.Mask.Size()
			entry.addrs = append(entry.addrs, address{
				prefix:    netip.PrefixFrom(ip.Unmap(), bits),
				secondary: addr.Flags&unix.IFA_F_SECONDARY != 0,
				global:    addr.Scope == unix.RT_SCOPE_UNIVERSE,
			})
		}
		s.links = append(s.links, entry)
	}
	if canReach.IsValid() {
		s.reach, s.reachErr = reach(canReach)
	}
	return s, nil
}

// defaultRoutes lists the IPv4 default routes of the main table.
func defaultRoutes() ([]defaultRoute, error) {
	var found []defaultRoute
	err := netlink.RouteListFilteredIter(netlink.FAMILY_V4, &netlink.Route{}, 0, func(r netlink.Route) bool {
		if !isDefault(r.Dst) || r.Type != unix.RTN_UNICAST {
			return true
		}
		index := r.LinkIndex
		if len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		found = append(found, defaultRoute{index: index, metric: r.Priority})
		return true
	})
	return found, err
}

// isDefault knows both forms in which netlink versions give the destination of
// a default route: none at all, and 0.0.0.0/0.
func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}

// reach asks the kernel where it would send a packet to addr.
func reach(addr netip.Addr) (index int, err error) {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		return 0, err
	}
	if len(routes) == 0 {
		return 0, errors.New("it answered with no route")
	}
	return routes[0].LinkIndex, nil
}
