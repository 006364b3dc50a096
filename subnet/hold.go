package subnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"k8s.io/klog/v2"
)

// LostError says that another host holds this host's subnet. There is nothing
// to be done about it but to start again on another subnet.
type LostError struct {
	Own    Lease
	Holder Lease
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the subnet %v of this host (%v) is now leased by %v: stopping, to start again with another subnet",
		e.Own.Subnet, e.Own.PublicIP, e.Holder.PublicIP)
}

// Holder keeps one lease.
type Holder struct {
	// Store must be a Patient one.
	Store Store
	// Lease is the one to keep, as Acquire returned it.
	Lease Lease
	// Margin is how long before its end the lease is renewed.
	Margin time.Duration
	// Changed is called with the lease each time it has been written again. It
	// may be nil.
	Changed func(Lease)
}

// Run keeps the lease until ctx ends; then it returns nil and leaves the lease
// in the store. It renews the lease before it ends, and claims it again when it
// is gone. It returns a *LostError once another host has the subnet.
//
// Each value received from leases is the set of all leases there are. An
// outdated set does no harm: whatever Run makes of it is then checked by the
// store itself.
func (h Holder) Run(ctx context.Context, leases <-chan []Lease) error {
	value, err := EncodeAttrs(h.Lease.Attrs)
	if err != nil {
		return err
	}
	k := keeper{Holder: h, value: value, key: FormatKey(h.Lease.Subnet)}
	renew := time.NewTimer(k.untilRenewal())
	defer renew.Stop()
	for {
		before := k.Lease
		var err error
		select {
		case <-ctx.Done():
			return nil
		case set := <-leases:
			err = k.compare(ctx, find(set, k.Lease))
		case <-renew.C:
			err = k.write(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if k.Lease.Revision != before.Revision || k.Lease.Expires != before.Expires {
			renew.Reset(k.untilRenewal())
			if k.Changed != nil {
				k.Changed(k.Lease)
			}
		}
	}
}

type keeper struct {
	Holder
	key, value string
}

// untilRenewal is how long to wait before the lease is to be renewed. Hosts
// that were started together are spread over some of that time.
func (k *keeper) untilRenewal() time.Duration {
	const never = 10 * 365 * 24 * time.Hour
	if k.Lease.Reserved() {
		return never
	}
	due := max(time.Until(k.Lease.Expires)-k.Margin, leastRenewal)
	return due - rand.N(min(due, k.Margin)/10)
}

// leastRenewal is for a lease that somebody gave a shorter time than the
// margin: it is renewed soon, but not in an endless row of writes.
const leastRenewal = time.Second

// compare makes right what the store says of the own subnet; there is nil when
// it has no lease of it.
func (k *keeper) compare(ctx context.Context, there *Lease) error {
	switch {
	case there == nil:
		return k.create(ctx)
	case there.PublicIP != k.Lease.PublicIP:
		return k.look(ctx) // this set may be older than the lease
	case there.Revision < k.Lease.Revision && k.Lease.Attrs.Equal(there.Attrs):
		return nil // older than the last write
	}
	return k.adopt(ctx, *there)
}

// adopt goes on from the lease as it is in the store, which bears this host's
// address.
func (k *keeper) adopt(ctx context.Context, there Lease) error {
	mine := k.Lease.Attrs
	k.Lease.Expires, k.Lease.Revision = there.Expires, there.Revision
	if there.Attrs.Equal(mine) {
		return nil
	}
	klog.Warningf("The lease of %v was overwritten in the store; writing it again", k.Lease.Subnet)
	return k.write(ctx)
}

// write writes the lease over the one last seen, which renews it.
func (k *keeper) write(ctx context.Context) error {
	e, err := k.Store.Update(ctx, k.key, k.Lease.Revision, k.value, ttlOf(k.Lease))
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict) {
		return k.look(ctx)
	} else if err != nil {
		return err
	}
	k.Lease.Expires, k.Lease.Revision = e.Expires, e.Revision
	klog.V(1).Infof("Renewed the lease of %v until %v", k.Lease.Subnet, k.Lease.Expires.Format(time.DateTime))
	return nil
}

// create claims the subnet again after its lease has gone.
func (k *keeper) create(ctx context.Context) error {
	e, err := k.Store.Create(ctx, k.key, k.value, TTL)
	if errors.Is(err, ErrConflict) {
		return k.look(ctx)
	} else if err != nil {
		return err
	}
	klog.Warningf("The lease of %v was gone from the store; claimed it again", k.Lease.Subnet)
	k.Lease.Expires, k.Lease.Revision = e.Expires, e.Revision
	return nil
}

// look reads what the store has now and goes on from there.
func (k *keeper) look(ctx context.Context) error {
	entries, _, err := k.Store.List(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Key == k.key })
	if i < 0 {
		return k.create(ctx)
	}
	there, err := entries[i].Decode()
	if err != nil {
		// Nobody else can read it either, so nobody holds it.
		there = Lease{Attrs: Attrs{PublicIP: k.Lease.PublicIP}, Expires: entries[i].Expires, Revision: entries[i].Revision}
	}
	if there.PublicIP != k.Lease.PublicIP {
		return &LostError{Own: k.Lease, Holder: there}
	}
	return k.adopt(ctx, there)
}

func find(set []Lease, own Lease) *Lease {
	i, ok := slices.BinarySearchFunc(set, own, func(a, b Lease) int { return a.Subnet.Compare(b.Subnet) })
	if !ok {
		return nil
	}
	return &set[i]
}
