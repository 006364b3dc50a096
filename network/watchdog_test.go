package network

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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
		w := watchdog{within: 40 * time.Second, parts: []part{one("a", &aStuck), one("b", &bStuck)}, notify: func(state string) {
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
