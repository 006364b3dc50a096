package udp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

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

// way is one on which carry is called for what is written to the far end.
func (p pair) way(carry func() error) *way { return &way{fd: p.near, carry: carry} }

// noWay is one without packets.
func noWay(t testing.TB) *way {
	t.Helper()
	p := newPair(t)
	return p.way(p.echo)
}

// startWorkers runs workers. The function it returns stops them and expects them to
// end at once and without an error.
func startWorkers(t testing.TB, in, out *way, prepare ...func(w *workers)) (w *workers, stop func()) {
	t.Helper()
	before := runtime.GOMAXPROCS(0)
	w, err := newWorkers(in, out)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare {
		f(w)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.run() }()
	return w, func() {
		t.Helper()
		begin := time.Now()
		w.stop()
		if err := within(ended); err != nil {
			t.Errorf("run returned %v", err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %v to stop", took)
		}
		if in.turns.Load()%2 == 1 || out.turns.Load()%2 == 1 {
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

// roles are the ways that a test takes for its own, by turns, beside one without
// packets.
var roles = []struct {
	name string
	ways func(own, other *way) (in, out *way)
}{
	{"in", func(own, other *way) (in, out *way) { return own, other }},
	{"out", func(own, other *way) (in, out *way) { return other, own }},
}

// No message is waited for in vain, whether they come fast or slowly.
func TestWorkersCarry(t *testing.T) {
	for _, role := range roles {
		t.Run(role.name, func(t *testing.T) {
			p := newPair(t)
			in, out := role.ways(p.way(p.echo), noWay(t))
			_, stop := startWorkers(t, in, out)
			defer stop()
			for i := range 3000 {
				p.ask(t)
				if i%500 == 0 {
					time.Sleep(70 * time.Millisecond) // so that it waits for long
				}
			}
		})
	}
}

// A packet that comes just after a look for packets is not overlooked, be it that
// the worker then looks again or comes to rest.
func TestWorkersOverlookNothing(t *testing.T) {
	for _, role := range roles {
		t.Run(role.name, func(t *testing.T) {
			p := newPair(t)
			var last time.Time
			looks, rounds, carried := 0, 0, make(chan time.Duration, 100)
			in, out := role.ways(p.way(func() error {
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
			}), noWay(t))
			_, stop := startWorkers(t, in, out)
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
		})
	}
}

// What is answered at once is found on the way out before anything is waited for,
// by the worker that has brought the question in.
func TestWorkersAnswer(t *testing.T) {
	in, out := newPair(t), newPair(t)
	var asked bool
	var late atomic.Int64
	_, stop := startWorkers(t, in.way(func() error {
		var b [8]byte
		_, err := unix.Read(in.near, b[:])
		if err == nil {
			asked = true // the race detector sees when it is another goroutine that answers
			unix.Write(out.far, []byte("!"))
		} else if asked {
			late.Add(1)
		}
		return err
	}), out.way(func() error {
		err := out.echo()
		if err == nil {
			asked = false
		}
		return err
	}), func(w *workers) { w.relieveAfter = time.Hour })
	defer stop()
	for i := range 30 {
		unix.Write(in.far, []byte("?"))
		awaitInput(t, out.far)
		var b [8]byte
		unix.Read(out.far, b[:])
		time.Sleep(time.Duration(i%3) * 30 * time.Millisecond)
	}
	if n := late.Load(); n > 0 {
		t.Errorf("%d times it looked for other packets before it answered", n)
	}
}

// counted is a pair that sees whether two workers carry messages on it at once.
type counted struct {
	pair
	at, twice atomic.Bool
}

func (c *counted) echo() error {
	if !c.at.CompareAndSwap(false, true) {
		c.twice.Store(true)
	}
	defer c.at.Store(false)
	err := c.pair.echo()
	if err == nil {
		for begin := time.Now(); time.Since(begin) < 20*time.Microsecond; { // as a batch takes
		}
	}
	return err
}

// While both ways have packets without end, two workers carry them at once. When
// that is over there is one again, which has not waited for it in vain.
func TestWorkersRelieve(t *testing.T) {
	in, out := newPair(t), newPair(t)
	var inBusy, outBusy atomic.Bool
	var outLooks atomic.Int64
	held := make(chan chan bool, 1)
	w, stop := startWorkers(t, in.way(func() error {
		if inBusy.Load() {
			return nil
		}
		return in.echo()
	}), out.way(func() error {
		outLooks.Add(1)
		select {
		case release := <-held: // the way out is held up
			<-release
		default:
		}
		if outBusy.Load() {
			return nil
		}
		return out.echo()
	}))
	defer stop()
	soonest := time.Hour
	for range 5 {
		in.ask(t)
		out.ask(t)
		for _, way := range []*atomic.Bool{&inBusy, &outBusy} {
			time.Sleep(longEnough) // so that it waits
			way.Store(true)
			time.Sleep(10 * longEnough)
			if w.relieved.Load() {
				t.Error("there are two workers for one way")
			}
			way.Store(false)
		}

		inBusy.Store(true)
		outBusy.Store(true)
		awaitTrue(t, "a second worker", w.relieved.Load)
		release := make(chan bool)
		held <- release
		awaitTrue(t, "the way out held up", func() bool { return len(held) == 0 })
		turns := w.in.turns.Load()
		awaitTrue(t, "the way in going on", func() bool { return w.in.turns.Load() > turns+10 })
		close(release)

		outBusy.Store(false)
		awaitTrue(t, "the second worker gone", func() bool { return !w.relieved.Load() })
		time.Sleep(10 * longEnough)
		if w.relieved.Load() {
			t.Error("a second worker has come again, for one way")
		}

		outBusy.Store(true)
		awaitTrue(t, "a second worker again", w.relieved.Load)
		inBusy.Store(false)
		outBusy.Store(false)
		for w.relieved.Load() {
			in.ask(t) // so that it has just begun to wait when the second goes
			time.Sleep(longEnough)
		}
		outLooks.Store(0)
		begin := time.Now()
		out.ask(t)
		soonest = min(soonest, time.Since(begin))
		time.Sleep(nearby / 2)
		if n := outLooks.Load(); n > 10 {
			t.Errorf("it looked %d times for packets within %v", n, nearby/2)
		}
	}
	if soonest > nearby/2 {
		t.Errorf("what came when the second had gone was carried after %v at best", soonest)
	}
}

// Bursts on both ways, so that the second worker comes and goes: all packets get where
// they go, and at no time are there two workers on one way.
func TestWorkersTakeTurns(t *testing.T) {
	ways := []*counted{{pair: newPair(t)}, {pair: newPair(t)}}
	w, stop := startWorkers(t, ways[0].way(ways[0].echo), ways[1].way(ways[1].echo))
	defer stop()
	var g errgroup.Group
	var second atomic.Int64
	for i, c := range ways {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(i), 3))
			for round := range 40 {
				for end := time.Now().Add(time.Duration(r.IntN(16)) * time.Millisecond); time.Now().Before(end); {
					if err := c.burst(); err != nil {
						return fmt.Errorf("way %d, round %d: %w", i, round, err)
					}
					if w.relieved.Load() {
						second.Add(1)
					}
				}
				time.Sleep(time.Duration(r.IntN(int(3 * nearby / 2))))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if second.Load() == 0 {
		t.Error("there has never been a second worker")
	}
	for i, c := range ways {
		if c.twice.Load() {
			t.Errorf("way %d was taken by two workers at once", i)
		}
	}
}

// burst sends messages so that some are always under way, and waits for all.
func (c *counted) burst() error {
	const most, atOnce = 100, 8 // a socket queues ten
	for sent, back := 0, 0; back < most; {
		for ; sent < most && sent-back < atOnce; sent++ {
			if _, err := unix.Write(c.far, []byte("?")); err != nil {
				return err
			}
		}
		fds := []unix.PollFd{{Fd: int32(c.far), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(patience/time.Millisecond))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("message %d of %d is waited for in vain", back, sent)
		}
		var b [8]byte
		if _, err := unix.Read(c.far, b[:]); err != nil {
			return err
		}
		back++
	}
	return nil
}

// awaitTrue waits until something is so.
func awaitTrue(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Workers end when they are told to, whatever they are doing.
func TestWorkersStop(t *testing.T) {
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
				own := p.way(func() error { called.Add(1); return tc.carry(p) })
				in, out := roles[i%2].ways(own, noWay(t))
				_, stop := startWorkers(t, in, out)
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
	t.Run("both", func(t *testing.T) {
		for i := range 20 {
			var quiet atomic.Bool
			carry := func() error {
				if quiet.Load() {
					return unix.EAGAIN
				}
				return nil
			}
			slowly := func() error {
				time.Sleep(2 * time.Millisecond) // so that it is likely at work
				return carry()
			}
			w, stop := startWorkers(t, newPair(t).way(carry), newPair(t).way(slowly))
			awaitTrue(t, "a second worker", w.relieved.Load)
			quiet.Store(i%2 == 0)
			stop()
		}
	})
	t.Run("before it begins", func(t *testing.T) {
		p := newPair(t)
		carry := func() error { t.Error("it carries"); return nil }
		w, err := newWorkers(p.way(carry), newPair(t).way(carry))
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
func TestWorkersRest(t *testing.T) {
	var called atomic.Int64
	in, out := newPair(t), newPair(t)
	count := func(p pair) *way { return p.way(func() error { called.Add(1); return p.echo() }) }
	_, stop := startWorkers(t, count(in), count(out))
	defer stop()
	in.ask(t)
	time.Sleep(300 * time.Millisecond) // whatever it does, it does it meanwhile
	if n := called.Load(); n > 20 {
		t.Errorf("it looked for packets %d times in 300 ms", n)
	}
	out.ask(t)
}

// Workers that have no end of packets leave other goroutines their part: those that
// wait for a file, for time and for each other.
func TestWorkersLetOthersWork(t *testing.T) {
	for _, processors := range []int{1, 2} {
		for _, begin := range []string{"busy at once", "busy after a wait", "busy on both ways"} {
			before := runtime.GOMAXPROCS(processors)
			p := newPair(t)
			var busy atomic.Bool
			busy.Store(begin == "busy at once")
			other := noWay(t)
			if begin == "busy on both ways" {
				other.carry = func() error { return nil }
			}
			w, stop := startWorkers(t, p.way(func() error {
				if busy.Load() {
					return nil
				}
				err := p.echo()
				busy.Store(err == nil)
				return err
			}), other)
			if !busy.Load() {
				p.ask(t)
			}
			if begin == "busy on both ways" {
				awaitTrue(t, "a second worker", w.relieved.Load)
			}

			r, pipe, err := os.Pipe()
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
				if _, err := pipe.Write([]byte{byte(i)}); err != nil {
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
			pipe.Close()
			<-back
			r.Close()
			stop()
			runtime.GOMAXPROCS(before)
		}
	}
}

// Failures slow a worker down, but do not end it, and one that comes alone costs
// nothing.
func TestWorkersFailures(t *testing.T) {
	p := newPair(t)
	var failures atomic.Int64
	const most = 30
	_, stop := startWorkers(t, noWay(t), p.way(func() error {
		if failures.Load() < most {
			failures.Add(1)
			return os.NewSyscallError("read", unix.EIO)
		}
		return p.echo()
	}))
	defer stop()
	begin := time.Now()
	p.ask(t)
	// 0 + 0.1 + 0.2 + ... ms
	if took, least := time.Since(begin), most*(most-1)/2*100*time.Microsecond; took < least-time.Millisecond {
		t.Errorf("%d failures within %v, want pauses of %v", most, took, least)
	}
}

// The loss of the device ends workers at once, whichever of them meets with it.
func TestWorkersDeviceLost(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for _, tc := range []struct {
		name        string
		both        bool // are busy before
		inIs, outIs error
	}{
		{"in", false, errDeviceLost, unix.EAGAIN},
		{"out", false, unix.EAGAIN, errDeviceLost},
		{"in, of two", true, errDeviceLost, nil},
		{"out, of two", true, unix.EAGAIN, errDeviceLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var lost atomic.Bool
			lost.Store(!tc.both)
			carry := func(then error) func() error {
				return func() error {
					if lost.Load() {
						return then
					}
					return nil
				}
			}
			w, err := newWorkers(newPair(t).way(carry(tc.inIs)), newPair(t).way(carry(tc.outIs)))
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- w.run() }()
			if tc.both {
				awaitTrue(t, "a second worker", w.relieved.Load)
				lost.Store(true)
			}
			if err := within(ended); !errors.Is(err, errDeviceLost) {
				t.Errorf("run returned %v", err)
			}
			w.stop() // as the path does then
		})
	}
}

// Threads that do not come back must not keep all others from running.
func TestWorkersProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(before)
	p := newPair(t)
	_, stop := startWorkers(t, p.way(p.echo), noWay(t))
	p.ask(t)
	if n := runtime.GOMAXPROCS(0); n < processors {
		t.Errorf("GOMAXPROCS is %d", n)
	}
	stop()
}

func TestNewWorkersFails(t *testing.T) {
	for _, role := range roles {
		in, out := role.ways(&way{fd: -1}, noWay(t))
		if _, err := newWorkers(in, out); !errors.Is(err, unix.EBADF) {
			t.Errorf("%s, of a file that is not open: %v", role.name, err)
		}
	}
}
