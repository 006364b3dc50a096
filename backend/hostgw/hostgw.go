// Package hostgw is the backend that sends packets as they are: each peer is
// the gateway to its own subnet. It needs all hosts on one L2 segment, and
// costs nothing. Plan is all there is to it.
package hostgw

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"flanneld/backend"
	"flanneld/pkg/jsonfields"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

// Type is the backend's name in config and leases.
const Type = "host-gw"

// Parse implements backend.Parse. There are no fields.
func Parse(*jsonfields.Object) (backend.Open, error) { return open, nil }

func open(host backend.Host) (backend.Backend, error) {
	own := slices.ContainsFunc(host.Interface.Addrs, func(p netip.Prefix) bool { return p.Addr() == host.PublicIP })
	if !own {
		return nil, fmt.Errorf("the backend %s cannot use the public IP %v: peers would send packets to it as a gateway, and it is no address of %s (%v)",
			Type, host.PublicIP, host.Interface.Name, host.Interface.Addr)
	}
	return hostgw{host}, nil
}

type hostgw struct{ host backend.Host }

func (b hostgw) Data() json.RawMessage { return nil }

// Check is nil always: any kernel can do this.
func (b hostgw) Check() error { return nil }

func (b hostgw) MTU() int { return b.host.Interface.MTU }

func (b hostgw) Run(ctx context.Context, own subnet.Lease, leases <-chan []*subnet.Lease, synced func(kernel.Comparison)) error {
	return kernel.Run(ctx, backend.Owner, leases, b.Plan(own.Subnet), synced)
}

// Plan implements backend.Backend: each peer on the link gets a route through it.
func (b hostgw) Plan(own netip.Prefix) kernel.Plan[[]*subnet.Lease] {
	host := b.host
	paths := backend.Paths{
		Filter: backend.Filter{Host: host, Type: Type, Own: own},
		To: func(peer *subnet.Lease, view kernel.Host) (backend.Path, error) {
			if !view.Linked(host.Interface.Name) {
				// Not of each peer: it is the same for all, and may come and go.
				return backend.Path{}, &backend.Fault{Lease: peer, General: true,
					Reason: fmt.Errorf("no peer can be reached: nothing is on the link of %s, which may be down", host.Interface.Name)}
			}
			if !view.OnLink(peer.PublicIP, host.Interface.Name) {
				return backend.Path{}, fmt.Errorf("it cannot be reached: its address is not on the link of %s, which host-gw needs; vxlan with DirectRouting does without",
					host.Interface.Name)
			}
			return backend.Path{Route: &kernel.Route{Dst: peer.Subnet, Via: peer.PublicIP, Dev: host.Interface.Name}}, nil
		},
	}
	return func(leases []*subnet.Lease, view kernel.Host) (want kernel.State, faults []error) {
		want.Local = []netip.Prefix{own}
		faults = paths.Set(&want, leases, view)
		return want, faults
	}
}
