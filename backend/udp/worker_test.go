package udp

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w worker
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

// pair is a way of bytes: what is written to the far end is to be carried.
type pair struct{ near, far int }

func newPair(t testing.TB) pair {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return pair{fds[0], fds[1]}
}

// echo carries one message back to where it came from.
func (p pair) echo() error {
	var b [8]byte
	n, err := unix.Read(p.near, b[:])
	if err == nil {
		_, err = unix.Write(p.near, b[:n])
	}
	return err
}

// ask sends a message and waits until it has been carried.
func (p pair) ask(t testing.TB) {
	t.Helper()
	if _, err := unix.Write(p.far, []byte("?")); err != nil {
		t.Fatal(err)
	}
	awaitInput(t, p.far)
	var b [8]byte
	if _, err := unix.Read(p.far, b[:]); err != nil {
		t.Fatal(err)
	}
}

// startWorker runs a worker. The function it returns stops it and expects it to end
// at once and without an error.
func startWorker(t testing.TB, fd int, carry func() error) (w *worker, stop func()) {
	t.Helper()
	before := runtime.GOMAXPROCS(0)
	w, err := newWorker(fd, carry)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.run() }()
	return w, func() {
		t.Helper()
		w.stop()
		if err := within(ended); err != nil {
			t.Errorf("run returned %v", err)
		}
		if w.turns.Load()%2 == 1 {
			t.Error("it has ended at work")
		}
		runtime.GOMAXPROCS(before)
	}
}

// within waits for an error, and makes one of it if there is none in time.
func within(errs <-chan error) error {
	select {
	case err := <-errs:
		return err
	case <-time.After(patience):
		return errors.New("it does not return")
	}
}

// No message is waited for in vain, whether they come fast or slowly.
func TestWorkerCarries(t *testing.T) {
	p := newPair(t)
	_, stop := startWorker(t, p.near, p.echo)
	defer stop()
	for i := range 3000 {
		p.ask(t)
		if i%500 == 0 {
			time.Sleep(70 * time.Millisecond) // so that it waits for long
		}
	}
}

// A packet that comes just after a look for packets is not overlooked, be it that
// the worker then looks again or comes to rest.
func TestWorkerOverlooksNothing(t *testing.T) {
	p := newPair(t)
	var last time.Time
	looks, rounds, carried := 0, 0, make(chan time.Duration, 100)
	_, stop := startWorker(t, p.near, func() error {
		err := p.echo()
		now := time.Now()
		switch {
		case err == nil:
			if !last.IsZero() {
				carried <- now.Sub(last)
			}
			last, looks, rounds = now, 0, rounds+1
		case !last.IsZero() && now.Sub(last) > nearby:
			// The first of these looks, and in turns the second.
			if looks++; looks == 1+rounds%2 {
				unix.Write(p.far, []byte("!"))
			}
		}
		return err
	})
	defer stop()
	p.ask(t)
	for range 10 {
		select {
		case after := <-carried:
			if after > nearby+time.Second {
				t.Errorf("carried after %v", after)
			}
		case <-time.After(patience):
			t.Fatal("a packet is waited for in vain")
		}
	}
}

// A worker ends when it is told to, whatever it is doing.
func TestWorkerStops(t *testing.T) {
	for _, tc := range []struct {
		name  string
		carry func(p pair) error
	}{
		{"waiting", pair.echo},
		{"busy", func(pair) error { return nil }},
		{"failing", func(pair) error { return unix.EIO }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range 20 {
				p := newPair(t)
				var called atomic.Int64
				_, stop := startWorker(t, p.near, func() error { called.Add(1); return tc.carry(p) })
				// At once, while it works, and when it has nothing to do any more.
				for wait := int64(i / 2 % 3); called.Load() < wait; {
					if tc.name == "waiting" && called.Load() > 0 {
						p.ask(t)
					}
					runtime.Gosched()
				}
				stop()
			}
		})
	}
	t.Run("before it begins", func(t *testing.T) {
		p := newPair(t)
		w, err := newWorker(p.near, func() error { t.Error("it carries"); return nil })
		if err != nil {
			t.Fatal(err)
		}
		w.stop()
		if err := w.run(); err != nil {
			t.Errorf("run returned %v", err)
		}
	})
}

// An idle worker uses no processor.
func TestWorkerRests(t *testing.T) {
	p := newPair(t)
	var called atomic.Int64
	_, stop := startWorker(t, p.near, func() error { called.Add(1); return p.echo() })
	defer stop()
	p.ask(t)
	time.Sleep(300 * time.Millisecond) // whatever it does, it does it meanwhile
	if n := called.Load(); n > 100 {
		t.Errorf("it looked for packets %d times in 300 ms", n)
	}
	p.ask(t)
}

// A worker that has no end of packets leaves other goroutines their part: those
// that wait for a file, for time and for each other.
func TestWorkerLetsOthersWork(t *testing.T) {
	for _, processors := range []int{1, 2} {
		for _, begin := range []string{"busy at once", "busy after a wait"} {
			before := runtime.GOMAXPROCS(processors)
			p := newPair(t)
			var busy atomic.Bool
			busy.Store(begin == "busy at once")
			_, stop := startWorker(t, p.near, func() error {
				if busy.Load() {
					return nil
				}
				err := p.echo()
				busy.Store(err == nil)
				return err
			})
			if !busy.Load() {
				p.ask(t)
			}

			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			answers, back := make(chan byte), make(chan byte)
			go func() { // is woken by the file
				for {
					var b [1]byte
					if _, err := r.Read(b[:]); err != nil {
						close(answers)
						return
					}
					answers <- b[0]
				}
			}()
			go func() { // is woken by that one
				for b := range answers {
					back <- b
				}
				close(back)
			}()
			const rounds = 20
			var worst time.Duration
			for i := range rounds {
				time.Sleep(time.Millisecond) // so that nobody is at work but the worker
				sent := time.Now()
				if _, err := w.Write([]byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
				select {
				case <-back:
				case <-time.After(patience):
					t.Fatalf("%d processors, %s: a goroutine that waits for a file is not served at all", processors, begin)
				}
				worst = max(worst, time.Since(sent))
			}
			if worst > time.Second {
				t.Errorf("%d processors, %s: a goroutine that waits for a file is served after %v", processors, begin, worst)
			}
			begun := time.Now()
			runtime.GC() // which has to stop the worker
			if took := time.Since(begun); took > 2*time.Second {
				t.Errorf("%d processors, %s: collecting garbage takes %v", processors, begin, took)
			}
			w.Close()
			<-back
			r.Close()
			stop()
			runtime.GOMAXPROCS(before)
		}
	}
}

// Failures slow a worker down, but do not end it, and one that comes alone costs
// nothing.
func TestWorkerFailures(t *testing.T) {
	p := newPair(t)
	var failures atomic.Int64
	const most = 30
	_, stop := startWorker(t, p.near, func() error {
		if failures.Load() < most {
			failures.Add(1)
			return os.NewSyscallError("read", unix.EIO)
		}
		return p.echo()
	})
	defer stop()
	begin := time.Now()
	p.ask(t)
	// 0 + 0.1 + 0.2 + ... ms
	if took, least := time.Since(begin), most*(most-1)/2*100*time.Microsecond; took < least-time.Millisecond {
		t.Errorf("%d failures within %v, want pauses of %v", most, took, least)
	}
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

// The loss of the device ends a worker at once.
func TestWorkerDeviceLost(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	lost := 0
	w, err := newWorker(newPair(t).near, func() error {
		lost++
		return errDeviceLost
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.run() }()
	if err := within(ended); !errors.Is(err, errDeviceLost) || lost != 1 {
		t.Errorf("run returned %v, after %d calls", err, lost)
	}
	w.stop() // as the path does then
}

// One thread that does not come back must not keep all others from running.
func TestWorkerProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(before)
	p := newPair(t)
	_, stop := startWorker(t, p.near, p.echo)
	p.ask(t)
	if n := runtime.GOMAXPROCS(0); n < processors {
		t.Errorf("GOMAXPROCS is %d", n)
	}
	stop()
}

func TestNewWorkerFails(t *testing.T) {
	if _, err := newWorker(-1, nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("of a file that is not open: %v", err)
	}
}
