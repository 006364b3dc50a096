// Package status is what there is to be seen of this host's part in the network,
// at a glance. Node is what the daemon tells of itself, or what can be found out
// without one; Inspect compares the kernel with it, which makes a Report; and that
// is written as a table or as JSON. Nothing is changed anywhere.
//
// The kernel is read by who asks and not by the daemon, so that a daemon that is
// stuck, or believes what is not so, cannot say that all is well.
package status

import (
	"net/netip"
	"time"

	"flanneld/pkg/extif"
	"flanneld/subnet"
)

// Paths of what the daemon answers on its own socket.
const (
	NodePath   = "/node"   // a Node
	LeasesPath = "/leases" // a Network
)

// Node is this host's part in the network, as far as it is known.
type Node struct {
	// Daemon is nil where none runs, or none that answers; Missing says which.
	Daemon    *Daemon
	Missing   error `json:"-"`
	Interface extif.Interface
	// PublicIP is what peers are told.
	PublicIP netip.Addr
	// Prefix is the directory in etcd, Members its members.
	Prefix  string
	Members []Member
	// Config is the text of the network config in use, empty where there is none.
	Config string
	// Own is this host's lease, nil where there is none.
	Own *subnet.Lease
	// Leases are all leases that count, Own among them.
	Leases []*subnet.Lease
}

// Daemon is what a daemon says of itself.
type Daemon struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Ready says that it has told the service manager so.
	Ready bool `json:"ready"`
	// Problems are what is wrong; Notes what works and is to be known. Both are
	// those of /healthz.
	Problems []string `json:"problems"`
	Notes    []string `json:"notes"`
}

// Member is a member of etcd.
type Member struct {
	Endpoint string `json:"endpoint"`
	// InUse is the one that has last answered this host.
	InUse   bool `json:"inUse"`
	Answers bool `json:"answers"`
	// Seconds is how long it took to answer, or to find out that it does not.
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}
