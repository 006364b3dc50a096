// Package vxlan is the backend that wraps packets into the kernel's VXLAN. The
// kernel does all the work; the backend tells it, for each peer, where the
// peer's subnet is found: a route, a neighbour entry for the route's gateway,
// and an FDB entry for the neighbour's MAC. With DirectRouting, peers on the
// same L2 segment get a plain route instead. Start reading at Plan.
package vxlan

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

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
}

func (c config) open(host backend.Host) (backend.Backend, error) {
	if c.mtu > host.Interface.MTU {
		return nil, fmt.Errorf("the network config's Backend.MTU is %d, but %s, which carries the packets, has an MTU of %d: lower the one or raise the other",
			c.mtu, host.Interface.Name, host.Interface.MTU)
	}
	if host.Interface.MTU < minMTU+overhead {
		return nil, fmt.Errorf("%s, which carries the packets, has an MTU of %d, and the backend %s needs %d at least: VXLAN takes %d, and IPv4 wants %d for containers",
			host.Interface.Name, host.Interface.MTU, Type, minMTU+overhead, overhead, minMTU)
	}
	mac, err := c.deviceMAC(host)
	if err != nil {
		return nil, err
	}
	return &vxlan{config: c, host: host, mac: mac}, nil
}

func (c config) device() string { return "flannel." + strconv.Itoa(c.vni) }

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

// Check implements backend.Backend. That the kernel has no VXLAN shows when the device
// is made, with the reason, and until then it may be loaded.
func (b *vxlan) Check() error { return kernel.CheckVXLAN(backend.Owner, b.wanted(netip.Addr{})) }

// wanted is the device, with its address.
func (b *vxlan) wanted(addr netip.Addr) *kernel.Device {
	return &kernel.Device{
		Name: b.device(), MTU: b.MTU(), Addr: addr,
		VXLAN: &kernel.VXLAN{
			VNI: b.vni, Port: b.port, Link: b.host.Interface.Name, Source: b.host.Interface.Addr, GBP: b.gbp, MAC: b.mac,
		},
	}
}

func (b *vxlan) MTU() int {
	if b.mtu != 0 {
		return b.mtu - overhead
	}
	return b.host.Interface.MTU - overhead
}

func (b *vxlan) Run(ctx context.Context, own subnet.Lease, leases <-chan []*subnet.Lease, synced func(kernel.Comparison)) error {
	return kernel.Run(ctx, backend.Owner, leases, b.Plan(own.Subnet), synced)
}

// Plan implements backend.Backend.
func (b *vxlan) Plan(own netip.Prefix) kernel.Plan[[]*subnet.Lease] {
	paths := backend.Paths{Filter: backend.Filter{Host: b.host, Type: Type, Own: own}, To: b.path}
	frame := kernel.State{Local: []netip.Prefix{own}, Device: b.wanted(own.Addr())}
	return func(leases []*subnet.Lease, view kernel.Host) (want kernel.State, faults []error) {
		want = frame
		if !b.directRouting {
			view = kernel.Host{} // whatever it says makes no difference
		}
		faults = paths.Set(&want, leases, view)
		return want, faults
	}
}

// path is the way to a peer: direct, or through the VXLAN device.
func (b *vxlan) path(peer *subnet.Lease, view kernel.Host) (backend.Path, error) {
	if b.directRouting && view.OnLink(peer.PublicIP, b.host.Interface.Name) {
		return backend.Path{Route: &kernel.Route{Dst: peer.Subnet, Via: peer.PublicIP, Dev: b.host.Interface.Name}}, nil
	}
	mac, err := vtepMAC(peer.BackendData)
	if err == nil && mac == b.mac {
		err = fmt.Errorf("its VtepMAC %v is also this host's own; if both hosts are there, delete the device %s on one of them and restart flanneld there", mac, b.device())
	}
	if err != nil {
		return backend.Path{}, err
	}
	gateway := peer.Subnet.Addr()
	return backend.Path{
		Route:     &kernel.Route{Dst: peer.Subnet, Via: gateway, Dev: b.device(), OnLink: true},
		Neighbour: &kernel.Neighbour{IP: gateway, MAC: mac},
		FDB:       &kernel.FDBEntry{MAC: mac, Dst: peer.PublicIP},
	}, nil
}

func vtepMAC(data json.RawMessage) (kernel.MAC, error) {
	var d leaseData
	if len(data) == 0 {
		return kernel.MAC{}, errors.New("it has no BackendData with a VtepMAC")
	}
	// As nearly every host writes it. Reading that of thousands as JSON would be a
	// tenth of the time that a start takes.
	if text, ok := strings.CutPrefix(string(data), `{"VtepMAC":"`); ok && len(text) == len(`00:00:00:00:00:00"}`) && strings.HasSuffix(text, `"}`) {
		d.VtepMAC = strings.TrimSuffix(text, `"}`)
	} else if err := json.Unmarshal(data, &d); err != nil {
		return kernel.MAC{}, fmt.Errorf("its BackendData cannot be read: %w", err)
	}
	hw, err := net.ParseMAC(d.VtepMAC)
	if err != nil || !validMAC(hw) {
		return kernel.MAC{}, fmt.Errorf("its VtepMAC %q is not the MAC of a host", d.VtepMAC)
	}
	return kernel.MAC(hw), nil
}
