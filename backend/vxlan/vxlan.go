// Package vxlan is the backend that wraps packets into the kernel's VXLAN. The
// kernel does all the work; the backend tells it, for each peer, where the
// peer's subnet is found: a route, a neighbour entry for the route's gateway,
// and an FDB entry for the neighbour's MAC. With DirectRouting, peers on the
// same L2 segment get a plain route instead. Start reading at plan.
package vxlan

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"flanneld/backend"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

// Type is the backend's name in config and leases.
const Type = "vxlan"

type vxlan struct {
	config
	host backend.Host
	mac  kernel.MAC
	read macs
}

func (c config) open(host backend.Host) (backend.Backend, error) {
	if c.mtu > host.Interface.MTU {
		return nil, fmt.Errorf("the network config's Backend.MTU is %d, but %s, which carries the packets, has an MTU of %d: lower the one or raise the other",
			c.mtu, host.Interface.Name, host.Interface.MTU)
	}
	mac, err := c.deviceMAC(host)
	if err != nil {
		return nil, err
	}
	return &vxlan{config: c, host: host, mac: mac, read: macs{}}, nil
}

func (c config) device() string { return fmt.Sprintf("flannel.%d", c.vni) }

// deviceMAC is the MAC that the device has or will have. One that exists keeps
// its own, as peers know it.
func (c config) deviceMAC(host backend.Host) (mac kernel.MAC, err error) {
	l, err := netlink.LinkByName(c.device())
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return newMAC(host, c.vni), nil
	case err != nil:
		return mac, fmt.Errorf("looking for the device %s: %w", c.device(), err)
	}
	if hw := l.Attrs().HardwareAddr; l.Type() == "vxlan" && validMAC(hw) {
		copy(mac[:], hw)
		return mac, nil
	}
	return newMAC(host, c.vni), nil
}

// newMAC makes the MAC of a host's VTEP from what identifies the host, so that
// it is the same after a reboot and peers need not learn another: a hash with
// the bits set for a unicast, locally administered address (IEEE 802). The
// interface's MAC is in it to tell hosts apart that were given one address.
func newMAC(host backend.Host, vni int) (mac kernel.MAC) {
	sum := sha256.Sum256(fmt.Appendf(nil, "VTEP of VNI %d at %v on %s", vni, host.PublicIP, host.Interface.MAC))
	copy(mac[:], sum[:])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

func validMAC(hw net.HardwareAddr) bool {
	return len(hw) == 6 && hw[0]&0x01 == 0 && kernel.MAC(hw) != kernel.MAC{}
}

// leaseData is the BackendData of a vxlan lease.
type leaseData struct {
	VtepMAC string
}

func (b *vxlan) Data() json.RawMessage {
	data, _ := json.Marshal(leaseData{b.mac.String()}) // a string always encodes
	return data
}

func (b *vxlan) MTU() int {
	if b.mtu != 0 {
		return b.mtu - overhead
	}
	return b.host.Interface.MTU - overhead
}

func (b *vxlan) Run(ctx context.Context, own subnet.Lease, leases <-chan []subnet.Lease, synced func([]error)) error {
	return kernel.Run(ctx, backend.Owner, leases, func(leases []subnet.Lease, view kernel.Host) (kernel.State, []error) {
		return b.plan(own.Subnet, leases, view)
	}, synced)
}

// plan is what the kernel ought to have for a set of leases.
func (b *vxlan) plan(own netip.Prefix, leases []subnet.Lease, view kernel.Host) (want kernel.State, faults []error) {
	peers, faults := backend.Peers(b.host, Type, own, leases)
	want.Local = []netip.Prefix{own}
	want.Device = &kernel.Device{
		Name: b.device(), MTU: b.MTU(), Addr: own.Addr(),
		VXLAN: &kernel.VXLAN{
			VNI: b.vni, Port: b.port, Link: b.host.Interface.Name, Source: b.host.Interface.Addr, GBP: b.gbp, MAC: b.mac,
		},
	}
	want.Routes = make([]kernel.Route, 0, len(peers))
	tunnels := make([]tunnel, 0, len(peers))
	for _, l := range peers {
		if b.directRouting && view.OnLink(l.PublicIP, b.host.Interface.Name) {
			want.Routes = append(want.Routes, kernel.Route{Dst: l.Subnet, Via: l.PublicIP, Dev: b.host.Interface.Name})
		} else if mac, err := b.read.of(l.BackendData, len(peers)); err != nil {
			faults = append(faults, fmt.Errorf("leaving out the lease of %v: %w", l, err))
		} else {
			tunnels = append(tunnels, tunnel{l, mac})
		}
	}
	// The host that a MAC is found at. A host that has changed its address or
	// subnet may have an old lease left: what was written last counts.
	hosts := make(map[kernel.MAC]*subnet.Lease, len(tunnels))
	for _, t := range tunnels {
		if other := hosts[t.mac]; other == nil || other.Revision < t.Revision {
			hosts[t.mac] = t.Lease
		}
	}
	hosts[b.mac] = &subnet.Lease{Subnet: own, Attrs: subnet.Attrs{PublicIP: b.host.PublicIP}}
	device := b.device()
	want.Neighbours = make([]kernel.Neighbour, 0, len(tunnels))
	want.FDB = make([]kernel.FDBEntry, 0, len(tunnels))
	for _, t := range tunnels {
		host := hosts[t.mac]
		if host.PublicIP != t.PublicIP {
			faults = append(faults, fmt.Errorf("leaving out the lease of %v: its VtepMAC %v is also that of %v; if both hosts are there, delete the device %s on one of them and restart flanneld there",
				t.Lease, t.mac, host, device))
			continue
		}
		gateway := t.Subnet.Addr()
		want.Routes = append(want.Routes, kernel.Route{Dst: t.Subnet, Via: gateway, Dev: device, OnLink: true})
		want.Neighbours = append(want.Neighbours, kernel.Neighbour{IP: gateway, MAC: t.mac})
		if host == t.Lease { // one entry for a host with several leases
			want.FDB = append(want.FDB, kernel.FDBEntry{MAC: t.mac, Dst: t.PublicIP})
		}
	}
	return want, faults
}

// tunnel is a peer that is reached through VXLAN.
type tunnel struct {
	*subnet.Lease
	mac kernel.MAC
}

// macs are the VTEP MACs of leases, by BackendData. A plan is made at each change
// of one lease among thousands, and reading JSON would be most of the work.
type macs map[string]kernel.MAC

// of reads a lease's MAC. leases is how many leases there are; much more than
// that is not kept.
func (m macs) of(data json.RawMessage, leases int) (kernel.MAC, error) {
	if mac, ok := m[string(data)]; ok {
		return mac, nil
	}
	mac, err := vtepMAC(data)
	if err != nil {
		return mac, err
	}
	if len(m) > 2*leases {
		clear(m)
	}
	m[string(data)] = mac
	return mac, nil
}

func vtepMAC(data json.RawMessage) (kernel.MAC, error) {
	var d leaseData
	if len(data) == 0 {
		return kernel.MAC{}, errors.New("it has no BackendData with a VtepMAC")
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return kernel.MAC{}, fmt.Errorf("its BackendData cannot be read: %w", err)
	}
	hw, err := net.ParseMAC(d.VtepMAC)
	if err != nil || !validMAC(hw) {
		return kernel.MAC{}, fmt.Errorf("its VtepMAC %q is not the MAC of a host", d.VtepMAC)
	}
	return kernel.MAC(hw), nil
}
