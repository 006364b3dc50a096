package subnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"flanneld/pkg/prefix"
)

// Remembered is what a host still knows of the subnet it had when it last ran.
// The zero value is a host that knows nothing.
type Remembered struct {
	// Subnet is the one it had, invalid if none.
	Subnet netip.Prefix
	// PublicIP and Revision are those of its lease at that time, if known. Only
	// a lease that is still just that one may be taken over although it bears
	// another address than this host has now.
	PublicIP netip.Addr
	Revision uint64
}

// was reports whether l is, unchanged, the lease the host had then.
func (r Remembered) was(l *Lease) bool {
	return r.PublicIP.IsValid() && r.PublicIP == l.PublicIP && r.Subnet == l.Subnet && r.Revision == l.Revision
}

// lookAgain is about how often a host that waits for something to be written looks
// for itself, as a watch may have missed it and not know.
const lookAgain = 10 * time.Minute

// conflictsBeforeList is after how many lost races for a free subnet the list
// of leases is read again. Each lost race shows one subnet that is taken; a new
// list shows all of them, but is long.
const conflictsBeforeList = 4

// Acquire gets this host a lease on one of config's subnets, and tries until it
// has one or ctx ends. In this order: the lease that bears this host's address;
// the subnet it had when it last ran; any free one. seen is what the store had
// just before.
func Acquire(ctx context.Context, store *Patient, config Config, own Attrs, last Remembered) (lease Lease, seen Snapshot, err error) {
	value, err := EncodeAttrs(own)
	if err != nil {
		return lease, seen, err
	}
	a := acquisition{store: store, config: config, own: own, value: value, last: last, said: map[string]bool{}}
	wait := store.chance.pauses(firstRetry)
	for {
		if seen, err = snapshot(ctx, store); err != nil {
			return lease, seen, err
		}
		a.entries, seen.entries = seen.entries, nil // of no further use, and many
		lease, err = a.once(ctx, seen)
		var none noFreeSubnet
		switch {
		case err == nil:
			// What was seen is where Follow begins, and the lease is what has happened
			// since. But the store may have lost its data before it took the lease, and
			// what was removed on the way is to be left out: then what it has now counts,
			// with the lease or without.
			if a.removed || lease.Revision <= seen.revision {
				seen, err = snapshot(ctx, store)
				seen.entries = nil
			} else {
				seen.leases = with(seen.leases, &lease)
			}
			return lease, seen, err
		case errors.As(err, &none):
			a.say("No subnet for this host yet: %v", err)
			err = a.awaitFree(ctx, seen.revision, wait)
		case errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound):
			// Somebody was faster; look again. The pause lets a herd disperse.
			err = sleep(ctx, wait.next())
		}
		if err != nil {
			return Lease{}, seen, err
		}
	}
}

type acquisition struct {
	store  *Patient
	config Config
	own    Attrs
	value  string
	last   Remembered
	said   map[string]bool

	entries []Entry // what the leases were read from
	removed bool    // a lease of this host's
}

// entry is what a lease was read from.
func (a *acquisition) entry(l *Lease) Entry {
	key := FormatKey(l.Subnet)
	return a.entries[slices.IndexFunc(a.entries, func(e Entry) bool { return e.Key == key })]
}

// say logs what is found on the way, once, however many tries there are.
func (a *acquisition) say(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !a.said[text] {
		a.said[text] = true
		klog.Warning(text)
	}
}

type noFreeSubnet struct{ config Config }

func (e noFreeSubnet) Error() string {
	return fmt.Sprintf("all %d subnets of length %d from %v to %v in the network %v are leased; "+
		"waiting for one to become free (a larger Network or SubnetLen makes more)",
		e.config.Subnets(), e.config.SubnetLen, e.config.SubnetMin.Addr(), e.config.SubnetMax.Addr(), e.config.Network)
}

// awaitFree waits until a lease may have gone since revision, or been given to this
// host. Where that cannot be watched, looking again now and then has to do.
func (a *acquisition) awaitFree(ctx context.Context, revision uint64, wait pauses) error {
	watching, stop := context.WithTimeout(ctx, a.store.chance.around(lookAgain))
	defer stop()
	for w := a.store.Watch(watching, revision); ; {
		events, err := w.Next()
		switch {
		case watching.Err() != nil:
			return ctx.Err() // nil when it is but time to look
		case err != nil:
			return sleep(ctx, wait.next())
		case slices.ContainsFunc(events, a.concerns):
			return sleep(ctx, a.store.chance.around(firstRetry)) // many may be waiting for one
		}
	}
}

// concerns reports whether an event may let a host have a subnet that waits for one.
func (a *acquisition) concerns(e Event) bool {
	if e.Deleted {
		return true
	}
	l, err := e.Decode()
	return err == nil && l.PublicIP == a.own.PublicIP
}

// once goes through the ways to get a lease, given the leases of this moment.
func (a *acquisition) once(ctx context.Context, seen Snapshot) (Lease, error) {
	var leases []*Lease
	consider := func(l *Lease) {
		if l.PublicIP == a.own.PublicIP || prefix.Contains(a.config.Network, l.Subnet) {
			leases = append(leases, l) // what lies outside the network is in nobody's way
		}
	}
	for _, l := range seen.leases {
		consider(l)
	}
	for _, u := range seen.unreadable { // its subnet is taken all the same; Follow warns of it
		if subnet, err := ParseKey(u.Key); err == nil {
			consider(&Lease{Subnet: subnet, Expires: u.Expires, Revision: u.Revision})
		}
	}
	if mine, err := a.mine(ctx, leases); err != nil {
		return Lease{}, err
	} else if mine != nil {
		klog.Infof("Taking over the lease of %v, which bears this host's address", mine.Subnet)
		return a.take(ctx, mine)
	}
	if lease, err := a.again(ctx, leases); err != nil || lease.Subnet.IsValid() {
		return lease, err
	}
	return a.free(ctx, leases)
}

// mine finds the lease that bears this host's address, and removes those that
// do but no longer fit the config. Of several, a reservation comes first, as an
// operator made it on purpose, then the one used last.
func (a *acquisition) mine(ctx context.Context, leases []*Lease) (mine *Lease, err error) {
	better := func(l *Lease) bool {
		return mine == nil || l.Reserved() && !mine.Reserved() || l.Reserved() == mine.Reserved() && l.Subnet == a.last.Subnet
	}
	for _, l := range leases {
		switch {
		case l.PublicIP != a.own.PublicIP:
		case !a.config.Fits(l.Subnet):
			a.say("Removing this host's lease of %v, which is none of the network's subnets any more (%v)", l.Subnet, a.config)
			if err := a.remove(ctx, l); err != nil {
				return nil, err
			}
		case a.before(l, leases) != nil:
			a.say("Removing this host's lease of %v, which overlaps one that was there before: %v", l.Subnet, a.before(l, leases))
			if err := a.remove(ctx, l); err != nil {
				return nil, err
			}
		case better(l):
			mine = l
		}
	}
	return mine, nil
}

func (a *acquisition) remove(ctx context.Context, l *Lease) error {
	a.removed = true
	return a.store.Delete(ctx, a.entry(l))
}

// before is another host's lease that overlaps l and was there before it; nil if
// there is none. There can be one where the length of the network's subnets was
// changed, and hosts did not know of each other when they claimed theirs.
func (a *acquisition) before(l *Lease, leases []*Lease) *Lease {
	for _, other := range leases {
		if other.PublicIP.IsValid() && other.PublicIP != a.own.PublicIP && other.Subnet.Overlaps(l.Subnet) && other.Created < l.Created {
			return other
		}
	}
	return nil
}

// again asks for the subnet this host had when it last ran. It returns the zero
// Lease where that is not to be had.
func (a *acquisition) again(ctx context.Context, leases []*Lease) (Lease, error) {
	subnet := a.last.Subnet
	if !subnet.IsValid() {
		return Lease{}, nil
	}
	if !a.config.Fits(subnet) {
		a.say("The subnet in the subnet file, %v, is none of the network's subnets (%v)", subnet, a.config)
		return Lease{}, nil
	}
	for _, l := range leases {
		switch {
		case !l.Subnet.Overlaps(subnet):
		case a.last.was(l):
			klog.Infof("Taking over the lease of %v: it is this host's own, from when its address was %v", subnet, l.PublicIP)
			return a.take(ctx, l)
		default:
			a.say("The subnet in the subnet file, %v, is not free: %v", subnet, l)
			return Lease{}, nil
		}
	}
	lease, err := a.create(ctx, subnet)
	if errors.Is(err, ErrConflict) {
		return Lease{}, err
	} else if err == nil {
		klog.Infof("Leased %v, the subnet in the subnet file", subnet)
	}
	return lease, err
}

// free leases some subnet that nobody has. Which one is left to chance, so that
// hosts that start together seldom want the same.
func (a *acquisition) free(ctx context.Context, leases []*Lease) (Lease, error) {
	taken := newTaken(a.config, leases)
	for range conflictsBeforeList {
		n := taken.free()
		if n == 0 {
			return Lease{}, noFreeSubnet{a.config}
		}
		subnet := a.config.Nth(taken.nthFree(a.store.chance.below(n)))
		lease, err := a.create(ctx, subnet)
		if err == nil {
			klog.Infof("Leased %v, one of %d free subnets", subnet, n)
		}
		if !errors.Is(err, ErrConflict) {
			return lease, err
		}
		taken.add(subnet)
	}
	return Lease{}, ErrConflict
}

func (a *acquisition) create(ctx context.Context, subnet netip.Prefix) (Lease, error) {
	e, err := a.store.Create(ctx, FormatKey(subnet), a.value, TTL)
	if err != nil {
		return Lease{}, err
	}
	return Lease{Subnet: subnet, Attrs: a.own, Expires: e.Expires, Revision: e.Revision, Created: e.Created}, nil
}

func (a *acquisition) take(ctx context.Context, l *Lease) (Lease, error) {
	e, err := a.store.Update(ctx, a.entry(l), a.value, ttlOf(l))
	if err != nil {
		return Lease{}, err
	}
	return Lease{Subnet: l.Subnet, Attrs: a.own, Expires: e.Expires, Revision: e.Revision, Created: e.Created}, nil
}

// ttlOf is the TTL to write a lease with: none for what is reserved, so that it
// stays reserved.
func ttlOf(l *Lease) time.Duration {
	if l.Reserved() {
		return 0
	}
	return TTL
}
