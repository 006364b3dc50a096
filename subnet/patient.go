package subnet

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"k8s.io/klog/v2"
)

const (
	// Bounds of the wait between two tries at a store that does not answer.
	// Half as much may be added by chance: five seconds after the store is back,
	// everybody has noticed.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 3 * time.Second
	// sayAgain is how often an outage that goes on is mentioned in the log.
	sayAgain = time.Minute
)

// Patient makes store one that does not fail: each call is tried until it is
// answered or ctx ends, with back-off in between. What is left to the caller
// are the answers themselves: ErrNotFound and ErrConflict. Only a Watcher fails
// as before: what comes after it is a List, which is patient again.
//
// An outage is said in the log when it begins, when it ends, and once a minute
// in between, however many callers meet it.
//
// A write whose answer was lost may have been made all the same; its second try
// then says ErrConflict, and the caller finds its own value in the store.
func Patient(store Store) Store { return &patient{store: store} }

type patient struct {
	store Store

	mu    sync.Mutex
	since time.Time // when the outage began; zero when there is none
	said  time.Time // when it was last mentioned
}

func (p *patient) Config(ctx context.Context) (value string, revision uint64, err error) {
	err = p.try(ctx, func() error {
		value, revision, err = p.store.Config(ctx)
		return err
	})
	return value, revision, err
}

func (p *patient) AwaitConfig(ctx context.Context, revision uint64) error {
	if err := p.store.AwaitConfig(ctx, revision); err != nil {
		// The caller reads the config again, with all patience; but not in a
		// busy loop, should only watching fail.
		return sleep(ctx, firstRetry)
	}
	return nil
}

func (p *patient) List(ctx context.Context) (entries []Entry, revision uint64, err error) {
	err = p.try(ctx, func() error {
		entries, revision, err = p.store.List(ctx)
		return err
	})
	return entries, revision, err
}

func (p *patient) Watch(ctx context.Context, revision uint64) Watcher {
	return p.store.Watch(ctx, revision)
}

func (p *patient) Create(ctx context.Context, key, value string, ttl time.Duration) (e Entry, err error) {
	err = p.try(ctx, func() error {
		e, err = p.store.Create(ctx, key, value, ttl)
		return err
	})
	return e, err
}

func (p *patient) Update(ctx context.Context, key string, revision uint64, value string, ttl time.Duration) (e Entry, err error) {
	err = p.try(ctx, func() error {
		e, err = p.store.Update(ctx, key, revision, value, ttl)
		return err
	})
	return e, err
}

func (p *patient) Delete(ctx context.Context, key string, revision uint64) error {
	return p.try(ctx, func() error { return p.store.Delete(ctx, key, revision) })
}

// try calls f until the store has answered, which an answer like ErrConflict
// does too.
func (p *patient) try(ctx context.Context, f func() error) error {
	wait := newBackOff()
	for {
		err := f()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict) {
			p.answered()
			return err
		}
		p.failed(err)
		if err := sleep(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff() // jittered, so that a cluster does not come back in step
	b.InitialInterval, b.MaxInterval = firstRetry, lastRetry
	return b
}

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

func (p *patient) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case p.since.IsZero():
		p.since, p.said = now, now
		klog.Warningf("Waiting for the store: %v", err)
	case now.Sub(p.said) >= sayAgain:
		p.said = now
		klog.Warningf("Still waiting for the store, for %v by now: %v", now.Sub(p.since).Round(time.Second), err)
	}
}

func (p *patient) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.since.IsZero() {
		klog.Infof("The store works again, after %v", time.Since(p.since).Round(100*time.Millisecond))
		p.since = time.Time{}
	}
}
