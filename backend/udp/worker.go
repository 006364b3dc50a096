package udp

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A worker carries packets one way. It is a goroutine that keeps clear of the
// scheduler, whose part in a system call takes longer than all that is done with a
// packet when little else goes on: its system calls are made past the scheduler
// (unix.RawSyscall), and for some time after the last packet it waits for the next
// in such a call as well. Only after that does it wait as goroutines do.
type worker struct {
	fd int // readable when there are packets
	// carry takes a batch of packets as far as they go, and returns unix.EAGAIN if
	// there were none.
	carry func() error

	// epoll is readable when fd is. The worker does not wait for fd itself because
	// that would be for writing as well, and so end whenever the kernel has sent
	// something.
	epoll    *os.File
	epollFD  int  // its descriptor, which is open as long as run has not returned
	watching bool // epoll heeds fd
	stopped  atomic.Bool

	turns atomic.Uint64 // odd while it is at work

	// When it was last asked whether it is stuck.
	seen  uint64 // turns
	since time.Time
}

// stuckAfter is how long one batch of packets may take. It takes microseconds,
// and on a busy machine some milliseconds.
const stuckAfter = 10 * time.Second

// nearby is how long after the last packet a worker waits for the next without
// giving its processor back to the scheduler.
const nearby = 50 * time.Millisecond

// processors is how many the scheduler needs at least: each of the two workers
// keeps one while there are packets, and all else the daemon does needs one, too.
const processors = 3

func newWorker(fd int, carry func() error) (*worker, error) {
	w := &worker{fd: fd, carry: carry, watching: true}
	var err error
	if w.epollFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("making an epoll descriptor: %w", err)
	}
	err = unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN})
	if err == nil {
		// Nothing is read from it, but os.NewFile takes only what does not block
		// for something that can be waited for.
		err = unix.SetNonblock(w.epollFD, true)
	}
	if err != nil {
		unix.Close(w.epollFD)
		return nil, fmt.Errorf("watching for packets: %w", err)
	}
	w.epoll = os.NewFile(uintptr(w.epollFD), "epoll")
	return w, nil
}

// run carries packets until stop is called, or there are never to be any more,
// which is an error.
func (w *worker) run() error {
	defer w.epoll.Close()
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
		failed = w.attend()
		return failed != nil || w.stopped.Load()
	})
	if failed == nil && err != nil && !w.stopped.Load() {
		failed = fmt.Errorf("waiting for packets: %w", err)
	}
	return failed
}

// stop makes run return.
func (w *worker) stop() {
	w.stopped.Store(true)
	w.epoll.Close() // ends its waiting
}

// attend carries packets until none has come for a while.
func (w *worker) attend() error {
	last := time.Now()
	for failures, resting := 0, false; ; {
		w.works()
		carried := w.carry()
		w.waits()
		switch {
		case w.stopped.Load():
			return nil
		case carried == nil:
			failures = 0
		case carried == unix.EAGAIN:
			if resting {
				return nil
			}
		case errors.Is(carried, errDeviceLost):
			return carried
		default:
			failures++
			pause(failures)
		}
		now := time.Now()
		if carried != unix.EAGAIN {
			last = now
		}
		// Before it rests it looks once more, when epoll heeds fd already: of what
		// has come before that, epoll may say nothing.
		resting = now.Sub(last) > nearby
		if err := w.watch(resting); err != nil {
			return err
		}
		if carried == unix.EAGAIN && !resting {
			if err := w.poll(nearby); err != nil {
				return err
			}
		}
	}
}

// poll waits for packets past the scheduler. It may return before there are any, as
// when the scheduler calls: a signal ends the wait.
func (w *worker) poll(most time.Duration) error {
	fds := [1]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	timeout := unix.NsecToTimespec(int64(most))
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), uintptr(len(fds)), uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return fmt.Errorf("waiting for packets: %w", errno)
	}
	return nil
}

// watch says whether epoll is to heed fd: packets that come from now on.
func (w *worker) watch(on bool) error {
	if w.watching == on {
		return nil
	}
	event := unix.EpollEvent{}
	if on {
		event.Events = unix.EPOLLIN
	}
	if err := unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_MOD, w.fd, &event); err != nil {
		return fmt.Errorf("watching for packets: %w", err)
	}
	w.watching = on
	if !on {
		// The scheduler does not learn that this goroutine keeps its thread for
		// long. But a goroutine to be run, even one that does nothing, makes it
		// start another thread, which then waits for what the other goroutines
		// wait for. As epoll heeds no packets, they do not wake that thread, too.
		go func() {}()
	}
	return nil
}

// pause keeps a worker from spinning when the same call fails again and again,
// without holding up packets for a failure that comes alone.
func pause(failures int) {
	time.Sleep(min(time.Duration(failures-1)*100*time.Microsecond, 10*time.Millisecond))
}

// works and waits are called by the worker itself, without a lock.
func (w *worker) works() { w.turns.Store(w.turns.Load() | 1) }
func (w *worker) waits() { w.turns.Store((w.turns.Load() + 1) &^ 1) }

// stuck reports whether the worker has been at work on one and the same batch for
// too long. Calls come from one goroutine.
func (w *worker) stuck() bool {
	now := time.Now()
	if turns := w.turns.Load(); turns != w.seen || w.since.IsZero() {
		w.seen, w.since = turns, now
	}
	return w.seen%2 == 1 && now.Sub(w.since) > stuckAfter
}
