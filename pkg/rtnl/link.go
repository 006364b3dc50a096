package rtnl

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Link is what a notification says of an interface, as far as it is of interest
// here.
type Link struct {
	Index int32
	Name  string
	Kind  string // such as "vxlan"; empty for hardware
	Up    bool   // as set by an administrator
	MTU   int
	MAC   MAC
}

// ParseLink reads what follows the header of an RTM_NEWLINK or RTM_DELLINK. It
// reports false for what concerns a link only as the port of a bridge.
func ParseLink(b []byte) (l Link, ok bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return l, false
	}
	l = Link{Index: int32(order.Uint32(b[4:])), Up: order.Uint32(b[8:])&unix.IFF_UP != 0}
	for kind, v := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = text(v)
		case unix.IFLA_MTU:
			l.MTU = int(number(v))
		case unix.IFLA_ADDRESS:
			copy(l.MAC[:], v)
		case unix.IFLA_LINKINFO:
			for kind, v := range attributes(v) {
				if kind == unix.IFLA_INFO_KIND {
					l.Kind = text(v)
				}
			}
		}
	}
	return l, true
}

// text is an attribute that ends in a zero byte.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// Address is an IPv4 address of an interface.
type Address struct {
	Link int32 // the interface's index
	// Prefix is the address itself with the length of what is on link.
	Prefix netip.Prefix
	// Peer is the other end's address, invalid where the link has more than two
	// ends.
	Peer netip.Addr
}

// ParseAddress reads what follows the header of an RTM_NEWADDR or RTM_DELADDR.
// It reports false for what is no IPv4 address.
func ParseAddress(b []byte) (a Address, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg || b[0] != unix.AF_INET {
		return a, false
	}
	var local, other netip.Addr
	for kind, v := range attributes(b[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL:
			local = address(v)
		case unix.IFA_ADDRESS: // the same again, where there is no peer
			other = address(v)
		}
	}
	a = Address{Link: int32(order.Uint32(b[4:])), Prefix: netip.PrefixFrom(local, int(b[1]))}
	if other != local {
		a.Peer = other
	}
	return a, a.Prefix.IsValid()
}
