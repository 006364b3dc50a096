package status

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"flanneld/backend"
	"flanneld/backend/hostgw"
	"flanneld/backend/table"
	"flanneld/network/local"
	"flanneld/pkg/echo"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

// Report says how this host and its peers are. Its JSON is for scripts: fields may
// be added to it, and those that are there keep their meaning.
type Report struct {
	// Well says that nothing is wrong, here or with a peer.
	Well bool `json:"well"`
	// Problems are what is wrong with this host, Notes what works and is to be known.
	Problems []string `json:"problems"`
	Notes    []string `json:"notes"`

	Daemon    *Daemon    `json:"daemon"`
	Lease     *Lease     `json:"lease"`
	Config    *Config    `json:"config"`
	Backend   string     `json:"backend"`
	Device    *Device    `json:"device"`
	Interface Interface  `json:"interface"`
	PublicIP  netip.Addr `json:"publicIP"`
	Etcd      Etcd       `json:"etcd"`
	Summary   Summary    `json:"summary"`
	Peers     []Peer     `json:"peers"`

	hangs bool // there is a daemon, and it does not answer
}

// Lease is this host's.
type Lease struct {
	Subnet   netip.Prefix `json:"subnet"`
	Reserved bool         `json:"reserved"`
	// RemainingSeconds is until the lease ends; nil for a reservation.
	RemainingSeconds *float64 `json:"remainingSeconds"`
}

// Config is the network config in use.
type Config struct {
	Network   netip.Prefix `json:"network"`
	SubnetLen int          `json:"subnetLen"`
	SubnetMin netip.Addr   `json:"subnetMin"`
	SubnetMax netip.Addr   `json:"subnetMax"`
}

// Device is the backend's network device.
type Device struct {
	Name  string     `json:"name"`
	MTU   int        `json:"mtu"`
	Addr  netip.Addr `json:"address"`
	Wrong []string   `json:"wrong"`
}

// Interface is the one that carries the traffic between hosts.
type Interface struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"address"`
	MTU  int        `json:"mtu"`
}

// Etcd is where the network is kept.
type Etcd struct {
	Prefix  string   `json:"prefix"`
	Members []Member `json:"members"`
}

// Summary counts peers.
type Summary struct {
	Peers int `json:"peers"`
	// Wrong are those without a path, or with entries that are not right.
	Wrong int `json:"wrong"`
	// Silent are those that do not answer, nil where nobody asked.
	Silent *int `json:"silent"`
}

// How the kernel has an entry, beside the words of kernel.Wrong.
const (
	right = "ok"
	none  = "-" // there need be none
)

// Peer is another host.
type Peer struct {
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"publicIP"`
	// Reached is how: "direct", or the name of the backend; empty where there is no
	// path.
	Reached string `json:"reached"`
	// Route, Neighbour and FDB say how the kernel has them: "ok", "missing", "wrong",
	// "in the way", or "-" where there need be none.
	Route     string `json:"route"`
	Neighbour string `json:"neighbour"`
	FDB       string `json:"fdb"`
	// Problems say what is wrong.
	Problems []string `json:"problems"`
	// Probe is what came of asking whether it answers; nil where nobody asked.
	Probe *Probe `json:"probe"`
}

// Probe is an ICMP echo to a peer.
type Probe struct {
	Addr    netip.Addr `json:"address"`
	Answers bool       `json:"answers"`
	// Seconds is the round trip.
	Seconds float64 `json:"seconds,omitempty"`
	Error   string  `json:"error,omitempty"`
}

func (p *Peer) wrong() bool { return len(p.Problems) > 0 }

// Inspect compares this host's kernel with what its node ought to have there.
func Inspect(n Node) Report {
	r := Report{
		Daemon: n.Daemon, PublicIP: n.PublicIP, Etcd: Etcd{n.Prefix, n.Members}, Peers: []Peer{}, Problems: []string{}, Notes: []string{},
		Interface: Interface{n.Interface.Name, n.Interface.Addr, n.Interface.MTU},
	}
	if n.Daemon == nil {
		r.hangs = !errors.Is(n.Missing, local.ErrNone)
		r.problem("%v", n.Missing)
		r.Notes = append(r.Notes, "firewall rules are not looked at without a daemon")
	} else {
		r.Problems, r.Notes = append(r.Problems, n.Daemon.Problems...), append(r.Notes, n.Daemon.Notes...)
	}
	reachable := slices.ContainsFunc(n.Members, func(m Member) bool { return m.Answers })
	if !reachable {
		r.problem("etcd: no endpoint answers")
	} else if n.Daemon == nil && n.Config == "" {
		r.problem("there is no network config at %s/config", n.Prefix)
	}
	r.inspect(n)
	said := map[string]bool{}
	for _, p := range r.Peers {
		r.Summary.Peers++
		if p.wrong() {
			r.Summary.Wrong++
		}
		for _, text := range p.Problems {
			said["data plane: "+text] = true
		}
	}
	// What the daemon says of a peer's entry is said of that peer.
	r.Problems = slices.DeleteFunc(r.Problems, func(text string) bool { return said[text] })
	r.judge()
	return r
}

// Since drops what an earlier look has not shown: what is wrong for a moment only is a
// change under way, as there always is one where leases come and go.
func (r *Report) Since(earlier Report) {
	r.Problems = both(r.Problems, earlier.Problems)
	before := map[netip.Prefix]Peer{}
	for _, p := range earlier.Peers {
		before[p.Subnet] = p
	}
	r.Summary.Wrong = 0
	for i := range r.Peers {
		p := &r.Peers[i]
		was := before[p.Subnet]
		p.Problems = both(p.Problems, was.Problems)
		for _, entry := range []struct {
			now *string
			was string
		}{{&p.Route, was.Route}, {&p.Neighbour, was.Neighbour}, {&p.FDB, was.FDB}} {
			if *entry.now != none && *entry.now != entry.was {
				*entry.now = right
			}
		}
		if p.wrong() {
			r.Summary.Wrong++
		}
	}
	r.judge()
}

// both are the texts that two lists have.
func both(a, b []string) []string {
	return slices.DeleteFunc(a, func(text string) bool { return !slices.Contains(b, text) })
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *Report) judge() {
	r.Well = len(r.Problems) == 0 && r.Summary.Wrong == 0 && (r.Summary.Silent == nil || *r.Summary.Silent == 0)
}

// inspect is the part of Inspect for which a config is needed, and a lease.
func (r *Report) inspect(n Node) {
	if n.Config == "" {
		return
	}
	c, _, err := table.ParseConfig(n.Config)
	if err != nil {
		r.problem("the network config cannot be used: %v", err)
		return
	}
	r.Config, r.Backend = &Config{c.Network, c.SubnetLen, c.SubnetMin.Addr(), c.SubnetMax.Addr()}, c.BackendType
	if n.Own == nil {
		if n.Daemon == nil {
			r.problem("this host has no lease")
		}
		return
	}
	r.Lease = &Lease{Subnet: n.Own.Subnet, Reserved: n.Own.Reserved()}
	if !n.Own.Reserved() {
		left := time.Until(n.Own.Expires).Seconds()
		r.Lease.RemainingSeconds = &left
	}
	b, err := c.Open(backend.Host{Interface: n.Interface, PublicIP: n.PublicIP, Network: c.Network})
	if err != nil {
		r.problem("%v", err)
		return
	}
	is, err := kernel.Inspect(backend.Owner, n.Leases, b.Plan(n.Own.Subnet))
	if err != nil {
		r.problem("%v", err)
		return
	}
	r.device(is)
	r.peers(n, is)
	r.bridge()
}

func (r *Report) device(is kernel.Inspection) {
	if d := is.Want.Device; d != nil {
		r.Device = &Device{d.Name, d.MTU, d.Addr, append([]string{}, is.Device...)}
		for _, w := range is.Device {
			r.problem("device %s: %s", d.Name, w)
		}
	}
	for _, w := range is.Wrong {
		if w.Route == nil && w.Neighbour == nil && w.FDB == nil {
			r.problem("data plane: %s", w.Text)
		}
	}
}

// peers says of each lease but this host's own how it is reached.
func (r *Report) peers(n Node, is kernel.Inspection) {
	routes := map[netip.Prefix]*kernel.Route{}
	for _, route := range is.Want.Routes {
		routes[route.Dst] = route
	}
	neighbours, fdb := map[netip.Addr]*kernel.Neighbour{}, map[kernel.MAC]*kernel.FDBEntry{}
	for _, e := range is.Want.Neighbours {
		neighbours[e.IP] = e
	}
	for _, e := range is.Want.FDB {
		fdb[e.MAC] = e
	}
	wrong := map[any]kernel.Wrong{} // by pointers to the entries that are wanted
	for _, w := range is.Wrong {
		for _, key := range []any{w.Route, w.Neighbour, w.FDB} {
			wrong[key] = w
		}
	}
	faults := map[*subnet.Lease]error{}
	for _, err := range is.Faults {
		var f *backend.Fault
		if errors.As(err, &f) {
			faults[f.Lease] = f.Reason
		}
	}
	for _, l := range n.Leases {
		if l.Subnet == n.Own.Subnet {
			continue
		}
		if l.PublicIP == n.PublicIP {
			r.Notes = append(r.Notes, fmt.Sprintf("lease: %v bears this host's address too: it had that subnet before, or another host has its address", l.Subnet))
			continue
		}
		p := Peer{Subnet: l.Subnet, PublicIP: l.PublicIP, Route: none, Neighbour: none, FDB: none, Problems: []string{}}
		how := func(entry any) string {
			if w, ok := wrong[entry]; ok {
				p.Problems = append(p.Problems, w.Text)
				return w.Short
			}
			return right
		}
		route := routes[l.Subnet]
		if route == nil { // with udp there is one for all
			route = routes[r.Config.Network]
		}
		if fault := faults[l]; fault != nil {
			p.Problems = append(p.Problems, fault.Error())
		} else if route != nil {
			p.Reached = "direct"
			if d := is.Want.Device; d != nil && route.Dev == d.Name {
				p.Reached = r.Backend
			}
			p.Route = how(route)
			if e := neighbours[route.Via]; e != nil {
				p.Neighbour = how(e)
				if e := fdb[e.MAC]; e != nil {
					p.FDB = how(e)
				}
			}
		}
		r.Peers = append(r.Peers, p)
	}
}

// Ask asks all peers that there is a path to whether they answer. An error, such as
// echo.ErrNotAllowed, is of none of them.
func (r *Report) Ask(ctx context.Context) error {
	var peers []*Peer
	var addrs []netip.Addr
	for i := range r.Peers {
		p := &r.Peers[i]
		if p.Reached != "" {
			peers, addrs = append(peers, p), append(addrs, r.overlay(p))
		}
	}
	answers, err := echo.Ask(ctx, addrs)
	if err != nil {
		return err
	}
	silent := 0
	for i, a := range answers {
		p := &Probe{Addr: addrs[i], Answers: a.Err == nil}
		if a.Err == nil {
			p.Seconds = a.Took.Seconds()
		} else {
			silent++
			p.Error = a.Err.Error()
		}
		peers[i].Probe = p
	}
	r.Summary.Silent = &silent
	r.judge()
	return nil
}

// overlay is the address of a peer in its own subnet: its device's, or, where the
// backend has no device, the one that dockerd's bridge has.
func (r *Report) overlay(p *Peer) netip.Addr {
	if r.Backend == hostgw.Type {
		return p.Subnet.Addr().Next()
	}
	return p.Subnet.Addr()
}
