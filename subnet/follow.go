package subnet

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"flanneld/pkg/prefix"
)

const (
	// grace is how long leases linger that the store has lost. By then every host
	// has noticed and claimed its own again, see lastRetry.
	grace = 10 * time.Second
	// gather is how long after one set the next may be published: many changes
	// at once make few sets of many leases.
	gather = 10 * time.Millisecond
	// burst is how long many changes at once may go on before all there is then is
	// listed.
	burst = 60 * time.Millisecond
)

// Follow calls publish with the whole set of leases there are, in order of
// their subnets, now and each time it has changed, until ctx ends. Leases are
// not changed once they are published: one that is renewed is another. Whatever
// happens to the watch, the next set is right again, as it is then made from a
// fresh list. Entries that cannot be read are left out, with one warning each.
//
// It begins with what Acquire has seen when it got this host's own lease.
//
// A store that no longer has this host's own lease, after a time in which it
// could not be watched, has lost its data, and other hosts' leases with it. Those
// hosts are still there and about to claim their leases again. Until they have,
// for a short while, theirs are published as lingering, so that traffic goes on.
//
// The store must be a Patient one.
func Follow(ctx context.Context, store Store, own Lease, seen Snapshot, publish func(leases, lingering []*Lease)) error {
	f := follower{own: own.Subnet, warned: warnings{}, publish: publish}
	seen.leases = with(seen.leases, &own)
	wait, calm := newBackOff(), newBackOff()
	calm.InitialInterval = burst
	calm.Reset()
	for {
		f.list(seen)

		watching, stop := ctx, func() {}
		if len(f.lingering) > 0 {
			watching, stop = context.WithDeadline(ctx, f.until)
		}
		began := time.Now()
		ended := f.watch(watching, store.Watch(watching, seen.revision))
		if ctx.Err() == nil {
			klog.V(1).Infof("The watch on the leases has ended, listing them again: %v", ended)
		}
		stop()
		if time.Since(began) > time.Second {
			wait.Reset() // it is not that watching never works
			calm.Reset()
		}
		// Every host's watch ends at the same moment when a member of the store
		// stops: the jitter keeps them from listing in the same one.
		pause := wait
		if errors.Is(ended, ErrBehind) {
			// A burst: most of it is over soon, and then one list has it all.
			pause = calm
		}
		if sleep(ctx, pause.NextBackOff()) != nil {
			return nil
		}
		var err error
		if seen, err = look(ctx, store); err != nil {
			return nil // ctx has ended
		}
	}
}

// Snapshot is what a store had at one moment. The zero value is an empty store
// that nothing has happened to yet.
type Snapshot struct {
	leases     []*Lease // in order of their subnets
	unreadable []unreadable
	revision   uint64
}

type unreadable struct {
	Entry
	err error
}

// look reads all leases there are.
func look(ctx context.Context, store Store) (s Snapshot, err error) {
	entries, revision, err := store.List(ctx)
	if err != nil {
		return s, err
	}
	// Reading thousands of values is most of a start's work: all cores share it.
	leases, errs := make([]*Lease, len(entries)), make([]error, len(entries))
	var wg sync.WaitGroup
	share := len(entries)/runtime.GOMAXPROCS(0) + 1
	for begin := 0; begin < len(entries); begin += share {
		wg.Go(func() {
			for i := begin; i < min(begin+share, len(entries)); i++ {
				l, err := entries[i].Decode()
				leases[i], errs[i] = &l, err
			}
		})
	}
	wg.Wait()
	s.revision, s.leases = revision, make([]*Lease, 0, len(entries))
	for i, err := range errs {
		if err == nil {
			s.leases = append(s.leases, leases[i])
		} else {
			s.unreadable = append(s.unreadable, unreadable{entries[i], err})
		}
	}
	slices.SortFunc(s.leases, bySubnet)
	klog.V(1).Infof("Listed %d leases", len(s.leases))
	return s, nil
}

func bySubnet(a, b *Lease) int { return prefix.Compare(a.Subnet, b.Subnet) }

// find is where the lease of a subnet is in a set that is in order of subnets,
// or would have to be.
func find(leases []*Lease, subnet netip.Prefix) (i int, there bool) {
	return slices.BinarySearchFunc(leases, subnet, func(l *Lease, p netip.Prefix) int { return prefix.Compare(l.Subnet, p) })
}

// Merge makes one set of two that have no subnet in common, in order of subnets.
func Merge(a, b []*Lease) []*Lease {
	all := slices.Concat(a, b)
	if len(a) > 0 && len(b) > 0 {
		slices.SortFunc(all, bySubnet)
	}
	return all
}

// with puts a lease into a set, in the place of another of its subnet.
func with(leases []*Lease, l *Lease) []*Lease {
	i, there := find(leases, l.Subnet)
	if there {
		leases[i] = l
		return leases
	}
	return slices.Insert(leases, i, l)
}

// follower is the state of Follow.
type follower struct {
	own     netip.Prefix
	warned  warnings
	publish func(leases, lingering []*Lease)

	first     bool     // there has been a list
	known     []*Lease // in order of subnets, as are those lingering
	lingering []*Lease
	until     time.Time // when those stop lingering
	published time.Time // when a set was published last
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
		select {
		case next := <-events:
			if f.apply(next) && due == nil {
				due = time.After(gather - time.Since(f.published))
			}
		case <-due:
			due = nil
			f.tell()
		case <-ctx.Done():
			if due != nil {
				f.tell()
			}
			return g.Wait()
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
	for i, l := range f.known {
		// A lease that has not changed stays the same one.
		if j, ok := find(before, l.Subnet); ok && before[j].Attrs.Equal(l.Attrs) && before[j].Revision == l.Revision {
			f.known[i] = before[j]
		}
	}
	changed := !f.first || !slices.EqualFunc(before, f.known, func(a, b *Lease) bool { return !f.differs(a, b) })
	f.first = true
	_, had := find(before, f.own)
	_, has := find(f.known, f.own)
	if had && !has {
		f.until = time.Now().Add(grace)
		f.lingering = slices.DeleteFunc(before, func(l *Lease) bool { return l.Subnet == f.own })
	} else if len(f.lingering) > 0 && !time.Now().Before(f.until) {
		f.lingering, changed = nil, true
	}
	if changed {
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
		case had:
			changed = true
			f.known = slices.Delete(f.known, i, i+1)
		}
	}
	return changed
}

func (f *follower) tell() {
	f.lingering = slices.DeleteFunc(f.lingering, func(l *Lease) bool {
		_, back := find(f.known, l.Subnet)
		return back
	})
	f.published = time.Now()
	f.publish(slices.Clone(f.known), slices.Clone(f.lingering))
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
// lease's own holder, which is to know of all that happens to it.
func (f *follower) differs(a, b *Lease) bool {
	return a.Subnet != b.Subnet || !a.Attrs.Equal(b.Attrs) || a.Subnet == f.own && a.Revision != b.Revision
}
