package network

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

// A part that does not answer keeps the watchdog from being fed, whichever it
// is, and for as long as it is silent.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var fed []string
		start := time.Now()
		var aStuck, bStuck atomic.Bool
		var asked atomic.Int32
		one := func(name string, stuck *atomic.Bool) part {
			return part{name, func() { asked.Add(1) }, func() bool { return !stuck.Load() }}
		}
		w := watchdog{within: 40 * time.Second, health: newHealth(), parts: []part{one("a", &aStuck), one("b", &bStuck)}, notify: func(state string) {
			fed = append(fed, state+" "+time.Since(start).String())
		}}
		go w.run(ctx)
		expect := func(what string, times ...string) {
			t.Helper()
			synctest.Wait()
			for i := range times {
				times[i] = "WATCHDOG=1 " + times[i]
			}
			if !slices.Equal(fed, times) {
				t.Errorf("%s: %q, want %q", what, fed, times)
			}
			fed = nil
		}
		time.Sleep(25 * time.Second)
		expect("all answer", "10s", "20s")
		if asked.Load() != 6 {
			t.Errorf("parts were asked %d times", asked.Load())
		}
		bStuck.Store(true)
		time.Sleep(40 * time.Second)
		expect("one is stuck")
		bStuck.Store(false)
		time.Sleep(10 * time.Second)
		expect("it goes on", "1m10s")
		aStuck.Store(true)
		bStuck.Store(true)
		time.Sleep(20 * time.Second)
		expect("both are stuck")
	})
}

// Whichever of its parts stops to take what it is handed, the node notices, but
// not while that part waits for the store.
func TestWatchdogOfNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var fed atomic.Int32
		var away atomic.Bool
		store := subnet.NewPatient(slowStore{Store: storetest.NewMemory(), away: &away}, netip.MustParseAddr("192.0.2.1"))
		n := node{Options: Options{Watchdog: 40 * time.Second, Notify: func(string) { fed.Add(1) }}, store: store, health: newHealth()}
		n.health.ready()
		follower, holder, backend := newLatest[struct{}](), newLatest[[]*subnet.Lease](), newLatest[[]*subnet.Lease]()
		var comparisons rounds
		stuck := map[string]*atomic.Bool{}
		reader := func(name string, take func()) {
			var s atomic.Bool
			stuck[name] = &s
			go func() {
				for ctx.Err() == nil {
					if !s.Load() {
						take()
					}
					time.Sleep(time.Second)
				}
			}()
		}
		reader("the watch on the leases", func() { taken(follower) })
		reader("the keeper of the lease", func() { taken(holder) })
		reader("the data plane", func() {
			if taken(backend) {
				comparisons.another()
			}
		})
		holder.put(nil)
		backend.put(nil)
		go n.watchdog(follower, holder, backend, &comparisons).run(ctx)
		time.Sleep(100*time.Second + time.Millisecond)
		if fed.Swap(0) != 10 {
			t.Error("it was not fed each ten seconds")
		}
		for name, s := range stuck {
			s.Store(true)
			time.Sleep(40 * time.Second)
			fed.Store(0)
			time.Sleep(40 * time.Second)
			report := n.health.report()
			if times := fed.Load(); times != 0 || report.Healthy || !strings.Contains(strings.Join(report.Problems, " "), name) {
				t.Errorf("%s is stuck: fed %d times; health is %+v", name, times, report)
			}
			if name != "the data plane" {
				away.Store(true)
				asking, done := context.WithCancel(ctx)
				go store.List(asking)
				time.Sleep(40 * time.Second)
				if fed.Load() == 0 {
					t.Errorf("%s waits for the store: not fed", name)
				}
				time.Sleep(10 * time.Minute)
				fed.Store(0)
				time.Sleep(time.Minute)
				if fed.Load() != 0 {
					t.Errorf("%s waits for an answer that does not come at all: fed", name)
				}
				away.Store(false)
				done()
			}
			s.Store(false)
			time.Sleep(20 * time.Second)
			if report := n.health.report(); !report.Healthy {
				t.Errorf("%s goes on: health is %+v", name, report)
			}
		}
		cancel()
		time.Sleep(2 * time.Second) // the readers end
	})
}

// taken takes a value, if there is one.
func taken[T any](l *latest[T]) bool {
	select {
	case <-l.ch:
		return true
	default:
		return false
	}
}

// slowStore is a store that does not answer while it is away.
type slowStore struct {
	subnet.Store
	away *atomic.Bool
}

func (s slowStore) List(ctx context.Context) ([]subnet.Entry, uint64, error) {
	if s.away.Load() {
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}
	return s.Store.List(ctx)
}

// What a reader gets is the newest value, or the last one again, and the writer
// can tell that it was taken.
func TestLatest(t *testing.T) {
	l := newLatest[string]()
	l.repeat() // of nothing
	if !l.taken() {
		t.Error("there is a value before any was put")
	}
	var got []string
	take := func() { got = append(got, <-l.ch) }
	l.put("one")
	l.put("two")
	if l.taken() {
		t.Error("a value that nobody has read was taken")
	}
	take()
	if !l.taken() {
		t.Error("the value that was read was not taken")
	}
	l.repeat()
	if l.taken() {
		t.Error("the repeated value was taken before anybody has read it")
	}
	take()
	l.put("three")
	l.repeat()
	take()
	if all := strings.Join(got, " "); all != "two two three" {
		t.Errorf("read %s", all)
	}
}
