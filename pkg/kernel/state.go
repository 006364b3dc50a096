package kernel

import (
	"fmt"
	"net/netip"
	"strings"
)

// State is everything that ought to be in the kernel on a daemon's behalf. It
// is plain data, so that the function that works it out can be tested without
// a kernel, and String shows it the way ip and bridge would.
//
// There is one route to a destination, one neighbour of an address and one FDB
// entry of a MAC. Entries are not changed once they are in a State. One State after another
// should name those that are still the same by the same pointer, and in the same
// order: then nothing but the rest is looked at.
type State struct {
	// Device is the network device the state hangs on, nil where it needs none.
	Device *Device
	// Routes are in the main table, one for each destination.
	Routes []*Route
	// Local are destinations on this host itself. A route to just one of them
	// that bears nobody's mark and leads through a gateway is left over from
	// when another host had it, and goes.
	Local []netip.Prefix
	// Neighbours and FDB are on Device, the only ones there.
	Neighbours []*Neighbour
	FDB        []*FDBEntry
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Device is a network device with the settings it ought to have, up.
type Device struct {
	Name string
	// MTU is in bytes, without the link-layer header.
	MTU int
	// Addr is the only IPv4 address the device ought to have, with no peers
	// on link: a /32.
	Addr netip.Addr
	// VXLAN says how to make the device. Where it is nil somebody else makes
	// it, as a TUN device is made by whoever reads from it; then it is only
	// configured, once it is there.
	VXLAN *VXLAN
}

// VXLAN is the shape of a VXLAN device. A device of another shape is replaced.
type VXLAN struct {
	VNI int
	// Port is the UDP port, 1 to 65535.
	Port int
	// Link names the interface that carries the tunnel.
	Link string
	// Source is the address that tunnel packets are sent from.
	Source netip.Addr
	// GBP is the Group Based Policy extension.
	GBP bool
	// MAC is the device's own address.
	MAC MAC
}

// Route is one route of the main table.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop, invalid where Dst is on the link itself.
	Via netip.Addr
	// Dev names the interface; State.Device's name is one of those allowed.
	Dev string
	// OnLink makes the kernel take Via's word that it is on Dev's link,
	// although no address of Dev says so.
	OnLink bool
}

// Neighbour is a permanent entry of the neighbour table.
type Neighbour struct {
	IP  netip.Addr
	MAC MAC
}

// FDBEntry says at which host a VXLAN device finds a MAC.
type FDBEntry struct {
	MAC MAC
	Dst netip.Addr
}

func (r Route) String() string {
	var b strings.Builder
	b.WriteString(r.Dst.String())
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %v", r.Via)
	}
	fmt.Fprintf(&b, " dev %s", r.Dev)
	if r.OnLink {
		b.WriteString(" onlink")
	}
	return b.String()
}

func (n Neighbour) String() string { return fmt.Sprintf("%v lladdr %v", n.IP, n.MAC) }

func (f FDBEntry) String() string { return fmt.Sprintf("%v dst %v", f.MAC, f.Dst) }

// devices are the names of the interfaces that the state hangs on.
func (s State) devices() map[string]bool {
	names := map[string]bool{}
	if s.Device != nil {
		names[s.Device.Name] = true
		if s.Device.VXLAN != nil {
			names[s.Device.VXLAN.Link] = true
		}
	}
	for _, r := range s.Routes {
		names[r.Dev] = true
	}
	return names
}

// sameDevice reports whether two devices ought to be the same.
func sameDevice(a, b *Device) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.VXLAN, y.VXLAN = nil, nil
	if a.VXLAN == nil || b.VXLAN == nil {
		return x == y && a.VXLAN == b.VXLAN
	}
	return x == y && *a.VXLAN == *b.VXLAN
}

// String lists the state in the words of ip(8) and bridge(8), a line an entry.
func (s State) String() string {
	var b strings.Builder
	if d := s.Device; d != nil {
		fmt.Fprintf(&b, "link %s mtu %d addr %v/32", d.Name, d.MTU, d.Addr)
		if v := d.VXLAN; v != nil {
			fmt.Fprintf(&b, " mac %v vxlan id %d local %v dstport %d", v.MAC, v.VNI, v.Source, v.Port)
			if v.GBP {
				b.WriteString(" gbp")
			}
		}
		b.WriteByte('\n')
	}
	for _, r := range s.Routes {
		fmt.Fprintf(&b, "route %v\n", r)
	}
	for _, n := range s.Neighbours {
		fmt.Fprintf(&b, "neigh %v\n", n)
	}
	for _, f := range s.FDB {
		fmt.Fprintf(&b, "fdb %v\n", f)
	}
	return b.String()
}
