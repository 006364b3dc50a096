package rtnl

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// ndaNHID is NDA_NH_ID of linux/neighbour.h, which package unix does not have.
const ndaNHID = 13

// MAC is an Ethernet address.
type MAC = [6]byte

// Neighbour is an entry of a device's neighbour table.
type Neighbour struct {
	Link int32 // the device's index
	IP   netip.Addr
	MAC  MAC // zero where the kernel knows none
	// Permanent entries are never looked up anew nor forgotten. New ones are.
	Permanent bool
}

// FDBEntry says to which host a VXLAN device sends frames for a MAC.
type FDBEntry struct {
	Link int32 // the device's index
	MAC  MAC
	// Dst is the host. In an entry to be deleted an invalid one stands for all
	// that the MAC has.
	Dst netip.Addr
	// Other is an entry with anything else to it: another VNI, UDP port or link
	// than the device's, one that ages, one that is not the VXLAN device's own.
	Other bool
}

// ParseNeighbour reads what follows the header of an RTM_NEWNEIGH or
// RTM_DELNEIGH. It reports false for what is no IPv4 neighbour.
func ParseNeighbour(b []byte) (n Neighbour, ok bool) {
	if len(b) < unix.SizeofNdMsg || b[0] != unix.AF_INET {
		return n, false
	}
	n = Neighbour{Link: int32(order.Uint32(b[4:])), Permanent: order.Uint16(b[8:])&unix.NUD_PERMANENT != 0}
	for kind, v := range attributes(b[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.IP = address(v)
		case unix.NDA_LLADDR:
			copy(n.MAC[:], v)
		}
	}
	return n, n.IP.IsValid()
}

// ParseFDB reads what follows the header of an RTM_NEWNEIGH or RTM_DELNEIGH. It
// reports false for what is no entry of an FDB.
func ParseFDB(b []byte) (f FDBEntry, ok bool) {
	if len(b) < unix.SizeofNdMsg || b[0] != unix.AF_BRIDGE {
		return f, false
	}
	f.Link = int32(order.Uint32(b[4:]))
	f.Other = order.Uint16(b[8:])&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 || b[10]&unix.NTF_SELF == 0
	for kind, v := range attributes(b[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_LLADDR:
			if len(v) != len(f.MAC) {
				return f, false
			}
			f.MAC = MAC(v)
			ok = true
		case unix.NDA_DST:
			f.Dst = address(v)
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_SRC_VNI, unix.NDA_IFINDEX, ndaNHID:
			f.Other = true
		}
	}
	return f, ok
}

// putNeigh adds struct ndmsg.
func putNeigh(m []byte, family uint8, link int32, flags uint8) []byte {
	m = append(m, family, 0, 0, 0)
	m = order.AppendUint32(m, uint32(link))
	m = order.AppendUint16(m, unix.NUD_PERMANENT)
	return append(m, flags, 0)
}

// ReplaceNeighbour sets a permanent entry, whatever there was for its IP.
func (b *Batch) ReplaceNeighbour(n Neighbour) {
	b.add(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, func(m []byte) []byte {
		m = putNeigh(m, unix.AF_INET, n.Link, 0)
		m = putAddress(m, unix.NDA_DST, n.IP)
		return putBytes(m, unix.NDA_LLADDR, n.MAC[:])
	})
}

// DeleteNeighbour deletes the entry of an IP.
func (b *Batch) DeleteNeighbour(link int32, ip netip.Addr) {
	b.add(unix.RTM_DELNEIGH, 0, func(m []byte) []byte {
		m = putNeigh(m, unix.AF_INET, link, 0)
		return putAddress(m, unix.NDA_DST, ip)
	})
}

// ReplaceFDB sets a permanent entry in the place of the one that the MAC has. Of
// one with several destinations the kernel replaces none (EEXIST): delete it
// first.
func (b *Batch) ReplaceFDB(f FDBEntry) {
	b.add(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, f.put)
}

// DeleteFDB deletes an entry.
func (b *Batch) DeleteFDB(f FDBEntry) {
	if !f.Dst.IsValid() {
		f.Dst = netip.IPv4Unspecified() // that is how the kernel knows it
	}
	b.add(unix.RTM_DELNEIGH, 0, f.put)
}

func (f FDBEntry) put(m []byte) []byte {
	m = putNeigh(m, unix.AF_BRIDGE, f.Link, unix.NTF_SELF)
	m = putAddress(m, unix.NDA_DST, f.Dst)
	return putBytes(m, unix.NDA_LLADDR, f.MAC[:])
}

// Neighbours calls each with every IPv4 neighbour of a device.
func (s *Socket) Neighbours(link int32, each func(Neighbour)) error {
	return s.dump(unix.RTM_GETNEIGH, neighRequest(unix.AF_INET, link), func(m Message) {
		if n, ok := ParseNeighbour(m.Data); ok && n.Link == link {
			each(n)
		}
	})
}

// FDB calls each with every entry of a VXLAN device.
func (s *Socket) FDB(link int32, each func(FDBEntry)) error {
	return s.dump(unix.RTM_GETNEIGH, neighRequest(unix.AF_BRIDGE, link), func(m Message) {
		if f, ok := ParseFDB(m.Data); ok && f.Link == link {
			each(f)
		}
	})
}

// neighRequest asks for the entries of one device; a kernel that does not know
// of filters (before 5.0) answers with those of all.
func neighRequest(family uint8, link int32) []byte {
	m := append([]byte{family}, make([]byte, unix.SizeofNdMsg-1)...)
	return putNumber(m, unix.NDA_IFINDEX, uint32(link))
}
