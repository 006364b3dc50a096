// Package udp is the default backend: the daemon itself carries the packets.
// The kernel routes the whole network into a TUN device, the daemon reads each
// packet there, looks up which host has the destination's subnet, and sends it
// to that host as the payload of one UDP datagram, with nothing added, so that
// daemons of other versions understand it. In the other direction it takes
// datagrams of known peers and writes their payload to the TUN device.
//
// It needs nothing of the kernel but TUN, so it works where VXLAN is missing or
// filtered; the price is that every packet passes through this process.
//
// Start reading at Backend.Run, which joins the parts: device.go is the TUN
// device, socket.go the UDP socket, table.go says which host has which subnet,
// path.go is the path packets take, with outbound.go and inbound.go for its two
// ways (way.go) and workers.go for the goroutines that carry them, icmp.go what is
// answered to packets that cannot be carried, counters.go what is counted on the way
// and metrics.go how Prometheus is told, failures.go which failures are said.
package udp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"flanneld/backend"
	"flanneld/pkg/jsonfields"
	"flanneld/pkg/kernel"
	"flanneld/subnet"
)

const (
	// Type is the backend's name in configs and leases.
	Type = "udp"

	defaultPort = 8285

	// overhead is what a datagram adds to a packet: an IPv4 header without
	// options (RFC 791) and a UDP header (RFC 768).
	overhead = 20 + 8

	minMTU = 68 // the least MTU of IPv4 (RFC 791)
)

// Parse reads the backend's fields: Port, the UDP port on which every host of
// the cluster sends and listens.
func Parse(fields *jsonfields.Object) (backend.Open, error) {
	port, err := fields.Int("Port", defaultPort, 1, 65535)
	if err != nil {
		return nil, err
	}
	return func(host backend.Host) (backend.Backend, error) {
		if host.Interface.MTU < minMTU+overhead {
			return nil, fmt.Errorf("%s, which carries the packets, has an MTU of %d, and the backend %s needs %d at least: a datagram takes %d, and IPv4 wants %d for containers",
				host.Interface.Name, host.Interface.MTU, Type, minMTU+overhead, overhead, minMTU)
		}
		return open(host, uint16(port)), nil
	}, nil
}

// Backend is the udp backend on one host.
type Backend struct {
	host  backend.Host
	port  uint16
	table atomic.Pointer[table]
	state atomic.Pointer[state]
	// changed holds a value when state has, for the next call of synced to tell.
	changed chan struct{}
	counters
}

// state is the path that packets are carried by now, or why there is none.
type state struct {
	path *path
	lost error
}

func open(host backend.Host, port uint16) *Backend {
	b := &Backend{host: host, port: port, changed: make(chan struct{}, 1)}
	b.table.Store(&table{})
	return b
}

// Check implements backend.Backend. It keeps nothing open: Run does that.
func (b *Backend) Check() error {
	if err := checkTUN(); err != nil {
		return err
	}
	if err := checkDevice(backend.TUNName); err != nil {
		return err
	}
	s, err := openSocket(b.Local())
	if err != nil {
		return err
	}
	return s.close()
}

// Local is where the socket is bound: to the interface's own address, so that
// datagrams leave with the source by which peers know this host. PublicIP may
// be the outer address of a NAT, which is none of this host's own.
func (b *Backend) Local() netip.AddrPort {
	return netip.AddrPortFrom(b.host.Interface.Addr, b.port)
}

// Data is nil: peers need no more than the PublicIP, as the port is the same on
// all hosts.
func (b *Backend) Data() json.RawMessage { return nil }

// MTU is the interface's less what a datagram adds.
func (b *Backend) MTU() int { return b.host.Interface.MTU - overhead }

// Counters is what the packet path has counted since the backend was opened.
func (b *Backend) Counters() Counters { return b.counters.snapshot() }

// Run implements backend.Backend. It does not call synced while one that carries
// packets is stuck. It returns an error when the device or the
// socket cannot be opened at the start; if one is lost later, it opens it again
// for as long as it takes, and until then that is among what has failed. It is to
// be called once.
func (b *Backend) Run(ctx context.Context, own subnet.Lease, leases <-chan []*subnet.Lease, synced func(kernel.Comparison)) error {
	p, err := b.openPath(own)
	if err != nil {
		return err
	}
	klog.Infof("udp: carrying packets between %s and %v, %s", backend.TUNName, b.Local(), p.describe())
	g, ctx := errgroup.WithContext(ctx)
	inputs := make(chan []*subnet.Lease)
	var sayStuck sync.Once
	g.Go(func() error { return b.follow(ctx, own, leases, inputs) })
	g.Go(func() error {
		return kernel.Run(ctx, backend.Owner, inputs, b.Plan(own.Subnet), func(c kernel.Comparison) {
			s := b.state.Load()
			switch {
			case s.lost != nil:
				c.Failed = append(c.Failed, fmt.Errorf("packets are not carried: %w", s.lost))
			case s.path.workers.stuck():
				sayStuck.Do(func() {
					klog.Errorf("udp: packets are not carried: a worker has been at one batch for over %v", stuckAfter)
				})
				return
			}
			synced(c)
		})
	})
	g.Go(func() error { return b.carry(ctx, own, p) })
	return g.Wait()
}

// Plan implements backend.Backend: all of the network is routed to the daemon,
// whatever hosts there are.
func (b *Backend) Plan(own netip.Prefix) kernel.Plan[[]*subnet.Lease] {
	return func(leases []*subnet.Lease, _ kernel.Host) (want kernel.State, faults []error) {
		_, faults = b.filter(own).Peers(leases)
		return kernel.State{
			Device: &kernel.Device{Name: backend.TUNName, MTU: b.MTU(), Addr: own.Addr()},
			Local:  []netip.Prefix{own},
			Routes: []*kernel.Route{{Dst: b.host.Network, Dev: backend.TUNName}},
		}, faults
	}
}

func (b *Backend) filter(own netip.Prefix) backend.Filter {
	return backend.Filter{Host: b.host, Type: Type, Own: own}
}

// follow puts each set of leases into the packet path's table, and then hands
// it on, so that peers are in the table before synced is called for them. It hands
// the last one on once more when packets are carried no longer, or again.
func (b *Backend) follow(ctx context.Context, own subnet.Lease, leases <-chan []*subnet.Lease, inputs chan<- []*subnet.Lease) error {
	var latest []*subnet.Lease
	var out chan<- []*subnet.Lease // nil while there is nothing to hand on
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.changed:
			if latest != nil {
				out = inputs
			}
		case set := <-leases:
			peers, _ := b.filter(own.Subnet).Peers(set) // Plan reports the faults
			b.table.Store(newTable(peers))
			latest, out = set, inputs
		case out <- latest:
			out = nil
		}
	}
}

const (
	// A device that was deleted is made again at once, and then less and less
	// often while that fails or while somebody keeps deleting it.
	firstDelay = 100 * time.Millisecond
	lastDelay  = 30 * time.Second
)

// carry moves packets until ctx ends, and opens device and socket again when
// one of them is lost, as when somebody deletes the device.
func (b *Backend) carry(ctx context.Context, own subnet.Lease, p *path) error {
	delay := firstDelay
	// Who deletes it again and again is told of once a minute.
	limit := rate.NewLimiter(rate.Every(time.Minute), 3)
	times := 0 // lost since that was said
	for {
		started := time.Now()
		why := p.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		b.enter(state{lost: why})
		lost := time.Now()
		times++
		if lost.Sub(started) > 2*lastDelay {
			delay = firstDelay
		}
		said := "" // of why it cannot be opened
		for p = nil; p == nil; {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(delay):
			}
			delay = min(2*delay, lastDelay)
			var err error
			if p, err = b.openPath(own); err != nil {
				b.enter(state{lost: err})
				if err.Error() != said && limit.Allow() {
					klog.Errorf("udp: packets are not carried: %v; trying again", err)
					said = err.Error()
				}
			}
		}
		b.counters.reopened.Add(1)
		if said == "" && !limit.Allow() {
			continue
		}
		text := fmt.Sprintf("udp: packets are carried again; for %v they were not: %v", time.Since(lost).Round(time.Millisecond), why)
		if times > 1 {
			text += fmt.Sprintf(", %d times since this was said last", times)
		}
		klog.Warning(text)
		times = 0
	}
}

// enter makes s the state.
func (b *Backend) enter(s state) {
	b.state.Store(&s)
	select {
	case b.changed <- struct{}{}:
	default: // it is to be told already
	}
}

// openPath opens everything the packet path reads from and writes to.
func (b *Backend) openPath(own subnet.Lease) (*path, error) {
	s, err := openSocket(b.Local())
	if err != nil {
		return nil, err
	}
	d, err := openDevice(backend.TUNName)
	if err != nil {
		s.close()
		return nil, err
	}
	p, err := newPath(d, s, own.Subnet.Addr(), b.MTU(), &b.table, &b.counters)
	if err != nil {
		return nil, errors.Join(err, d.close(), s.close())
	}
	b.enter(state{path: p})
	return p, nil
}
