// Package status is what there is to be seen of this host's part in the network,
// at a glance. Node is what the daemon tells of itself, or what can be found out
// without one; Inspect compares the kernel with it, which makes a Report; and that
// is written as a table or as JSON. Nothing is changed anywhere.
//
// The kernel is read by who asks and not by the daemon, so that a daemon that is
// stuck, or believes what is not so, cannot say that all is well.
package status

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
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
	// Leases are all leases that count, Own among them, in order of their subnets.
	Leases []*subnet.Lease `json:"-"`
}

// Write writes a node as a series of JSON values: itself, how many leases there
// are, and each of them. One value with thousands of leases in it would have to be
// made as a whole.
func (n Node) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	if err := errors.Join(e.Encode(n), e.Encode(len(n.Leases))); err != nil {
		return err
	}
	for _, l := range n.Leases {
		if err := e.Encode(l); err != nil {
			return err
		}
	}
	return b.Flush()
}

// ReadNode reads what Write has written.
func ReadNode(r io.Reader) (n Node, err error) {
	d := json.NewDecoder(r)
	leases := 0
	if err := errors.Join(d.Decode(&n), d.Decode(&leases)); err != nil {
		return n, err
	}
	for range leases {
		l := &subnet.Lease{}
		if err := d.Decode(l); err != nil {
			return n, err
		}
		n.Leases = append(n.Leases, l)
	}
	return n, nil
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
