package rtnl

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// NextHop is a next-hop object (Linux 5.3 and newer): where a packet goes, by a
// number that any count of routes can name. Adding a route by such a number
// costs the kernel the same however many routes there are, which a gateway
// spelled out in each of them does not: there it searches those of the same
// link for an equal one.
type NextHop struct {
	// ID is the object's number, unique on the host.
	ID uint32
	// Protocol is the RTPROT_ number of whoever made it.
	Protocol uint8
	Gateway  netip.Addr
	Link     int32 // the interface's index
	OnLink   bool  // Gateway is on Link whatever the addresses there say
	// Other is an object with anything else to it: a group, a blackhole, one
	// for IPv6.
	Other bool
	// IPv6 is one for IPv6. It takes up its ID all the same.
	IPv6 bool
}

// nhaFDB is NHA_FDB of linux/nexthop.h, which package unix does not have.
const nhaFDB = 11

// struct nhmsg: family, scope, protocol, one reserved byte, flags.
const sizeofNhMsg = 8

// ParseNextHop reads what follows the header of an RTM_NEWNEXTHOP or
// RTM_DELNEXTHOP.
func ParseNextHop(b []byte) (n NextHop, ok bool) {
	if len(b) < sizeofNhMsg {
		return n, false
	}
	n = NextHop{Protocol: b[2], OnLink: order.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0, Other: b[0] != unix.AF_INET, IPv6: b[0] == unix.AF_INET6}
	for kind, v := range attributes(b[sizeofNhMsg:]) {
		switch kind {
		case unix.NHA_ID:
			n.ID = number(v)
		case unix.NHA_OIF:
			n.Link = int32(number(v))
		case unix.NHA_GATEWAY:
			n.Gateway = address(v)
		case unix.NHA_GROUP, unix.NHA_BLACKHOLE, unix.NHA_ENCAP, nhaFDB:
			n.Other = true
		}
	}
	return n, n.ID != 0
}

// AddNextHop makes an object. It is an error (EEXIST) if its ID is taken.
func (b *Batch) AddNextHop(n NextHop) {
	b.add(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(m []byte) []byte {
		flags := uint32(0)
		if n.OnLink {
			flags = unix.RTNH_F_ONLINK
		}
		m = append(m, unix.AF_INET, 0, n.Protocol, 0)
		m = order.AppendUint32(m, flags)
		m = putNumber(m, unix.NHA_ID, n.ID)
		m = putNumber(m, unix.NHA_OIF, uint32(n.Link))
		return putAddress(m, unix.NHA_GATEWAY, n.Gateway)
	})
}

// DeleteNextHop removes an object, and with it all routes that use it, which
// makes the kernel go through the whole table: delete those first.
func (b *Batch) DeleteNextHop(id uint32) {
	b.add(unix.RTM_DELNEXTHOP, 0, func(m []byte) []byte {
		m = append(m, make([]byte, sizeofNhMsg)...)
		return putNumber(m, unix.NHA_ID, id)
	})
}

// NextHops calls each with every next-hop object of the host. A kernel that
// knows none answers EOPNOTSUPP.
func (s *Socket) NextHops(each func(NextHop)) error {
	return s.dump(unix.RTM_GETNEXTHOP, make([]byte, sizeofNhMsg), func(m Message) {
		if n, ok := ParseNextHop(m.Data); ok {
			each(n)
		}
	})
}
