package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"flanneld/backend"
	"flanneld/network/firewall"
	"flanneld/network/metrics"
	"flanneld/network/status"
	"flanneld/network/subnetfile"
	"flanneld/pkg/extif"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

// Options say how this node takes part.
type Options struct {
	// Interface says which interface carries the traffic between hosts.
	Interface extif.Options
	// PublicIP is the address peers are told; the interface's own if invalid.
	PublicIP netip.Addr
	// SubnetFile is where the lease is written for dockerd's start-up.
	SubnetFile string
	// RenewMargin is how long before its end the lease is renewed.
	RenewMargin time.Duration
	// IPMasq masquerades what leaves the network.
	IPMasq bool
	// ForwardRules accepts the network's traffic in FORWARD.
	ForwardRules bool
	// FirewallResync is how often the firewall rules are compared.
	FirewallResync time.Duration
	// HealthAddr is where /healthz and /metrics are served, invalid for nowhere.
	HealthAddr netip.AddrPort
	// Version is the daemon's, and Prefix where the store has the network, for who
	// asks.
	Version, Prefix string
	// Notify tells the service manager a state in the words of sd_notify(3).
	Notify func(state string)
	// Watchdog is how often the service manager wants to hear, at the least, that
	// the node works; 0 if it does not.
	Watchdog time.Duration
}

// Place is where this node is: the interface that carries the traffic between
// hosts, and the address at which its peers are told to reach it.
func (o Options) Place() (extif.Interface, netip.Addr, error) {
	iface, err := extif.Choose(o.Interface)
	if err != nil {
		return extif.Interface{}, netip.Addr{}, err
	}
	publicIP := o.PublicIP
	if !publicIP.IsValid() {
		publicIP = iface.Addr
	}
	if !subnet.Reachable(publicIP) {
		return extif.Interface{}, netip.Addr{}, fmt.Errorf("other hosts cannot reach this one at %v, the address of %s: choose another interface (--iface) or say where (--public-ip)", publicIP, iface.Name)
	}
	return iface, publicIP, nil
}

// Run takes part in the network until ctx ends, and then returns nil, leaving
// lease and kernel state in place. Waiting for the store and for a config that
// can be used is part of the work. An error means that this node cannot take
// part as asked, or no longer: a *subnet.LostError when another host has its
// subnet.
func Run(ctx context.Context, store subnet.Store, o Options) error {
	iface, publicIP, err := o.Place()
	if err != nil {
		return err
	}
	klog.Infof("Using the interface %s with the address %v and MTU %d; peers are told %v", iface.Name, iface.Addr, iface.MTU, publicIP)

	g, ctx := errgroup.WithContext(ctx)
	n := node{
		Options: o, impatient: store, iface: iface, publicIP: publicIP, metrics: metrics.New(o.Version),
		health: newHealth(), self: &self{}, needed: make(chan struct{}, 1), started: time.Now(), group: g,
	}
	n.store = subnet.NewPatient(n.metrics.Count(store), publicIP)
	n.self.node = status.Node{Interface: iface, PublicIP: publicIP, Prefix: o.Prefix}
	n.health.remark(n.away)
	n.health.check(n.connected)
	n.metrics.Health(func() (healthy, ready bool) {
		is := n.health.report()
		return is.Healthy, is.Ready
	})
	n.metrics.Away(func() bool {
		_, why := n.store.Away()
		return why != nil
	})
	if err := n.serve(ctx); err != nil {
		return err
	}
	g.Go(func() error { return n.join(ctx) })
	return g.Wait()
}

type node struct {
	Options
	store *subnet.Patient
	// impatient is the store for who asks and wants an answer, or to know why there
	// is none.
	impatient subnet.Store
	iface     extif.Interface
	publicIP  netip.Addr
	health    *health
	metrics   *metrics.Metrics
	self      *self
	needed    chan struct{} // memory, for an answer
	started   time.Time
	group     *errgroup.Group
}

// wait tells what the node waits for before it can take part.
func (n node) wait(what string) {
	n.Notify("STATUS=Waiting for " + what)
	n.health.wait(what)
}

// trim has the memory given back that an answer has needed.
func (n node) trim() {
	select {
	case n.needed <- struct{}{}:
	default:
	}
}

// away is a note while the store is. That is no ill health: traffic goes on, and the
// lease says when it matters.
func (n node) away() string {
	since, why := n.store.Away()
	if why == nil {
		return ""
	}
	return fmt.Sprintf("etcd: away for %v: %v", time.Since(since).Round(time.Second), why)
}

// connected is an error while this host's interface cannot carry its traffic.
func (n node) connected() error {
	iface, err := net.InterfaceByName(n.iface.Name)
	if err != nil {
		return fmt.Errorf("interface: %s is not there: %w", n.iface.Name, err)
	}
	if iface.Flags&net.FlagUp == 0 || iface.Flags&net.FlagRunning == 0 {
		return fmt.Errorf("interface: %s is down", n.iface.Name)
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return fmt.Errorf("interface: the addresses of %s: %w", n.iface.Name, err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.Equal(n.iface.Addr.AsSlice()) {
			return nil
		}
	}
	return fmt.Errorf("interface: %s no longer has the address %v; restart flanneld if it has got another", n.iface.Name, n.iface.Addr)
}

// general are those faults, each once, that are of this host and not of a peer.
func general(faults []error) (all []error) {
	said := map[string]bool{}
	for _, err := range faults {
		var f *backend.Fault
		if errors.As(err, &f) && f.General && !said[err.Error()] {
			said[err.Error()] = true
			all = append(all, err)
		}
	}
	return all
}

// join gets everything under way, each long-running part in the group.
func (n node) join(ctx context.Context) error {
	memory := subnetfile.Memory{File: n.SubnetFile, MAC: n.iface.MAC, HasMAC: subnetfile.HostHasMAC}
	config, b, own, seen, err := n.acquire(ctx, memory.Recall())
	if err != nil {
		return ended(ctx, err)
	}
	before := subnetfile.Network(n.SubnetFile)
	if err := subnetfile.Write(n.SubnetFile, config.Network, own.Subnet, b.MTU(), n.IPMasq); err != nil {
		return err
	}
	memory.Keep(own)
	klog.Infof("This host's subnet is %v; wrote %s", own.Subnet, n.SubnetFile)
	enableForwarding()
	n.health.check(forwarding)
	n.health.wait("the data plane")
	n.self.tell(func(s *status.Node) { s.Own = &own })

	forFollower, forHolder, forBackend, forLog := newLatest[struct{}](), newLatest[[]*subnet.Lease](), newLatest[[]*subnet.Lease](), newLatest[[]*subnet.Lease]()
	n.group.Go(func() error {
		return subnet.Follow(ctx, n.store, own, seen, forFollower.ch, func(leases, lingering []*subnet.Lease) {
			forHolder.put(leases)
			all := subnet.Merge(leases, lingering)
			forBackend.put(all)
			forLog.put(leases)
			n.self.tell(func(s *status.Node) { s.Leases = all })
		})
	})
	watch := configWatch{inUse: config, own: own.Subnet, health: n.health}
	lease := leaseHealth{margin: n.RenewMargin}
	lease.written(own)
	n.health.check(lease.problem)
	n.metrics.Lease(lease.end)
	n.metrics.Leases(func() int { return len(forHolder.last()) })
	n.metrics.Backend(b)
	n.group.Go(func() error {
		h := subnet.Holder{Store: n.store, Lease: own, Network: config.Network, Margin: n.RenewMargin}
		h.Changed = func(l subnet.Lease) {
			memory.Keep(l)
			lease.written(l)
			n.self.tell(func(s *status.Node) { s.Own = &l })
			watch.renewed()
		}
		h.Contested = func(err error) { n.health.set("lease", list(err)) }
		return h.Run(ctx, forHolder.ch)
	})
	n.group.Go(func() error { return watch.run(ctx, n.store) })
	n.group.Go(func() error { return logPeers(ctx, own.Subnet, forLog.ch) })
	n.group.Go(func() error { return trimMemory(ctx, n.needed) })
	n.health.set("firewall", list(errors.New("the rules have not been compared yet")))
	n.group.Go(func() error {
		k := firewall.Keeper{Network: config.Network, Own: own.Subnet, Before: before, Masq: n.IPMasq, Forward: n.ForwardRules, Resync: n.FirewallResync}
		k.Compared = func(changes []string, err error) {
			n.health.set("firewall", list(err))
			n.metrics.Firewall(changes, err)
		}
		return k.Run(ctx)
	})
	var comparisons rounds
	repairs := newRepairLog()
	n.group.Go(func() error {
		ready := false
		return b.Run(ctx, own, forBackend.ch, func(c kernel.Comparison) {
			n.health.set("data plane", slices.Concat(c.Failed, general(c.Faults)))
			n.metrics.Compared(c)
			repairs.compared(c, time.Now())
			comparisons.another()
			if !ready {
				ready = true
				klog.Infof("Ready: %v through %s, MTU %d", own.Subnet, config.BackendType, b.MTU())
				n.health.ready() // before systemd is told, and who waits for that asks
				n.Notify(fmt.Sprintf("READY=1\nSTATUS=%v through %s", own.Subnet, config.BackendType))
				n.group.Go(func() error { return n.watchdog(forFollower, forHolder, forBackend, &comparisons).run(ctx) })
			}
		})
	})
	return nil
}

// watchdog asks those parts without which the network would be stuck. Who waits
// for the store is not stuck while that is away.
func (n node) watchdog(follower *latest[struct{}], holder, backend *latest[[]*subnet.Lease], comparisons *rounds) watchdog {
	w := watchdog{within: n.Watchdog, notify: n.Notify, health: n.health}
	if n.Watchdog == 0 {
		w.within, w.notify = time.Minute, func(string) {}
	}
	w.parts = []part{
		{"the watch on the leases", func() { follower.put(struct{}{}) }, func() bool { return follower.taken() || n.store.Asking() }},
		{"the keeper of the lease", holder.repeat, func() bool { return holder.taken() || n.store.Asking() }},
		{"the data plane", func() { comparisons.mark(); backend.repeat() }, comparisons.answered},
	}
	return w
}

// acquire waits for a config that can be used, and for a subnet of it. A config
// that is written while all subnets are taken may have more of them.
func (n node) acquire(ctx context.Context, last subnet.Remembered) (c config, b backend.Backend, own subnet.Lease, seen subnet.Snapshot, err error) {
	for {
		n.wait("the network config")
		if c, err = awaitConfig(ctx, n.store, func(why string) { n.health.wait("the network config: " + why) }); err != nil {
			return c, b, own, seen, err
		}
		klog.Infof("Network config: %v", c)
		if b, err = c.Open(backend.Host{Interface: n.iface, PublicIP: n.publicIP, Network: c.Network}); err != nil {
			return c, b, own, seen, err
		}
		if err = b.Check(); err != nil {
			return c, b, own, seen, err
		}
		n.self.tell(func(s *status.Node) { s.Config = c.text })
		n.wait("a subnet")
		attrs := subnet.Attrs{PublicIP: n.publicIP, BackendType: c.BackendType, BackendData: b.Data()}
		trying, stop := context.WithCancel(ctx)
		other := make(chan bool, 1)
		go func() {
			other <- untilOtherConfig(trying, n.store, c)
			stop()
		}()
		own, seen, err = subnet.Acquire(trying, n.store, c.Config.Config, attrs, last)
		stop()
		if outdated := <-other; err == nil || !outdated || ctx.Err() != nil {
			return c, b, own, seen, err
		}
	}
}

// list is a list of errors of at most one.
func list(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}

// ended is nil where err is but the end of ctx, which is how Run is stopped.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
