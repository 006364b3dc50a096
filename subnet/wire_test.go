package subnet_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"flanneld/subnet"
)

var errLost = errors.New("no answer")

// wire is a host's way to the store, for one life.
type wire struct {
	*host
	life   int
	counts map[string]uint64
	wipes  int // of the store, when it was last listed
}

// fate is what becomes of one request: a sequence of random numbers that depends
// on nothing else but which one it is.
func (w *wire) fate(kind string) *rand.Rand {
	w.w.mu.Lock()
	defer w.w.mu.Unlock()
	w.counts[kind]++
	n := w.counts[kind] | uint64(w.life)<<24 | uint64(w.id)<<48
	for _, c := range kind {
		n = n*31 + uint64(c)
	}
	return rand.New(rand.NewPCG(w.w.seed, n))
}

// call is one request.
func (w *wire) call(ctx context.Context, kind string, do func() error) (result error) {
	r := w.fate(kind)
	writes := kind != "list" && kind != "get"
	w.w.mu.Lock()
	calm := w.w.calm
	w.w.mu.Unlock()
	delay := func() time.Duration {
		if r.IntN(20) == 0 && !calm {
			return time.Duration(r.Int64N(int64(modelLoss)))
		}
		return time.Duration(r.Int64N(int64(10 * time.Millisecond)))
	}
	if *modelSeed != 0 {
		defer func() {
			w.w.mu.Lock()
			defer w.w.mu.Unlock()
			w.w.tell("host %d: %s, answered with %v", w.id, kind, result)
		}()
	}
	there, back := delay(), delay()
	lost, twice, unanswered := !calm && r.IntN(12) == 0, !calm && r.IntN(12) == 0, !calm && r.IntN(12) == 0
	again := time.Duration(r.Int64N(int64(time.Minute)))
	if ctx.Err() != nil {
		return ctx.Err()
	}

	if w.waitFor(ctx, there) != nil {
		if writes && !lost { // it is on its way all the same
			go func() {
				time.Sleep(there)
				w.apply(kind, do, true)
			}()
		}
		return ctx.Err()
	}
	if w.blocked(ctx, r) {
		return errLost
	}
	if lost {
		w.waitFor(ctx, modelLoss)
		return errLost
	}
	err := w.apply(kind, do, false)
	if twice && writes {
		go func() {
			time.Sleep(again)
			w.apply(kind, do, true)
		}()
	}
	if w.waitFor(ctx, back) != nil || unanswered || w.blocked(ctx, r) {
		return errLost
	}
	return err
}

func (w *wire) waitFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// blocked waits while the host is cut off, for an hour at most, and reports
// whether it was.
func (w *wire) blocked(ctx context.Context, r *rand.Rand) bool {
	w.w.mu.Lock()
	cut, until := w.cut, w.cutUntil
	w.w.mu.Unlock()
	if cut {
		select {
		case <-ctx.Done():
		case <-until:
		case <-time.After(time.Hour):
		}
		// No two find out in the same instant, or it were open who goes on first.
		w.waitFor(ctx, time.Duration(r.Int64N(int64(10*time.Millisecond))))
	}
	return cut
}

// apply lets a request take effect, and looks at what it has done.
func (w *wire) apply(kind string, do func() error, late bool) error {
	w.w.mu.Lock()
	defer w.w.mu.Unlock()
	before := w.snapshot()
	err := do()
	for key, after := range w.snapshot() {
		was, had := before[key]
		if had && was == after {
			continue
		}
		w.w.tell("host %d: %s %s, revision %d", w.id, kind, key, after.Revision)
		if late && !had {
			w.late++
		}
		switch ip := w.w.ipOf(was.Value); {
		case ip != "" && !slices.Contains(w.ips, ip):
			w.w.fail("host %d took %s from %v", w.id, key, ip)
		case had && was.Expires.IsZero() != after.Expires.IsZero():
			w.w.fail("host %d made %s, which lasted until %v, last until %v", w.id, key, was.Expires, after.Expires)
		}
	}
	w.w.check()
	return err
}

func (w *wire) snapshot() map[string]subnet.Entry {
	all, _, _ := w.w.store.List(context.Background())
	m := map[string]subnet.Entry{}
	for _, e := range all {
		m[e.Key] = e
	}
	return m
}

func (w *wire) Config(ctx context.Context) (string, uint64, error) { panic("not asked for") }
func (w *wire) AwaitConfig(context.Context, uint64) error          { panic("not asked for") }

func (w *wire) List(ctx context.Context) (all []subnet.Entry, revision uint64, err error) {
	err = w.call(ctx, "list", func() (err error) {
		all, revision, err = w.w.store.List(context.Background())
		w.wipes = w.w.wipes
		return err
	})
	return all, revision, err
}

func (w *wire) Get(ctx context.Context, key string) (e subnet.Entry, err error) {
	err = w.call(ctx, "get", func() (err error) {
		e, err = w.w.store.Get(context.Background(), key)
		return err
	})
	return e, err
}

func (w *wire) Create(ctx context.Context, key, value string, ttl time.Duration) (subnet.Entry, error) {
	answer := make(chan subnet.Entry, 2) // of which a late one is left alone
	err := w.call(ctx, "create", func() error {
		e, err := w.w.store.Create(context.Background(), key, value, ttl)
		answer <- e
		return err
	})
	return first(answer, err)
}

func (w *wire) Update(ctx context.Context, old subnet.Entry, value string, ttl time.Duration) (subnet.Entry, error) {
	answer := make(chan subnet.Entry, 2)
	err := w.call(ctx, "update", func() error {
		e, err := w.w.store.Update(context.Background(), old, value, ttl)
		answer <- e
		return err
	})
	return first(answer, err)
}

func first(answer <-chan subnet.Entry, err error) (subnet.Entry, error) {
	if err != nil {
		return subnet.Entry{}, err
	}
	return <-answer, nil
}

func (w *wire) Delete(ctx context.Context, old subnet.Entry) error {
	return w.call(ctx, "delete", func() error { return w.w.store.Delete(context.Background(), old) })
}

func (w *wire) Watch(ctx context.Context, revision uint64) subnet.Watcher {
	return &wireWatcher{w, ctx, w.w.store.Watch(ctx, revision)}
}

type wireWatcher struct {
	*wire
	ctx   context.Context
	inner subnet.Watcher
}

func (w *wireWatcher) Next() ([]subnet.Event, error) {
	r := w.fate("watch")
	w.w.mu.Lock()
	calm, broken := w.w.calm, w.wipes != w.w.wipes
	w.w.mu.Unlock()
	if broken { // a store is not wiped behind the back of those connected to it
		return nil, errLost
	}
	events, err := w.inner.Next()
	if err != nil {
		return nil, err
	}
	n := r.IntN(20)
	switch delay := time.Duration(r.Int64N(int64(10 * time.Millisecond))); {
	case n == 0 && !calm:
		return nil, subnet.ErrWatchLost
	case n == 1 && !calm:
		return nil, subnet.ErrBehind
	case n == 2 && !calm:
		delay = time.Duration(r.Int64N(int64(modelLoss)))
		fallthrough
	default:
		if w.waitFor(w.ctx, delay) != nil {
			return nil, w.ctx.Err()
		}
	}
	if w.blocked(w.ctx, r) {
		return nil, errLost
	}
	return events, nil
}

func (w *wire) Members(ctx context.Context) []subnet.Member { return w.w.store.Members(ctx) }
