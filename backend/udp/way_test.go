package udp

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w way
		expect := func(what string, want bool) {
			t.Helper()
			if w.stuck() != want {
				t.Errorf("%s: stuck is %v", what, !want)
			}
		}
		expect("it has not begun", false)
		time.Sleep(time.Hour)
		expect("it waits for its first packet", false)
		w.works()
		expect("it has a batch", false)
		time.Sleep(stuckAfter + time.Second)
		expect("it still has that batch", true)
		w.waits()
		expect("it goes on", false)
		time.Sleep(time.Hour)
		expect("it waits", false)
		w.works()
		expect("it has another batch", false)
		w.waits()
		w.works()
		time.Sleep(stuckAfter + time.Second)
		expect("it has the one after that", false)
		w.waits()
		w.waits()
		time.Sleep(stuckAfter + time.Second)
		expect("it waits, and has said so twice", false)
	})
}

// Workers are stuck when one way is, be it in or out.
func TestWorkersStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workers{in: new(way), out: new(way)}
		for _, way := range []*way{w.in, w.out} {
			way.works()
			if w.stuck() {
				t.Error("it is stuck at once")
			}
			time.Sleep(stuckAfter + time.Second)
			if !w.stuck() {
				t.Error("it is not stuck")
			}
			way.waits()
		}
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for failures, want := range map[int]time.Duration{
			1: 0, 2: 100 * time.Microsecond, 11: time.Millisecond, 101: 10 * time.Millisecond, 1_000_000: 10 * time.Millisecond,
		} {
			begin := time.Now()
			pause(failures)
			if took := time.Since(begin); took != want {
				t.Errorf("after %d failures it pauses for %v, want %v", failures, took, want)
			}
		}
	})
}
