package subnet

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"flanneld/pkg/prefix"
)

const (
	// A lease that is gone from the store lingers for a while: its host, if it
	// still runs, claims it again, and traffic is not to stop for that moment.
	linger = 500 * time.Millisecond
	// grace is for how long it does when this host's own lease is gone too and more
	// leases are gone than are left, and so the store has lost its data. By then
	// every host has noticed and claimed its own again, unless it is cut off from
	// the store for even longer. Until somebody else has it, a subnet that nobody
	// claims does no harm.
	grace = 5 * time.Minute
	// gather is how long after one set the next may be published: many changes
	// at once make few sets of many leases.
	gather = 10 * time.Millisecond
	// burst is how long many changes at once may go on before all there is then is
	// listed.
	burst = 60 * time.Millisecond
	// A watch that lasts is one that works.
	lasting = time.Second
	// spread, for each lease there is, is over how long hosts list them whose
	// watches have ended at the same moment, as when a member of the store stops;
	// and mostSpread is enough for a network of thousands.
	spread     = 250 * time.Microsecond
	mostSpread = 2 * time.Second
	// failures is how many watches in a row may fail before it is said.
	failures = 5
	// relist is about how often all leases are listed although nothing is known to
	// be wrong: a watch may have missed something and not know, as one on a member
	// of etcd that has caught up by a snapshot.
	relist = 6 * time.Hour
)

// Follow calls publish with the whole set of leases there are, in order of
// their subnets, now and each time it has changed, until ctx ends. Leases are
// not changed once they are published: one that is renewed is another. Whatever
// happens to the watch, the next set is right again, as it is then made from a
// fresh list.
//
// Leases that are gone from the store are published as lingering for a moment,
// and for longer if the store seems to have lost its data. Entries that cannot be read are
// left out, with one warning each.
//
// It begins with what Acquire has seen when it got this host's own lease.
//
// It receives from asked, and does nothing with it, so that the sender can tell
// that Follow goes on. While it asks the store it does not.
func Follow(ctx context.Context, store *Patient, own Lease, seen Snapshot, asked <-chan struct{}, publish func(leases, lingering []*Lease)) error {
	f := follower{own: own.Subnet, ip: own.PublicIP, warned: warnings{}, asked: asked, publish: publish}
	chance := store.chance.apart(following)
	wait, calm := chance.pauses(firstRetry), chance.pauses(burst)
	for failed := 0; ; {
		f.list(seen)
		began := time.Now()
		watching, stop := context.WithTimeout(ctx, chance.around(relist))
		ended := f.watch(watching, store.Watch(watching, seen.revision))
		stop()
		if ctx.Err() != nil {
			return nil
		}
		klog.V(1).Infof("The watch on the leases has ended, listing them again: %v", ended)
		if time.Since(began) > lasting {
			wait.Reset()
			calm.Reset()
			if failed >= failures {
				klog.Info("The leases can be watched again")
			}
			failed = 0
		}
		var pause time.Duration
		if errors.Is(ended, ErrBehind) {
			pause = calm.next() // a burst: most of it is over soon, and then one list has it all
		} else {
			pause = wait.next() + chance.around(min(time.Duration(len(f.known))*spread, mostSpread))
		}
		if !errors.Is(ended, ErrBehind) && !errors.Is(ended, ErrWatchLost) {
			if failed++; failed == failures {
				klog.Warningf("The leases cannot be watched, and are listed every few seconds instead: %v", ended)
			}
		}
		if f.sleep(ctx, pause) != nil {
			return nil
		}
		var err error
		if seen, err = snapshot(ctx, store); err != nil {
			return nil // ctx has ended
		}
	}
}

// sleep is the one of the package, and receives from asked meanwhile.
func (f *follower) sleep(ctx context.Context, d time.Duration) error {
	for over := time.After(d); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.asked:
		case <-over:
			return nil
		}
	}
}

// follower is the state of Follow.
type follower struct {
	own     netip.Prefix
	ip      netip.Addr // this host's
	warned  warnings
	asked   <-chan struct{}
	publish func(leases, lingering []*Lease)

	first     bool     // there has been a list
	known     []*Lease // in order of subnets
	published time.Time

	lingering []lingerer // in order of subnets, none of them known
	next      time.Time  // when the first of them may go
	lost      time.Time  // when the own lease was last gone
	stay      time.Time  // until when none of them goes
}

// lingerer is a lease that is gone from the store.
type lingerer struct {
	lease *Lease
	until time.Time
}

// watch goes on from events until the watch ends, and returns why.
func (f *follower) watch(ctx context.Context, w Watcher) error {
	events := make(chan []Event)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			next, err := w.Next()
			if err != nil {
				return err
			}
			select {
			case events <- next:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	var due <-chan time.Time // while there is something to publish
	for {
		var over <-chan time.Time // while something lingers
		if len(f.lingering) > 0 {
			over = time.After(time.Until(f.next))
		}
		changed := false
		select {
		case <-f.asked:
		case next := <-events:
			changed = f.apply(next)
		case <-over:
			changed = f.release(time.Now())
		case <-due:
			due = nil
			f.tell()
		case <-ctx.Done():
			if due != nil {
				f.tell()
			}
			return g.Wait()
		}
		if changed && due == nil {
			due = time.After(gather - time.Since(f.published))
		}
	}
}

// list goes on from a fresh list.
func (f *follower) list(fresh Snapshot) {
	for _, u := range fresh.unreadable {
		f.warned.say(u.Key, u.err)
	}
	f.warned.forgetAllBut(fresh.unreadable)
	before := f.known
	f.known = fresh.leases
	// That the own lease is not there is news each time: since it was last told, the
	// lease may have been claimed again and lost again.
	_, hasOwn := find(f.known, f.own)
	changed := !f.first || !hasOwn
	f.first = true
	for i, l := range f.known {
		switch j, had := find(before, l.Subnet); {
		case !had:
			changed = true
		case before[j].Attrs.Equal(l.Attrs) && before[j].Revision == l.Revision:
			f.known[i] = before[j] // a lease that has not changed stays the same one
		default:
			changed = changed || f.differs(before[j], l)
		}
	}
	for _, l := range before {
		if _, has := find(f.known, l.Subnet); !has {
			changed = true
			f.vanished(l)
		}
	}
	f.lingering = slices.DeleteFunc(f.lingering, func(l lingerer) bool {
		i, back := find(f.known, l.lease.Subnet)
		return back || i > 0 && f.known[i-1].Subnet.Overlaps(l.lease.Subnet) || i < len(f.known) && f.known[i].Subnet.Overlaps(l.lease.Subnet)
	})
	if f.release(time.Now()) || changed {
		f.tell()
	}
}

// apply goes on from events and reports whether they have changed anything.
func (f *follower) apply(events []Event) (changed bool) {
	for _, e := range events {
		l, err := e.Decode()
		if e.Deleted || err == nil {
			delete(f.warned, e.Key)
		} else {
			f.warned.say(e.Key, err)
		}
		subnet, invalid := ParseKey(e.Key)
		if invalid != nil {
			continue
		}
		i, had := find(f.known, subnet)
		switch {
		case !e.Deleted && err == nil:
			changed = changed || !had || f.differs(f.known[i], &l)
			f.known = with(f.known, &l)
			f.displace(subnet)
		case had:
			changed = true
			gone := f.known[i]
			f.known = slices.Delete(f.known, i, i+1)
			f.vanished(gone)
		}
	}
	return changed
}

// vanished lets a lease linger that is gone from the store.
func (f *follower) vanished(l *Lease) {
	now := time.Now()
	if l.Subnet == f.own {
		f.lost = now
	} else {
		until := now.Add(linger)
		i, _ := f.lingers(l.Subnet)
		f.lingering = slices.Insert(f.lingering, i, lingerer{l, until})
		if len(f.lingering) == 1 || until.Before(f.next) {
			f.next = until
		}
	}
	if !f.lost.IsZero() && now.Sub(f.lost) < grace && len(f.lingering) > len(f.known) {
		f.stay = now.Add(grace)
	}
}

// displace lets go at once of what overlaps a lease that is there.
func (f *follower) displace(subnet netip.Prefix) {
	f.lingering = slices.DeleteFunc(f.lingering, func(l lingerer) bool { return l.lease.Subnet.Overlaps(subnet) })
}

// lingers is where among those that linger a subnet's lease is, or would be.
func (f *follower) lingers(subnet netip.Prefix) (i int, there bool) {
	return slices.BinarySearchFunc(f.lingering, subnet, func(l lingerer, p netip.Prefix) int { return prefix.Compare(l.lease.Subnet, p) })
}

// release lets go of those that have lingered for long enough, and reports
// whether there were any.
func (f *follower) release(now time.Time) bool {
	if now.Before(f.stay) {
		f.next = f.stay
		return false
	}
	before := len(f.lingering)
	f.lingering = slices.DeleteFunc(f.lingering, func(l lingerer) bool { return !now.Before(l.until) })
	for i, l := range f.lingering {
		if i == 0 || l.until.Before(f.next) {
			f.next = l.until
		}
	}
	return len(f.lingering) < before
}

func (f *follower) tell() {
	f.published = time.Now()
	lingering := make([]*Lease, len(f.lingering))
	for i, l := range f.lingering {
		lingering[i] = l.lease
	}
	f.publish(slices.Clone(f.known), lingering)
}

// warnings remembers what was said about which key, so that it is said once.
type warnings map[string]string

func (w warnings) say(key string, err error) {
	if text := err.Error(); w[key] != text {
		w[key] = text
		klog.Warningf("Leaving out the lease %q, which cannot be read: %v", key, err)
	}
}

func (w warnings) forgetAllBut(entries []unreadable) {
	if len(w) == 0 {
		return
	}
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Key] = true
	}
	for key := range w {
		if !there[key] {
			delete(w, key)
		}
	}
}

// differs reports whether anything has changed that somebody acts on. Renewals,
// of which there is one a day for each host, are of interest to nobody but the
// lease's own holder, which is to know of all that happens to it, and of another
// that bears its address.
func (f *follower) differs(a, b *Lease) bool {
	return a.Subnet != b.Subnet || !a.Attrs.Equal(b.Attrs) || (a.Subnet == f.own || a.PublicIP == f.ip) && a.Revision != b.Revision
}
