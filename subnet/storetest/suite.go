package storetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/subnet"
)

// Operator does to a store what is not a host's business.
type Operator interface {
	SetConfig(value string)
	DeleteConfig()
	Remove(key string)
}

// Run checks that a store behaves as subnet.Store says. make is called for each
// part with an empty store wanted.
func Run(t *testing.T, make func(t *testing.T) (subnet.Store, Operator)) {
	const key, other = "10.1.5.0-24", "10.1.6.0-24"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is := func(t *testing.T, what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}

	t.Run("members", func(t *testing.T) {
		s, _ := make(t)
		_, _, err := s.Config(ctx)
		is(t, "config of an empty store", err, subnet.ErrNotFound)
		inUse := 0
		for _, m := range s.Members(ctx) {
			if m.Endpoint == "" || m.Err != nil {
				t.Errorf("%+v", m)
			}
			if m.InUse {
				inUse++
			}
		}
		if inUse != 1 {
			t.Errorf("%d members are the one that has answered last", inUse)
		}
	})

	t.Run("config", func(t *testing.T) {
		s, op := make(t)
		_, rev, err := s.Config(ctx)
		is(t, "config of an empty store", err, subnet.ErrNotFound)

		// A config written after the read and before the wait is not missed.
		op.SetConfig("one")
		must(t, s.AwaitConfig(ctx, rev))
		value, rev, err := s.Config(ctx)
		must(t, err)
		if value != "one" {
			t.Errorf("config is %q", value)
		}
		short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
		defer stop()
		is(t, "waiting for a change that does not come", s.AwaitConfig(short, rev), context.DeadlineExceeded)

		op.DeleteConfig()
		must(t, s.AwaitConfig(ctx, rev))
		_, _, err = s.Config(ctx)
		is(t, "deleted config", err, subnet.ErrNotFound)
	})

	t.Run("leases", func(t *testing.T) {
		s, op := make(t)
		all, _, err := s.List(ctx)
		must(t, err)
		if len(all) != 0 {
			t.Errorf("an empty store lists %v", all)
		}
		a, err := s.Create(ctx, key, "a", time.Hour)
		must(t, err)
		if a.Key != key || a.Value != "a" || a.Revision == 0 {
			t.Errorf("created %+v", a)
		}
		if left := time.Until(a.Expires); left > time.Hour+time.Second || left < time.Hour-10*time.Second {
			t.Errorf("a lease of an hour expires in %v", left)
		}
		_, err = s.Create(ctx, key, "b", time.Hour)
		is(t, "creating what is there", err, subnet.ErrConflict)

		b, err := s.Update(ctx, a, "b", 0)
		must(t, err)
		if !b.Expires.IsZero() || b.Revision == a.Revision || b.Created != a.Created || a.Created != a.Revision {
			t.Errorf("updated to a reservation: %+v after %+v", b, a)
		}
		_, err = s.Update(ctx, a, "c", time.Hour)
		is(t, "updating an old revision", err, subnet.ErrConflict)
		again, err := s.Update(ctx, b, b.Value, 0)
		must(t, err)
		_, err = s.Update(ctx, b, "c", time.Hour)
		is(t, "updating an old revision of the same value", err, subnet.ErrConflict)
		b = again
		otherwise := b
		otherwise.Value = "of a time before the store lost its data"
		_, err = s.Update(ctx, otherwise, "c", time.Hour)
		is(t, "updating another value of that revision", err, subnet.ErrConflict)
		is(t, "deleting another value of that revision", s.Delete(ctx, otherwise), subnet.ErrConflict)
		is(t, "deleting an old revision", s.Delete(ctx, a), subnet.ErrConflict)
		_, err = s.Update(ctx, subnet.Entry{Key: other, Value: "a", Revision: a.Revision}, "c", time.Hour)
		is(t, "updating what is not there", err, subnet.ErrNotFound)
		is(t, "deleting what is not there", s.Delete(ctx, subnet.Entry{Key: other, Value: "a", Revision: a.Revision}), subnet.ErrNotFound)

		all, _, err = s.List(ctx)
		must(t, err)
		if len(all) != 1 || all[0] != b {
			t.Errorf("listed %+v, want %+v", all, b)
		}
		got, err := s.Get(ctx, key)
		must(t, err)
		if got != b {
			t.Errorf("got %+v, want %+v", got, b)
		}
		_, err = s.Get(ctx, other)
		is(t, "getting what is not there", err, subnet.ErrNotFound)
		must(t, s.Delete(ctx, b))
		_, err = s.Create(ctx, key, "d", time.Hour)
		must(t, err)
		op.Remove(key)
		all, _, err = s.List(ctx)
		must(t, err)
		if len(all) != 0 {
			t.Errorf("after all were deleted: %+v", all)
		}
	})

	t.Run("watch", func(t *testing.T) {
		s, op := make(t)
		a, err := s.Create(ctx, key, "a", time.Hour)
		must(t, err)
		_, rev, err := s.List(ctx)
		must(t, err)

		// What happens before the first Next is not missed.
		b, err := s.Update(ctx, a, "b", time.Hour)
		must(t, err)
		c, err := s.Create(ctx, other, "c", 0)
		must(t, err)
		op.SetConfig("not a lease")
		op.Remove(key)
		must(t, s.Delete(ctx, c))

		type seen struct {
			key, value string
			revision   uint64
			forever    bool
			deleted    bool
		}
		want := []seen{
			{key, "b", b.Revision, false, false}, {other, "c", c.Revision, true, false},
			{key: key, deleted: true}, {key: other, deleted: true},
		}
		var got []seen
		for w := s.Watch(ctx, rev); len(got) < len(want); {
			events, err := w.Next()
			must(t, err)
			for _, e := range events {
				one := seen{key: e.Key, deleted: e.Deleted}
				if !e.Deleted {
					one = seen{e.Key, e.Value, e.Revision, e.Expires.IsZero(), false}
				}
				got = append(got, one)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("watched\n%+v, want\n%+v", got, want)
		}

		_, rev, err = s.List(ctx)
		must(t, err)
		short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
		defer stop()
		_, err = s.Watch(short, rev).Next()
		is(t, "watching where nothing happens", err, context.DeadlineExceeded)
	})

	t.Run("races", func(t *testing.T) {
		s, _ := make(t)
		// All try to create, then all try to update the winner's entry.
		race := func(try func(i int) error) {
			var won atomic.Int32
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					switch err := try(i); {
					case err == nil:
						won.Add(1)
					case !errors.Is(err, subnet.ErrConflict):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if won.Load() != 1 {
				t.Errorf("%d won", won.Load())
			}
		}
		race(func(i int) error {
			_, err := s.Create(ctx, key, string(rune('a'+i)), time.Hour)
			return err
		})
		all, _, err := s.List(ctx)
		must(t, err)
		race(func(i int) error {
			_, err := s.Update(ctx, all[0], string(rune('a'+i)), time.Hour)
			return err
		})
	})
}
