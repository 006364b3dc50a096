package subnet

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"k8s.io/klog/v2"
)

// grace is how long leases linger that the store has lost. By then every host
// has noticed and claimed its own again, see lastRetry.
const grace = 10 * time.Second

// Follow calls publish with the whole set of leases there are, in order of
// their subnets, now and each time it has changed, until ctx ends. Whatever
// happens to the watch, the next set is right again, as it is then made from a
// fresh list. Entries that cannot be read are left out, with one warning each.
//
// A store that no longer has this host's own lease, after a time in which it
// could not be watched, has lost its data, and other hosts' leases with it. Those
// hosts are still there and about to claim their leases again. Until they have,
// for a short while, theirs are published as lingering, so that traffic goes on.
//
// The store must be a Patient one.
func Follow(ctx context.Context, store Store, own netip.Prefix, publish func(leases, lingering []Lease)) error {
	f := follower{own: FormatKey(own), warned: warnings{}, publish: publish}
	wait := newBackOff()
	for {
		entries, revision, err := store.List(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		f.list(entries)

		watching, stop := ctx, func() {}
		if len(f.lingering) > 0 {
			watching, stop = context.WithDeadline(ctx, f.until)
		}
		began := time.Now()
		w := store.Watch(watching, revision)
		for events, err := w.Next(); ; events, err = w.Next() {
			if err != nil {
				klog.V(1).Infof("The watch on the leases has ended, listing them again: %v", err)
				break
			}
			f.apply(events)
		}
		stop()
		if time.Since(began) > lastRetry {
			wait.Reset() // it is not that watching never works
		}
		// Every host's watch ends at the same moment when a member of the store
		// stops: the jitter keeps them from listing in the same one.
		if sleep(ctx, wait.NextBackOff()) != nil {
			return nil
		}
	}
}

// follower is the state of Follow.
type follower struct {
	own     string // the key of this host's lease
	warned  warnings
	publish func(leases, lingering []Lease)

	known     map[string]Lease // by key
	lingering map[string]Lease
	until     time.Time // when those stop lingering
}

// list goes on from a fresh list.
func (f *follower) list(entries []Entry) {
	fresh := make(map[string]Lease, len(entries))
	for _, e := range entries {
		if l, ok := f.warned.decode(e); ok {
			fresh[e.Key] = l
		}
	}
	f.warned.forgetAllBut(entries)
	before, first := f.known, f.known == nil
	f.known = fresh
	changed := first || !sameLeases(before, fresh)
	if _, lost := before[f.own]; lost && !has(fresh, f.own) {
		f.lingering, f.until = map[string]Lease{}, time.Now().Add(grace)
		for key, l := range before {
			if key != f.own && !has(fresh, key) {
				f.lingering[key] = l
			}
		}
	} else if len(f.lingering) > 0 && !time.Now().Before(f.until) {
		f.lingering, changed = nil, true
	}
	if changed {
		f.tell()
	}
}

// apply goes on from events.
func (f *follower) apply(events []Event) {
	changed := false
	for _, e := range events {
		old, had := f.known[e.Key]
		l, ok := Lease{}, false
		if e.Deleted {
			delete(f.warned, e.Key)
		} else {
			l, ok = f.warned.decode(e.Entry)
		}
		switch {
		case ok:
			f.known[e.Key] = l
			changed = changed || !had || !sameLease(old, l)
		case had:
			delete(f.known, e.Key)
			changed = true
		}
	}
	if changed {
		f.tell()
	}
}

func (f *follower) tell() {
	for key := range f.lingering {
		if has(f.known, key) {
			delete(f.lingering, key)
		}
	}
	f.publish(sorted(f.known), sorted(f.lingering))
}

func has(m map[string]Lease, key string) bool {
	_, ok := m[key]
	return ok
}

// warnings remembers what was said about which key, so that it is said once.
type warnings map[string]string

func (w warnings) decode(e Entry) (Lease, bool) {
	l, err := e.Decode()
	if err == nil {
		delete(w, e.Key)
		return l, true
	}
	if text := err.Error(); w[e.Key] != text {
		w[e.Key] = text
		klog.Warningf("Leaving out the lease %q, which cannot be read: %v", e.Key, err)
	}
	return Lease{}, false
}

func (w warnings) forgetAllBut(entries []Entry) {
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

func sorted(leases map[string]Lease) []Lease {
	s := make([]Lease, 0, len(leases))
	for _, l := range leases {
		s = append(s, l)
	}
	slices.SortFunc(s, func(a, b Lease) int { return a.Subnet.Compare(b.Subnet) })
	return s
}

func sameLeases(a, b map[string]Lease) bool {
	if len(a) != len(b) {
		return false
	}
	for key, l := range a {
		if m, ok := b[key]; !ok || !sameLease(l, m) {
			return false
		}
	}
	return true
}

// sameLease reports whether nothing has changed that a holder or a peer acts
// on. The revision counts: it is what tells a holder of a write to its own key.
func sameLease(a, b Lease) bool {
	return a.Subnet == b.Subnet && a.Attrs.Equal(b.Attrs) && a.Revision == b.Revision
}
