package subnet

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// sayAgain is how often an outage that goes on is mentioned in the log.
	sayAgain = time.Minute
	// lull is how long a store has to have worked for its next failure to be
	// another outage, and not the same one still.
	lull = 10 * time.Second
	// longestTry is what no try of a call takes that has not got stuck: a store that
	// is slow to answer is given up sooner, also when it has several members.
	longestTry = 5 * time.Minute
)

// Patient is a store that does not fail: each call is tried until it is answered
// or its ctx ends, with back-off in between. What is left to the caller are the
// answers themselves: ErrNotFound and ErrConflict. Only a Watcher fails as
// before: what comes after it is a List, which is patient again.
//
// An outage is said in the log when it begins, when it ends, and once a minute
// in between, however many callers meet it. It lasts while any call waits that
// has failed, so that a store which still answers some questions, but not those
// that matter, does not come and go in the log.
//
// A write whose answer was lost may have been made all the same, at once or
// later. The next try then meets it, and returns it as its own.
type Patient struct {
	store  Store
	chance *chance

	mu       sync.Mutex
	asking   map[*time.Time]bool // when the tries under way have begun
	waiting  int                 // calls that have failed and are still being tried
	out      bool                // there is an outage
	answered bool                // what had failed has been answered since
	since    time.Time           // when it began
	why      error               // of the last try that failed
	said     time.Time           // when it was last mentioned
	over     time.Time           // when the last one ended, unless another was mentioned since
	left     time.Time           // when the last call that waited was given up
}

// NewPatient makes a host, known by its address, patient with a store.
func NewPatient(store Store, host netip.Addr) *Patient {
	return &Patient{store: store, chance: newChance(host), asking: map[*time.Time]bool{}}
}

// Asking reports whether somebody waits for the store now, and the store still
// has its time to answer. To wait for something to happen there, as a Watcher
// does, does not count.
func (p *Patient) Asking() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for began := range p.asking {
		if time.Since(*began) > longestTry {
			return false
		}
	}
	return len(p.asking) > 0
}

// Away says since when calls wait for the store, and why the last of them failed.
// It is nil where none waits.
func (p *Patient) Away() (since time.Time, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.out {
		return time.Time{}, nil
	}
	return p.since, p.why
}

// Config is Store's.
func (p *Patient) Config(ctx context.Context) (value string, revision uint64, err error) {
	err = p.try(ctx, func() error {
		value, revision, err = p.store.Config(ctx)
		return err
	})
	return value, revision, err
}

// AwaitConfig waits until the config may have been written or deleted since
// revision, or ctx ends, which alone is an error.
func (p *Patient) AwaitConfig(ctx context.Context, revision uint64) error {
	watching, stop := context.WithTimeout(ctx, p.chance.around(lookAgain))
	defer stop()
	if err := p.store.AwaitConfig(watching, revision); err != nil && watching.Err() != nil {
		return ctx.Err() // nil when it is but time to look
	} else if err != nil {
		// The caller reads the config again, with all patience; but not in a
		// busy loop, should only watching fail.
		return sleep(ctx, p.chance.around(lastRetry))
	}
	return nil
}

// List is Store's.
func (p *Patient) List(ctx context.Context) (entries []Entry, revision uint64, err error) {
	err = p.try(ctx, func() error {
		entries, revision, err = p.store.List(ctx)
		return err
	})
	return entries, revision, err
}

// Get is Store's.
func (p *Patient) Get(ctx context.Context, key string) (e Entry, err error) {
	err = p.try(ctx, func() error {
		e, err = p.store.Get(ctx, key)
		return err
	})
	return e, err
}

// Watch is Store's, and no more patient.
func (p *Patient) Watch(ctx context.Context, revision uint64) Watcher {
	return p.store.Watch(ctx, revision)
}

// Create is Store's.
func (p *Patient) Create(ctx context.Context, key, value string, ttl time.Duration) (Entry, error) {
	return p.write(ctx, key, value, func() (Entry, error) { return p.store.Create(ctx, key, value, ttl) })
}

// Update is Store's.
func (p *Patient) Update(ctx context.Context, old Entry, value string, ttl time.Duration) (Entry, error) {
	return p.write(ctx, old.Key, value, func() (Entry, error) { return p.store.Update(ctx, old, value, ttl) })
}

// Delete is Store's.
func (p *Patient) Delete(ctx context.Context, old Entry) error {
	return p.try(ctx, func() error { return p.store.Delete(ctx, old) })
}

// write tries a write until it is answered. The value names the host, so that an
// entry which has it, when a try without an answer went before, is that try's.
func (p *Patient) write(ctx context.Context, key, value string, write func() (Entry, error)) (e Entry, err error) {
	unclear := false
	err = p.try(ctx, func() error {
		e, err = write()
		switch {
		case !answers(err):
			unclear = true
		case unclear && errors.Is(err, ErrConflict):
			there, gerr := p.store.Get(ctx, key)
			if !answers(gerr) {
				return gerr // and so once more from the beginning
			}
			if gerr == nil && there.Value == value {
				e, err = there, nil
			}
		}
		return err
	})
	return e, err
}

// answers reports whether a store that returns err has done what it was asked
// to, or has said why not; any other error leaves open what has happened.
func answers(err error) bool {
	return err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict)
}

// try calls f until the store has answered.
func (p *Patient) try(ctx context.Context, f func() error) error {
	began := new(time.Time)
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.asking, began)
	}()
	wait := p.chance.pauses(firstRetry)
	failed := false
	for {
		p.mu.Lock()
		*began = time.Now()
		p.asking[began] = true
		p.mu.Unlock()
		err := f()
		answered := ctx.Err() == nil && answers(err)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if answered || ctx.Err() != nil {
			p.goesOn(failed, answered)
			return err
		}
		p.waits(err, !failed)
		failed = true
		sleep(ctx, wait.next())
	}
}

// waits notes that a call has failed with err, for the first time or again.
func (p *Patient) waits(err error, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.why = err
	if first {
		p.waiting++
	}
	if p.out && p.waiting == 1 && first && now.Sub(p.left) >= lull {
		p.out, p.over = false, time.Time{} // nobody knows what has been since
	}
	if !p.out {
		p.out = true
		if p.over.IsZero() || now.Sub(p.over) >= lull {
			p.since, p.said, p.over = now, now, time.Time{}
			klog.Warningf("Waiting for the store: %v", err)
		}
	}
	if now.Sub(p.said) >= sayAgain {
		p.said, p.over = now, time.Time{}
		klog.Warningf("Still waiting for the store, for %v by now: %v", now.Sub(p.since).Round(time.Second), err)
	}
}

// goesOn notes that a call is over, which may have failed before, because it was
// answered or because nobody wants to know any more.
func (p *Patient) goesOn(failed, answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if failed {
		p.waiting--
		p.left = time.Now()
	}
	if !p.out {
		return
	}
	p.answered = p.answered || answered && (failed || p.waiting == 0)
	if p.waiting > 0 || !p.answered {
		return
	}
	now := time.Now()
	p.out, p.answered = false, false
	if p.over.IsZero() { // or the end was said before, and what came after was the same once more
		klog.Infof("The store works again, after %v", now.Sub(p.since).Round(100*time.Millisecond))
	}
	p.over = now
}

// sleep waits for so long, or until ctx ends, which is its error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
