package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"flanneld/backend/table"
	"flanneld/subnet"
)

// Network is all leases there are, and how many there can be.
type Network struct {
	Prefix string `json:"prefix"`
	// Config is nil where there is none that can be used; ConfigError says why.
	Config      *Config `json:"config"`
	ConfigError string  `json:"configError,omitempty"`
	// Subnets is how many may be leased, Leased how many of these are, and Free how
	// many are not: all 0 without a config.
	Subnets uint64 `json:"subnets"`
	Leased  uint64 `json:"leased"`
	Free    uint64 `json:"free"`
	// Leases are in order of their subnets.
	Leases []Entry `json:"leases"`
	// Unreadable are entries that are no leases, by their keys.
	Unreadable []Unreadable `json:"unreadable"`
}

// Entry is a lease of some host.
type Entry struct {
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"publicIP"`
	Backend  string       `json:"backend"`
	Reserved bool         `json:"reserved"`
	// RemainingSeconds is until the lease ends; nil for a reservation.
	RemainingSeconds *float64 `json:"remainingSeconds"`
	// Outside says that the network config has no such subnet.
	Outside bool `json:"outside"`
}

// Unreadable is an entry that nobody can use.
type Unreadable struct {
	Key   string `json:"key"`
	Error string `json:"error"`
}

// NetworkFromDaemon asks the daemon on this host. It is local.ErrNone where none runs.
func NetworkFromDaemon(ctx context.Context) (n Network, err error) {
	err = ask(ctx, LeasesPath, func(r io.Reader) error { return json.NewDecoder(r).Decode(&n) })
	return n, err
}

// ReadNetwork reads a network from a store. A config that is missing or wrong is no
// error.
func ReadNetwork(ctx context.Context, store subnet.Store, prefix string) (Network, error) {
	ctx, cancel := context.WithTimeout(ctx, askingTime)
	defer cancel()
	n := Network{Prefix: prefix, Leases: []Entry{}, Unreadable: []Unreadable{}}
	text, _, err := store.Config(ctx)
	if err != nil && !errors.Is(err, subnet.ErrNotFound) {
		return n, late(ctx, err)
	}
	c, _, cerr := table.ParseConfig(text)
	switch {
	case err != nil:
		n.ConfigError = err.Error()
	case cerr != nil:
		n.ConfigError = cerr.Error()
	default:
		n.Config = &Config{c.Network, c.SubnetLen, c.SubnetMin.Addr(), c.SubnetMax.Addr()}
	}
	entries, _, err := store.List(ctx)
	if err != nil {
		return n, late(ctx, err)
	}
	all, unreadable := decode(entries)
	n.Unreadable = append(n.Unreadable, unreadable...)
	for _, l := range all {
		e := Entry{Subnet: l.Subnet, PublicIP: l.PublicIP, Backend: l.BackendType, Reserved: l.Reserved()}
		if !e.Reserved {
			left := time.Until(l.Expires).Seconds()
			e.RemainingSeconds = &left
		}
		e.Outside = n.Config != nil && !c.Fits(l.Subnet)
		n.Leases = append(n.Leases, e)
	}
	if n.Config != nil {
		taken := all
		for _, u := range unreadable { // nobody gets it all the same
			if p, err := subnet.ParseKey(u.Key); err == nil {
				taken = append(taken, &subnet.Lease{Subnet: p})
			}
		}
		n.Subnets, n.Free = c.Subnets(), c.Free(taken)
		n.Leased = n.Subnets - n.Free
	}
	return n, nil
}

// late is err, or that etcd has taken too long.
func late(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("etcd has not answered within %v", askingTime)
	}
	return err
}

// WriteLeases writes all leases of a network, and how full it is.
func (t Text) WriteLeases(to io.Writer, n Network) error {
	w := &strings.Builder{}
	rows := [][]cell{{{"SUBNET", bold}, {"PUBLIC IP", bold}, {"BACKEND", bold}, {"TIME LEFT", bold}, {"", plain}}}
	for _, l := range n.Leases {
		left, remark := cell{"reserved", plain}, cell{}
		if !l.Reserved {
			left.text = span(time.Duration(*l.RemainingSeconds * float64(time.Second)))
		}
		if l.Outside {
			remark = cell{"none of the network's subnets", yellow}
		}
		rows = append(rows, []cell{{l.Subnet.String(), plain}, {l.PublicIP.String(), plain}, {l.Backend, plain}, left, remark})
	}
	if len(rows) > 1 {
		t.columns(w, "", rows)
		fmt.Fprintln(w)
	}
	for _, u := range n.Unreadable {
		fmt.Fprintln(w, t.paint(cell{fmt.Sprintf("%s/subnets/%s cannot be read: %s", n.Prefix, printable(u.Key), printable(u.Error)), yellow}))
	}
	if n.Config == nil {
		fmt.Fprintln(w, count(len(n.Leases), "lease"))
		fmt.Fprintln(w, t.paint(cell{"the network config cannot be used: " + n.ConfigError, red}))
		_, err := io.WriteString(to, w.String())
		return err
	}
	fmt.Fprintf(w, "%s; of the %d subnets of %v (%v to %v, /%d) %d taken, %d free: %.1f %% full\n",
		count(len(n.Leases), "lease"), n.Subnets, n.Config.Network, n.Config.SubnetMin, n.Config.SubnetMax, n.Config.SubnetLen,
		n.Leased, n.Free, 100*float64(n.Leased)/float64(n.Subnets))
	_, err := io.WriteString(to, w.String())
	return err
}
