package udp

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// workers carry packets both ways. They are one goroutine while little goes on, and
// two while there is more than one keeps up with:
//
// The first attends to both ways. What this host answers at once to a packet from a
// peer, it finds on its way out right after it has written that packet to the
// device. Another goroutine would have to be woken for it, maybe on a processor that
// sleeps, and that takes longer than all that is done with the packet.
//
// When there are packets on both ways and the first has not come to wait for a
// while, a second relieves it of the way out. It goes when no packet has come there
// for a while.
//
// Both keep clear of the scheduler, whose part in a system call is large beside what
// is done with a packet: their system calls are made past it (unix.RawSyscall), and
// for some time after the last packet they wait for the next in such a call as well.
// Only after that does the first wait as goroutines do.
type workers struct {
	in, out *way

	// epoll is readable when there are packets on either way, or bell has rung. The
	// scheduler does not wait for the ways themselves because that would be for
	// writing as well, and so end whenever the kernel has sent something.
	epoll    *os.File
	epollFD  int  // its descriptor, which is open as long as run has not returned
	watching bool // epoll heeds the ways

	// bell is an eventfd that ends all waiting.
	bell   *os.File
	bellFD int // its descriptor, which is open as long as run has not returned

	stopped atomic.Bool

	// relieveAfter is longEnough, but in tests of what the first does alone: on a busy
	// machine it may be kept waiting for as long at any time.
	relieveAfter time.Duration
	// relieved tells that the second has the way out.
	relieved atomic.Bool
	second   sync.WaitGroup
}

const (
	// nearby is how long after the last packet a worker waits for the next without
	// giving its processor back to the scheduler.
	nearby = 50 * time.Millisecond

	// longEnough is how long the first is at work on both ways, without any time to
	// wait, until it is relieved of one. A thread is started within a tenth of it.
	longEnough = time.Millisecond

	// processors is how many the scheduler needs at least: each of two workers
	// keeps one while there are packets, and all else the daemon does needs one, too.
	processors = 3
)

func newWorkers(in, out *way) (*workers, error) {
	w := &workers{in: in, out: out, watching: true, relieveAfter: longEnough}
	if err := w.open(); err != nil {
		w.close()
		return nil, fmt.Errorf("watching for packets: %w", err)
	}
	return w, nil
}

func (w *workers) open() (err error) {
	// Nothing is read from epoll, but os.NewFile takes only what does not block for
	// something that can be waited for.
	if w.epollFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.SetNonblock(w.epollFD, true); err != nil {
		unix.Close(w.epollFD)
		return os.NewSyscallError("fcntl", err)
	}
	w.epoll = os.NewFile(uintptr(w.epollFD), "epoll")
	if w.bellFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	w.bell = os.NewFile(uintptr(w.bellFD), "eventfd")
	for _, fd := range []int{w.in.fd, w.out.fd, w.bellFD} {
		if err = unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	return nil
}

// close is for workers that do not run. Those that do close everything at the end.
func (w *workers) close() {
	for _, f := range []*os.File{w.epoll, w.bell} {
		if f != nil {
			f.Close()
		}
	}
}

// run carries packets until stop is called, or there are never to be any more,
// which is an error.
func (w *workers) run() error {
	defer func() {
		w.stop()
		w.second.Wait()
		w.close()
	}()
	conn, err := w.epoll.SyscallConn()
	if err != nil {
		return fmt.Errorf("watching for packets: %w", err)
	}
	// Set, the runtime does not lower it later, as it does by itself where a
	// container's share of processors shrinks.
	runtime.GOMAXPROCS(max(processors, runtime.GOMAXPROCS(0)))
	var failed error
	// Read calls it again after each wait, until it returns true.
	err = conn.Read(func(uintptr) bool {
		if !w.stopped.Load() {
			failed = w.attend()
		}
		return failed != nil || w.stopped.Load()
	})
	if failed == nil && err != nil {
		failed = fmt.Errorf("waiting for packets: %w", err)
	}
	return failed
}

// stop makes run return.
func (w *workers) stop() {
	w.stopped.Store(true)
	w.ring()
}

// ring ends the waiting of both workers. The bell rings until it is hushed.
func (w *workers) ring() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = w.bell.Write(one[:]) // it can only fail where it is closed, and nobody waits
}

func (w *workers) hush() {
	var count [8]byte
	_, _ = unix.Read(w.bellFD, count[:])
}

// attend is the first worker, until no packet has come for a while.
func (w *workers) attend() error {
	ways := [2]*way{w.in, w.out}
	n := len(ways)       // its own, the first so many of ways
	next := 0            // the one to look at
	empty := 0           // ways in a row without a packet
	var busy [2]bool     // ways with packets since it last waited
	var last time.Time   // when there was a packet
	waited := time.Now() // when it last waited
	for {
		if n == 1 && !w.relieved.Load() {
			n, empty, busy, waited = 2, 0, [2]bool{}, time.Now()
			w.hush()
		}
		next %= n
		found, err := ways[next].look()
		if err != nil || w.stopped.Load() {
			return err
		}
		now := time.Now()
		if found {
			last, empty, busy[next] = now, 0, true
		} else {
			empty++
		}
		next++
		quiet := n == 2 && now.Sub(last) > nearby
		switch {
		case empty < n && now.Sub(waited) <= w.relieveAfter:
		case empty < n:
			if w.watching {
				err = w.watch(false)
			} else if n == 2 && busy[0] && busy[1] {
				n = 1
				w.relieved.Store(true)
				w.second.Go(w.relieve)
			}
		case quiet && w.watching:
			return nil
		case quiet:
			// Before it rests it looks at both once more, when epoll heeds them
			// already: of what has come before that, epoll may say nothing.
			err = w.watch(true)
			empty = 0
		default:
			if w.watching {
				// Only now, when what has woken it has been dealt with.
				err = w.watch(false)
			}
			if err == nil {
				next, err = w.poll(ways[:n], now.Add(nearby))
			}
			empty, busy, waited = 0, [2]bool{}, time.Now()
		}
		if err != nil {
			return err
		}
	}
}

// relieve is the second worker, which has the way out until no packet has come
// there for a while. Errors are for the first, which meets with the same.
func (w *workers) relieve() {
	for last := time.Now(); ; {
		found, err := w.out.look()
		if err != nil || w.stopped.Load() {
			break
		}
		now := time.Now()
		if found {
			last = now
			continue
		}
		if now.Sub(last) > nearby {
			break
		}
		if _, err := w.poll([]*way{w.out}, now.Add(nearby)); err != nil {
			break
		}
	}
	// In this order, so that the first does not hush the bell before it rings.
	w.ring()
	w.relieved.Store(false)
}

// poll waits for packets past the scheduler, until some time at most, and returns the
// index of a way that has some.
func (w *workers) poll(ways []*way, until time.Time) (ready int, err error) {
	for {
		// When the scheduler needs this thread, a signal ends the wait, and the next
		// call of a function gives it the thread. That is no reason to look for
		// packets.
		ready, err = w.pollOnce(ways, time.Until(until))
		if err != unix.EINTR {
			return ready, err
		}
	}
}

func (w *workers) pollOnce(ways []*way, most time.Duration) (ready int, err error) {
	fds := [3]unix.PollFd{{Fd: int32(w.bellFD), Events: unix.POLLIN}}
	for i, way := range ways {
		fds[1+i] = unix.PollFd{Fd: int32(way.fd), Events: unix.POLLIN}
	}
	timeout := unix.NsecToTimespec(int64(max(0, most)))
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), uintptr(1+len(ways)), uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
	switch errno {
	case 0:
	case unix.EINTR:
		return 0, unix.EINTR
	default:
		return 0, fmt.Errorf("waiting for packets: %w", os.NewSyscallError("ppoll", errno))
	}
	for i := range ways {
		if fds[1+i].Revents != 0 {
			return i, nil
		}
	}
	return 0, nil
}

// watch says whether epoll is to heed the ways: packets that come from now on.
func (w *workers) watch(on bool) error {
	event := unix.EpollEvent{}
	if on {
		event.Events = unix.EPOLLIN
	}
	for _, way := range []*way{w.in, w.out} {
		if err := unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_MOD, way.fd, &event); err != nil {
			return fmt.Errorf("watching for packets: %w", os.NewSyscallError("epoll_ctl", err))
		}
	}
	w.watching = on
	if !on {
		// The thread that waited for what goroutines wait for is this one now, and
		// the scheduler does not learn that it will not come back for long. But a
		// goroutine to be run, even one that does nothing, makes it start another,
		// which goes on to wait. As epoll heeds no packets, they do not wake that
		// thread, too.
		go func() {}()
	}
	return nil
}

// stuck reports whether a batch has been on one of the ways for too long. Calls come
// from one goroutine.
func (w *workers) stuck() bool {
	in, out := w.in.stuck(), w.out.stuck()
	return in || out
}
