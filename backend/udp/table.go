package udp

import (
	"net/netip"
	"slices"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

// table says which host has which subnet. It never changes once made: the
// control path makes a new one and swaps it in, so that the packet path reads
// it without a lock. Addresses are numbers here (prefix.Uint), as that is what
// a packet header yields without conversion and what maps hash fastest.
type table struct {
	// levels has one entry per prefix length in use, longest first. All subnets
	// of a cluster are of one length unless its SubnetLen was changed, so a
	// lookup is one or two map accesses however many hosts there are.
	levels []level
	// hosts are the PublicIPs that datagrams may come from.
	hosts map[uint32]struct{}
}

type level struct {
	mask    uint32
	subnets map[uint32]uint32 // first address of the subnet to its host's PublicIP
}

// newTable makes the table of the given leases.
func newTable(peers []*subnet.Lease) *table {
	t := &table{hosts: map[uint32]struct{}{}}
	byLength := map[int]map[uint32]uint32{}
	for _, l := range peers {
		bits := l.Subnet.Bits()
		if byLength[bits] == nil {
			byLength[bits] = map[uint32]uint32{}
		}
		host := prefix.Uint(l.PublicIP)
		byLength[bits][prefix.Uint(l.Subnet.Masked().Addr())] = host
		t.hosts[host] = struct{}{}
	}
	for bits, subnets := range byLength {
		t.levels = append(t.levels, level{mask: ^uint32(0) << (32 - bits), subnets: subnets})
	}
	slices.SortFunc(t.levels, func(a, b level) int {
		if a.mask > b.mask {
			return -1
		}
		return 1
	})
	return t
}

// lookup finds the host that has the subnet addr is in, the longest such
// subnet.
func (t *table) lookup(addr uint32) (host uint32, ok bool) {
	for i := range t.levels {
		if host, ok = t.levels[i].subnets[addr&t.levels[i].mask]; ok {
			return host, true
		}
	}
	return 0, false
}

// knows reports whether addr is a peer's PublicIP.
func (t *table) knows(addr uint32) bool {
	_, ok := t.hosts[addr]
	return ok
}

func addrOf(u uint32) netip.Addr { return prefix.FromUint(u) }
