package subnet

import (
	"context"
	"slices"

	"k8s.io/klog/v2"
)

// Follow calls publish with the whole set of leases there are, in order of
// their subnets, now and each time it has changed, until ctx ends. Whatever
// happens to the watch, the next set is right again, as it is then made from a
// fresh list. Entries that cannot be read are left out, with one warning each.
//
// The store must be a Patient one.
func Follow(ctx context.Context, store Store, publish func([]Lease)) error {
	var (
		known  map[string]Lease // by key
		warned = warnings{}
		wait   = newBackOff()
	)
	for {
		entries, revision, err := store.List(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		fresh := make(map[string]Lease, len(entries))
		for _, e := range entries {
			if l, ok := warned.decode(e); ok {
				fresh[e.Key] = l
			}
		}
		warned.forgetAllBut(entries)
		if known == nil || !sameLeases(known, fresh) {
			publish(sorted(fresh))
		}
		known = fresh

		for w := store.Watch(ctx, revision); ; {
			events, err := w.Next()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				klog.V(1).Infof("The watch on the leases has ended, listing them again: %v", err)
				break
			}
			wait.Reset()
			changed := false
			for _, e := range events {
				old, had := known[e.Key]
				l, ok := Lease{}, false
				if e.Deleted {
					delete(warned, e.Key)
				} else {
					l, ok = warned.decode(e.Entry)
				}
				switch {
				case ok:
					known[e.Key] = l
					changed = changed || !had || !sameLease(old, l)
				case had:
					delete(known, e.Key)
					changed = true
				}
			}
			if changed {
				publish(sorted(known))
			}
		}
		// Every host's watch ends at the same moment when a member of the store
		// stops: the jitter keeps them from listing in the same one.
		if sleep(ctx, wait.NextBackOff()) != nil {
			return nil
		}
	}
}

// Decode reads an entry.
func (e Entry) Decode() (Lease, error) {
	subnet, err := ParseKey(e.Key)
	if err != nil {
		return Lease{}, err
	}
	attrs, err := DecodeAttrs(e.Value)
	if err != nil {
		return Lease{}, err
	}
	return Lease{Subnet: subnet, Attrs: attrs, Expires: e.Expires, Revision: e.Revision}, nil
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
