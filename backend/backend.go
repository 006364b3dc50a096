// Package backend says what a backend is: a way to carry packets from this
// host's containers to those of other hosts. Each backend is a package below
// this one; package table lists them by name. A backend knows leases and the
// host it runs on, but no store and no other backend.
//
// Package hostgw is the smallest example: Paths picks the leases that are for it
// and asks it for the path to each, and kernel.Run keeps what its plan asks for,
// under the marks in Owner.
package backend

import (
	"context"
	"encoding/json"
	"net/netip"

	"flanneld/pkg/extif"
	"flanneld/pkg/jsonfields"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

// Parse reads a backend's own fields from the Backend object of the network
// config and checks them, without touching the host. Its errors name field and
// value. Fields it does not ask for are reported as unknown by the caller.
type Parse func(fields *jsonfields.Object) (Open, error)

// Open prepares the backend on a host, before that host has a lease: it settles
// what the lease will say. It takes nothing of the host, and changes nothing there;
// an error says why config and host do not fit together.
type Open func(host Host) (Backend, error)

// Host is what a backend needs to know of the machine it runs on.
type Host struct {
	// Interface is the one that carries the traffic between hosts.
	Interface extif.Interface
	// PublicIP is the address peers send to; usually Interface.Addr.
	PublicIP netip.Addr
	// Network is the prefix all hosts' subnets are taken from.
	Network netip.Prefix
}

// Backend is one backend, configured and opened on this host.
type Backend interface {
	// Data is the BackendData of this host's lease: what peers need to know
	// beyond its PublicIP. nil when that is nothing.
	Data() json.RawMessage

	// Check finds out, before the host has a lease, whether the host has what the
	// backend needs that another may lack, or another program hold.
	Check() error

	// Plan says what the kernel of this host ought to have, given its subnet; of the
	// faults those that are a *Fault tell which leases have no path.
	Plan(own netip.Prefix) kernel.Plan[[]*subnet.Lease]

	// MTU is the size in bytes of the largest packet a container may send.
	MTU() int

	// Run carries traffic until ctx ends, and then leaves the kernel's state in
	// place, so that traffic goes on while the daemon restarts.
	//
	// Each value received from leases, which is never closed, is the whole set of
	// leases there are now, own among them, in order of their subnets; Run makes
	// the host's state equal to what the set asks for, whatever was there before. It
	// calls synced, from one goroutine, each time it has tried; the first call
	// tells that the data plane is up, whatever has failed. That no call follows a
	// set tells that it is stuck.
	//
	// Run returns nil when ctx ends and an error only for what no retry mends.
	Run(ctx context.Context, own subnet.Lease, leases <-chan []*subnet.Lease, synced func(kernel.Comparison)) error
}
