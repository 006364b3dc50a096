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

func (b hostgw) MTU() int { return b.host.Interface.MTU }

func (b hostgw) Run(ctx context.Context, own subnet.Lease, leases <-chan []subnet.Lease, synced func([]error)) error {
	return kernel.Run(ctx, backend.Owner, leases, func(leases []subnet.Lease, view kernel.Host) (kernel.State, []error) {
		return plan(b.host, own.Subnet, leases, view)
	}, synced)
}

// plan gives each peer on the link a route through it.
func plan(host backend.Host, own netip.Prefix, leases []subnet.Lease, view kernel.Host) (want kernel.State, faults []error) {
	peers, faults := backend.Peers(host, Type, own, leases)
	want.Local = []netip.Prefix{own}
	want.Routes = make([]kernel.Route, 0, len(peers))
	for _, l := range peers {
		if !view.OnLink(l.PublicIP, host.Interface.Name) {
			faults = append(faults, fmt.Errorf("the peer %v cannot be reached: its address is not on the link of %s, which host-gw needs; vxlan with DirectRouting does without",
				l, host.Interface.Name))
			continue
		}
		want.Routes = append(want.Routes, kernel.Route{Dst: l.Subnet, Via: l.PublicIP, Dev: host.Interface.Name})
	}
	return want, faults
}
