package rtnl

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Route is an IPv4 route.
type Route struct {
	Dst netip.Prefix
	// Table, Protocol, Scope and Type are the RT_TABLE_, RTPROT_, RT_SCOPE_ and
	// RTN_ numbers of rtnetlink(7). A new route's table is the main one.
	Table                 uint32
	Protocol, Scope, Type uint8
	TOS                   uint8
	Metric                uint32
	// NextHop is the ID of a next-hop object, 0 where the route has Gateway and
	// Link of its own. The kernel shows those of the object as well, unless the
	// sysctl net.ipv4.nexthop_compat_mode is off.
	NextHop uint32
	Gateway netip.Addr // invalid for none
	Link    int32      // the interface's index, 0 for none
	OnLink  bool       // Gateway is on Link whatever the addresses there say
	// Dead is a route that the kernel does not use, its link being down.
	Dead bool
	// Via is a route whose gateway is no IPv4 address (RTA_VIA).
	Via bool
	// Multipath is a route with several next hops.
	Multipath bool
	// Other is a route with anything else to it that is not expressed here.
	Other bool
}

// rtaNHID is RTA_NH_ID of linux/rtnetlink.h, which package unix does not have.
const rtaNHID = 30

// ParseRoute reads what follows the header of an RTM_NEWROUTE or RTM_DELROUTE.
// It reports false for what is no IPv4 route.
func ParseRoute(b []byte) (r Route, ok bool) {
	if len(b) < unix.SizeofRtMsg || b[0] != unix.AF_INET || b[1] > 32 {
		return r, false
	}
	dst := netip.IPv4Unspecified()
	r = Route{TOS: b[3], Table: uint32(b[4]), Protocol: b[5], Scope: b[6], Type: b[7]}
	flags := order.Uint32(b[8:])
	r.OnLink, r.Dead = flags&unix.RTNH_F_ONLINK != 0, flags&unix.RTNH_F_DEAD != 0
	r.Other = b[2] != 0 // a source prefix
	for kind, v := range attributes(b[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst = address(v)
		case unix.RTA_TABLE:
			r.Table = number(v)
		case unix.RTA_PRIORITY:
			r.Metric = number(v)
		case rtaNHID:
			r.NextHop = number(v)
		case unix.RTA_GATEWAY:
			r.Gateway = address(v)
		case unix.RTA_OIF:
			r.Link = int32(number(v))
		case unix.RTA_MULTIPATH:
			r.Multipath = true
		case unix.RTA_VIA:
			r.Via, r.Other = true, true
		case unix.RTA_PREFSRC, unix.RTA_METRICS, unix.RTA_FLOW, unix.RTA_ENCAP:
			r.Other = true
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(b[1]))
	return r, r.Dst.IsValid()
}

// put adds a request's body. Of a route to be deleted the kernel compares what
// is given; nothing that it cannot have is.
func (r Route) put(b []byte) []byte {
	table := uint8(unix.RT_TABLE_MAIN)
	if r.Table > 255 {
		table = unix.RT_TABLE_UNSPEC // RTA_TABLE says it
	} else if r.Table != 0 {
		table = uint8(r.Table)
	}
	b = append(b, unix.AF_INET, uint8(r.Dst.Bits()), 0, r.TOS, table, r.Protocol, r.Scope, r.Type)
	flags := uint32(0)
	if r.OnLink && r.NextHop == 0 {
		flags = unix.RTNH_F_ONLINK
	}
	b = order.AppendUint32(b, flags)
	b = putAddress(b, unix.RTA_DST, r.Dst.Addr())
	if r.Table > 255 {
		b = putNumber(b, unix.RTA_TABLE, r.Table)
	}
	if r.Metric != 0 {
		b = putNumber(b, unix.RTA_PRIORITY, r.Metric)
	}
	if r.NextHop != 0 {
		return putNumber(b, rtaNHID, r.NextHop)
	}
	if r.Gateway.IsValid() {
		b = putAddress(b, unix.RTA_GATEWAY, r.Gateway)
	}
	if r.Link != 0 {
		b = putNumber(b, unix.RTA_OIF, uint32(r.Link))
	}
	return b
}

// ReplaceRoute adds a route in the place of the first that has the same
// destination, TOS and metric, if there is one.
func (b *Batch) ReplaceRoute(r Route) {
	b.add(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, r.put)
}

// DeleteRoute deletes the first route that has all that r has.
func (b *Batch) DeleteRoute(r Route) { b.add(unix.RTM_DELROUTE, 0, r.put) }

// Routes calls each with every IPv4 route of a table. each must not keep the
// socket busy.
func (s *Socket) Routes(table uint32, each func(Route)) error {
	request := append([]byte{unix.AF_INET}, make([]byte, unix.SizeofRtMsg-1)...)
	if table <= 255 {
		request[4] = uint8(table) // a filter, where the kernel knows of such
	}
	err := s.dump(unix.RTM_GETROUTE, request, func(m Message) {
		if r, ok := ParseRoute(m.Data); ok && r.Table == table {
			each(r)
		}
	})
	if errors.Is(err, unix.ENOENT) { // the kernel makes a table for its first route
		return nil
	}
	return err
}
