package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"flanneld/network/local"
	"flanneld/network/subnetfile"
	"flanneld/pkg/extif"
	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

const (
	// askingTime is how long etcd may take to answer.
	askingTime = 4 * time.Second
	// daemonTime is how long the daemon may, which may have to ask etcd.
	daemonTime = askingTime + 2*time.Second
)

// FromDaemon asks the daemon on this host. It is local.ErrNone where none runs.
func FromDaemon(ctx context.Context) (n Node, err error) {
	err = ask(ctx, NodePath, func(r io.Reader) error {
		n, err = ReadNode(r)
		return err
	})
	return n, err
}

// ask has one of the daemon's answers read.
func ask(ctx context.Context, path string, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, daemonTime)
	defer cancel()
	err := local.Get(ctx, path, read)
	if ctx.Err() != nil {
		return fmt.Errorf("the flanneld on this host does not answer within %v: it may hang, see its log", daemonTime)
	}
	return err
}

// Alone is what to go by where no daemon runs: what it would be started with.
type Alone struct {
	// Missing says why there is no daemon to ask.
	Missing    error
	Store      subnet.Store
	Prefix     string
	Interface  extif.Options
	PublicIP   netip.Addr // the interface's own if invalid
	SubnetFile string
}

// Node finds out what it can. An error says that this host has no interface to
// take part with; of etcd, the Node's Members say what is wrong.
func (a Alone) Node(ctx context.Context) (n Node, err error) {
	n.Missing = a.Missing
	if n.Interface, err = extif.Choose(a.Interface); err != nil {
		return n, err
	}
	n.PublicIP, n.Prefix = a.PublicIP, a.Prefix
	if !n.PublicIP.IsValid() {
		n.PublicIP = n.Interface.Addr
	}
	n.Members = Ask(ctx, a.Store)
	if slices.ContainsFunc(n.Members, func(m Member) bool { return m.Answers }) {
		if err := a.read(ctx, &n); err != nil && !errors.Is(err, subnet.ErrNotFound) {
			for i := range n.Members {
				if n.Members[i].Answers { // to who the leader is, but not to this
					n.Members[i].Answers, n.Members[i].Error = false, err.Error()
				}
			}
		}
	}
	last, _ := subnetfile.Read(a.SubnetFile)
	for _, l := range n.Leases {
		if l.PublicIP == n.PublicIP && (n.Own == nil || l.Subnet == last) {
			n.Own = l
		}
	}
	return n, nil
}

// read reads config and leases.
func (a Alone) read(ctx context.Context, n *Node) (err error) {
	ctx, cancel := context.WithTimeout(ctx, askingTime)
	defer cancel()
	if n.Config, _, err = a.Store.Config(ctx); err != nil {
		return err
	}
	entries, _, err := a.Store.List(ctx)
	n.Leases, _ = decode(entries)
	return err
}

// membersTime is how long the members of etcd may take to answer.
const membersTime = 2 * time.Second

// Ask asks the members of a store.
func Ask(ctx context.Context, store subnet.Store) []Member {
	ctx, cancel := context.WithTimeout(ctx, membersTime)
	defer cancel()
	var members []Member
	for _, m := range store.Members(ctx) {
		is := Member{Endpoint: m.Endpoint, InUse: m.InUse, Answers: m.Err == nil, Seconds: m.Took.Seconds()}
		if m.Err != nil {
			is.Error = m.Err.Error()
		}
		members = append(members, is)
	}
	return members
}

// decode reads entries, and puts the leases in order of their subnets.
func decode(entries []subnet.Entry) (all []*subnet.Lease, not []Unreadable) {
	for _, e := range entries {
		l, err := e.Decode()
		if err != nil {
			not = append(not, Unreadable{e.Key, err.Error()})
			continue
		}
		all = append(all, &l)
	}
	slices.SortFunc(all, func(a, b *subnet.Lease) int { return prefix.Compare(a.Subnet, b.Subnet) })
	return all, not
}
