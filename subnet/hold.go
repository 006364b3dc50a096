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
func (h Holder) Run(ctx context.Context, leases <-chan []*Lease) error {
	value, err := EncodeAttrs(h.Lease.Attrs)
	if err != nil {
		return err
	}
	k := keeper{Holder: h, value: value, key: FormatKey(h.Lease.Subnet)}
	renew := time.NewTimer(k.untilRenewal())
	defer renew.Stop()
	for {
		before, due := k.Lease, false
		var err error
		select {
		case <-ctx.Done():
			return nil
		case set := <-leases:
			err = k.compare(ctx, set)
		case <-renew.C:
			due = true
			err = k.write(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if due || !k.Lease.Expires.Equal(before.Expires) {
			renew.Reset(k.untilRenewal())
		}
		if k.Lease.Revision != before.Revision && k.Changed != nil {
			k.Changed(k.Lease)
		}
	}
}

type keeper struct {
	Holder
	key, value string
	lost       []time.Time // when the lease was overwritten of late
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

// compare makes right what the store says of the own subnet. The set may be
// older than the lease, so that what is not as it should be is looked at in the
// store itself.
func (k *keeper) compare(ctx context.Context, leases []*Lease) error {
	if i, there := find(leases, k.Lease.Subnet); there && leases[i].Revision == k.Lease.Revision && leases[i].Attrs.Equal(k.Lease.Attrs) {
		k.Lease.Expires = leases[i].Expires
		return nil
	}
	return k.settle(ctx)
}

// write writes the lease over the one last seen, which renews it.
func (k *keeper) write(ctx context.Context) error {
	err := k.update(ctx, k.Lease)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict) {
		return k.settle(ctx)
	} else if err == nil {
		klog.V(1).Infof("Renewed the lease of %v until %v", k.Lease.Subnet, k.Lease.Expires.Format(time.DateTime))
	}
	return err
}

// settle makes the entry this host's lease, whatever it is now, unless another
// host has it.
func (k *keeper) settle(ctx context.Context) error {
	for wait := newBackOff(); ; {
		err := k.claim(ctx)
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) {
			return err
		}
		if err := sleep(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

// claim looks at the entry and makes the one write that it needs, if any.
func (k *keeper) claim(ctx context.Context) error {
	entries, _, err := k.Store.List(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Key == k.key })
	if i < 0 {
		e, err := k.Store.Create(ctx, k.key, k.value, TTL)
		if err == nil {
			klog.Warningf("The lease of %v was gone from the store; claimed it again", k.Lease.Subnet)
			k.Lease.Expires, k.Lease.Revision = e.Expires, e.Revision
		}
		return err
	}
	there, err := entries[i].Decode()
	switch {
	case err != nil:
		// Nobody else can read it either, so nobody holds it.
		there = Lease{Expires: entries[i].Expires, Revision: entries[i].Revision}
	case there.PublicIP != k.Lease.PublicIP:
		return &LostError{Own: k.Lease, Holder: there}
	case there.Attrs.Equal(k.Lease.Attrs):
		k.Lease.Expires, k.Lease.Revision = there.Expires, there.Revision
		return nil
	}
	if err := k.overwritten(ctx); err != nil {
		return err
	}
	return k.update(ctx, there)
}

// update writes the lease over the given one.
func (k *keeper) update(ctx context.Context, there Lease) error {
	e, err := k.Store.Update(ctx, k.key, there.Revision, k.value, ttlOf(&there))
	if err == nil {
		k.Lease.Expires, k.Lease.Revision = e.Expires, e.Revision
	}
	return err
}

const (
	// A lease that is overwritten this often within overwriteSpan is no
	// accident: another host takes it for its own.
	overwrites    = 3
	overwriteSpan = 5 * time.Minute
	// overwritePause is for such a lease: two hosts that take turns at writing
	// it must not do so as fast as they can.
	overwritePause = 30 * time.Second
)

// overwritten says that the lease was written by somebody else and, if that
// goes on, waits.
func (k *keeper) overwritten(ctx context.Context) error {
	now := time.Now()
	k.lost = slices.DeleteFunc(k.lost, func(t time.Time) bool { return now.Sub(t) > overwriteSpan })
	k.lost = append(k.lost, now)
	if len(k.lost) < overwrites {
		klog.Warningf("The lease of %v was overwritten in the store; writing it again", k.Lease.Subnet)
		return nil
	}
	klog.Errorf("The lease of %v keeps being overwritten by a host that also has the public IP %v; give one of the two another (is one a clone of the other?). Writing it again in %v",
		k.Lease.Subnet, k.Lease.PublicIP, overwritePause)
	return sleep(ctx, overwritePause)
}
