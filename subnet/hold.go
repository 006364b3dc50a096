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

// LostError says that another host holds this host's subnet. There is nothing
// to be done about it but to start again on another subnet.
type LostError struct {
	Own    Lease
	Holder Lease
}

func (e *LostError) Error() string {
	as := ""
	if e.Holder.Subnet.IsValid() && e.Holder.Subnet != e.Own.Subnet {
		as = fmt.Sprintf(", which has %v", e.Holder.Subnet)
	}
	return fmt.Sprintf("the subnet %v of this host (%v) is now leased by %v%s: stopping, to start again with another subnet",
		e.Own.Subnet, e.Own.PublicIP, e.Holder.PublicIP, as)
}

// Holder keeps one lease.
type Holder struct {
	Store *Patient
	// Lease is the one to keep, as Acquire returned it.
	Lease Lease
	// Network is the one that the subnet is of: what is outside is in nobody's way.
	Network netip.Prefix
	// Margin is how long before its end the lease is renewed.
	Margin time.Duration
	// Changed is called with the lease each time it is another in the store, but
	// still this host's.
	Changed func(Lease)
	// Contested is called with an error once another host takes the lease for
	// its own too, and with nil when that has stopped.
	Contested func(error)
}

// Run keeps the lease until ctx ends; then it returns nil and leaves the lease
// in the store. It renews the lease before it ends, claims it again when it is
// gone, and writes it again when somebody else has written it. It returns a
// *LostError once another host has the subnet.
//
// Each value received from leases is the set of all leases there are. An
// outdated set does no harm: whatever Run makes of it is then checked by the
// store itself.
func (h Holder) Run(ctx context.Context, leases <-chan []*Lease) error {
	value, err := EncodeAttrs(h.Lease.Attrs)
	if err != nil {
		return err
	}
	k := keeper{Holder: h, value: value, chance: h.Store.chance.apart(holding)}
	k.seen = Entry{Key: FormatKey(h.Lease.Subnet), Value: value, Expires: h.Lease.Expires, Revision: h.Lease.Revision, Created: h.Lease.Created}
	k.first = h.Lease.Revision
	k.planRenewal()
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	for {
		alarm.Reset(time.Until(k.next()))
		var err error
		select {
		case <-ctx.Done():
			return nil
		case set := <-leases:
			err = k.compare(ctx, set)
		case <-alarm.C:
			k.calmDown()
			if !time.Now().Before(k.due) {
				err = k.settle(ctx, k.write)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// keeper is the state of Run.
type keeper struct {
	Holder    // its Lease is this host's as last seen
	value     string
	chance    *chance
	seen      Entry     // as last seen in the store, whoever wrote it
	due       time.Time // when the entry is to be written next
	foreign   []time.Time
	contested time.Time    // when it was last said that the lease is contested; zero if it is not
	gone      []time.Time  // when it was, of late
	first     uint64       // revision of the entry when this host made it or took it over
	twin      netip.Prefix // another subnet of another host with this host's address
	reserved  netip.Prefix // another subnet that an operator wants this host to have
}

const (
	// leastRenewal is for a lease that somebody gave a shorter time than the
	// margin: it is renewed soon, but not in an endless row of writes.
	leastRenewal = time.Second
	// goneSaid is how often within foreignSpan it is said that the lease was gone,
	// should somebody delete it all the time.
	goneSaid = 10
	never    = 10 * 365 * 24 * time.Hour
)

// planRenewal sets when the entry is to be renewed. Hosts that were started
// together are spread over some of that time.
func (k *keeper) planRenewal() {
	if k.seen.Expires.IsZero() {
		k.due = time.Now().Add(never)
		return
	}
	left := time.Until(k.seen.Expires)
	wait := max(left-k.Margin, min(leastRenewal, left/2), 0)
	spread := min(wait, k.Margin) / 10
	if spread > 0 {
		wait -= time.Duration(k.chance.below(uint64(spread)))
	}
	k.due = time.Now().Add(wait)
}

// next is when there is something to do if nothing happens before.
func (k *keeper) next() time.Time {
	if calm := k.calm(); !k.contested.IsZero() && calm.Before(k.due) {
		return calm
	}
	return k.due
}

// saw takes an entry for what is in the store. One with a lower revision than
// before is of a store that was put back from a backup.
func (k *keeper) saw(e Entry) {
	k.seen, k.first = e, min(k.first, e.Revision)
}

// have takes an entry for this host's lease.
func (k *keeper) have(e Entry) {
	k.saw(e)
	k.Lease.Expires, k.Lease.Revision, k.Lease.Created = e.Expires, e.Revision, e.Created
	k.planRenewal()
	if k.Changed != nil {
		k.Changed(k.Lease)
	}
}

// compare makes right what a set of all leases says of this host's.
func (k *keeper) compare(ctx context.Context, set []*Lease) error {
	own, twin, reserved := &Lease{}, netip.Prefix{}, netip.Prefix{}
	for _, l := range set {
		switch {
		case l.Subnet == k.Lease.Subnet:
			own = l
		case l.PublicIP == k.Lease.PublicIP && l.Reserved():
			reserved = l.Subnet
		case l.PublicIP == k.Lease.PublicIP && l.Revision > k.first:
			twin = l.Subnet
		case l.PublicIP != k.Lease.PublicIP && l.Created < k.seen.Created && l.Subnet.Overlaps(k.Lease.Subnet) && prefix.Contains(k.Network, l.Subnet):
			if err := k.yield(ctx, l); err != nil {
				return err
			}
		}
	}
	if own.Revision != k.seen.Revision || !own.Attrs.Equal(k.Lease.Attrs) {
		return k.settle(ctx, k.look)
	}
	if reserved != k.reserved {
		if k.reserved = reserved; reserved.IsValid() {
			klog.Infof("The subnet %v is reserved for this host, which takes it when flanneld is restarted", reserved)
		}
	}
	return k.face(ctx, twin)
}

// settle takes a step, and if somebody else was faster, looks again until the
// entry is this host's lease.
func (k *keeper) settle(ctx context.Context, step func(context.Context) error) error {
	for wait := k.chance.pauses(firstRetry); ; step = k.look {
		if err := step(ctx); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) {
			return err
		}
		if err := sleep(ctx, wait.next()); err != nil {
			return err
		}
	}
}

// write writes the lease over the entry last seen.
func (k *keeper) write(ctx context.Context) error {
	ttl := TTL
	if k.seen.Expires.IsZero() {
		ttl = 0 // a reservation stays one
	}
	e, err := k.Store.Update(ctx, k.seen, k.value, ttl)
	if err != nil {
		return err
	}
	klog.V(1).Infof("Wrote the lease of %v once more", k.Lease.Subnet)
	k.have(e)
	return nil
}

// look finds out what the entry is now, and makes the one write that it needs, if
// any, to be this host's lease.
func (k *keeper) look(ctx context.Context) error {
	e, err := k.Store.Get(ctx, k.seen.Key)
	if errors.Is(err, ErrNotFound) {
		if e, err = k.Store.Create(ctx, k.seen.Key, k.value, TTL); err != nil {
			return err
		}
		now := time.Now()
		k.gone = append(slices.DeleteFunc(k.gone, func(t time.Time) bool { return now.Sub(t) > foreignSpan }), now)
		if len(k.gone) <= goneSaid {
			klog.Warningf("The lease of %v was gone from the store; claimed it again", k.Lease.Subnet)
		}
		k.first = e.Revision
		k.have(e)
		return nil
	} else if err != nil {
		return err
	}
	if e.Revision == k.seen.Revision && e.Value == k.seen.Value {
		return nil // it was the news that was old
	}
	// An entry that cannot be read is nobody's.
	if there, err := e.Decode(); err == nil && there.PublicIP != k.Lease.PublicIP {
		return &LostError{Own: k.Lease, Holder: there}
	}
	if e.Value == k.value && e.Expires.IsZero() != k.seen.Expires.IsZero() {
		// An operator has made it a reservation, or a lease again. Hosts keep what it
		// is, so this is none that takes it for its own.
		klog.Infof("The lease of %v was written by somebody else, and lasts %s now", k.Lease.Subnet, lasts(e.Expires))
		k.have(e)
		return nil
	}
	before := k.due
	k.saw(e)
	k.planRenewal()
	if k.mayAnswer(brief(e.Value)) {
		return k.write(ctx)
	}
	// Later, but not later than was planned anyway.
	if pause := time.Now().Add(k.chance.around(foreignPause)); pause.Before(before) {
		before = pause
	}
	if before.Before(k.due) {
		k.due = before
	}
	return nil
}

// lasts says for how long an entry does.
func lasts(expires time.Time) string {
	if expires.IsZero() {
		return "for ever"
	}
	return "for " + time.Until(expires).Round(time.Second).String()
}
