package subnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

const (
	// A lease that others write this often within foreignSpan is no accident:
	// another host takes it for its own.
	foreignWrites = 3
	foreignSpan   = 5 * time.Minute
	// foreignPause is for such a lease: two hosts that take turns at writing it
	// must not do so as fast as they can.
	foreignPause = 30 * time.Second
	// contestedAgain is how often it is mentioned in the log.
	contestedAgain = 10 * time.Minute
)

// yield returns a *LostError when a lease of another length, as of another config,
// is still there that overlaps this host's and was claimed before it.
func (k *keeper) yield(ctx context.Context, to *Lease) error {
	e, err := k.Store.Get(ctx, FormatKey(to.Subnet))
	if errors.Is(err, ErrNotFound) || err == nil && e.Created != to.Created {
		return nil // there will be news of it
	} else if err != nil {
		return err
	}
	return &LostError{Own: k.Lease, Holder: *to}
}

// face deals with another lease that bears this host's address and was written
// since this host has its own, invalid if there is none: another host has the
// address too, and another subnet. That host finds this one when the own lease is
// written.
func (k *keeper) face(ctx context.Context, twin netip.Prefix) error {
	if twin == k.twin {
		return nil
	}
	k.twin = twin
	if !twin.IsValid() {
		k.content()
		return nil
	}
	k.contest(k.twinError())
	return k.settle(ctx, k.write)
}

func (k *keeper) twinError() error {
	return fmt.Errorf("the subnet %v is leased to the public IP %v of this host too, which has %v: if that is another host (a clone of this one?), "+
		"give one of the two another address (--public-ip)", k.twin, k.Lease.PublicIP, k.Lease.Subnet)
}

// contest says that another host takes the lease, or the address, for its own.
func (k *keeper) contest(err error) {
	text := err.Error()
	klog.Error(strings.ToUpper(text[:1]) + text[1:])
	if k.Contested != nil {
		k.Contested(err)
	}
}

// content says that none does any more, if that is so.
func (k *keeper) content() {
	switch {
	case k.twin.IsValid() && k.contested.IsZero() && k.Contested != nil:
		k.Contested(k.twinError())
	case k.contested.IsZero() && !k.twin.IsValid():
		klog.Infof("The lease of %v is contested no longer", k.Lease.Subnet)
		if k.Contested != nil {
			k.Contested(nil)
		}
	}
}

// mayAnswer reports whether to write the lease again at once that somebody else
// has written, which is how another host that takes it for its own learns of this
// one. When it goes on, it says so, and then it is to be written later.
func (k *keeper) mayAnswer(theirs string) bool {
	now := time.Now()
	k.foreign = slices.DeleteFunc(k.foreign, func(t time.Time) bool { return now.Sub(t) > foreignSpan })
	k.foreign = append(k.foreign, now)
	if len(k.foreign) < foreignWrites {
		klog.Warningf("The lease of %v was written by somebody else, as %s; writing it again", k.Lease.Subnet, theirs)
		return true
	}
	if k.contested.IsZero() || now.Sub(k.contested) > contestedAgain {
		k.contested = now
		err := fmt.Errorf("the lease of %v keeps changing hands: something else with the public IP %v writes it too, as %s; "+
			"if that is another host (a clone of this one?), give one of the two another address (--public-ip); if it is a second flanneld on this host, stop one",
			k.Lease.Subnet, k.Lease.PublicIP, theirs)
		k.contest(err)
	}
	return len(k.foreign) == foreignWrites // for the other one to notice too
}

// brief makes a text fit into a line.
func brief(text string) string {
	const most = 200
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// calm is when the lease will have been left alone for long enough.
func (k *keeper) calm() time.Time {
	if len(k.foreign) == 0 {
		return time.Time{}
	}
	return k.foreign[len(k.foreign)-1].Add(foreignSpan)
}

// calmDown notes that nobody else writes the lease any more, once that is so.
func (k *keeper) calmDown() {
	if k.contested.IsZero() || time.Now().Before(k.calm()) {
		return
	}
	k.contested, k.foreign = time.Time{}, nil
	k.content()
}
