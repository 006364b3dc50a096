package main

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// groups are the notifications that writes to the kernel cause.
var groups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_NEXTHOP,
}

// receiveBuffer holds the notifications of thousands of entries, of about a
// kilobyte each with the kernel's own overhead, while the reader is not on a
// processor.
const receiveBuffer = 64 << 20

// watcher notes what changes in a host's kernel, and when.
type watcher struct {
	socket *os.File
	eth0   uint32 // its index
	done   chan struct{}

	mu      sync.Mutex
	writes  int
	waiting *expectation
	err     error // why the reader has ended
}

// expectation is changes that have to happen.
type expectation struct {
	left map[string]string // see entry
	last time.Time         // when the last of those that have happened did
	met  chan struct{}
}

// watch begins to watch a host.
func watch(h *lab.Host) (*watcher, error) {
	w := &watcher{done: make(chan struct{})}
	// A socket belongs to the namespace of the thread that opens it.
	err := h.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		w.eth0 = uint32(eth0.Index)
		w.socket, err = subscribe()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watching the kernel's notifications on %s: %w", h.Name, err)
	}
	go w.read()
	return w, nil
}

func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "netlink")
	// Without root there is less room. If that is too little, reading says so.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err == nil { // before the groups, which it would take away again
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	for _, group := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (w *watcher) read() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.socket.Read(buf)
		now := time.Now()
		var msgs []syscall.NetlinkMessage
		if err == nil {
			msgs, err = syscall.ParseNetlinkMessage(buf[:n])
		}
		w.mu.Lock()
		for _, m := range msgs {
			w.note(m, now)
		}
		w.err = err
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (w *watcher) note(m syscall.NetlinkMessage, now time.Time) {
	if w.ofARP(m) {
		return
	}
	w.writes++
	x := w.waiting
	if x == nil {
		return
	}
	e, ok := parse(m)
	if !ok {
		return
	}
	if value, wanted := x.left[e.key]; wanted && value == e.value {
		delete(x.left, e.key)
		x.last = now
		if len(x.left) == 0 {
			w.waiting = nil
			close(x.met)
		}
	}
}

// ofARP reports whether a message is of the kernel's own work: neighbours that
// the host talks to, of which flanneld writes none on this device.
func (w *watcher) ofARP(m syscall.NetlinkMessage) bool {
	neighbour := m.Header.Type == unix.RTM_NEWNEIGH || m.Header.Type == unix.RTM_DELNEIGH
	const index = 4 // where in struct ndmsg it is
	return neighbour && len(m.Data) >= index+4 && binary.NativeEndian.Uint32(m.Data[index:]) == w.eth0
}

// expect is to be called before what causes the changes.
func (w *watcher) expect(changes map[string]string) *expectation {
	x := &expectation{left: maps.Clone(changes), met: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = x
	return x
}

// await returns when the last of the changes happened.
func (w *watcher) await(x *expectation, timeout time.Duration) (time.Time, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-x.met:
		return x.last, nil
	case <-w.done:
	case <-timer.C:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = nil
	if w.err != nil {
		return time.Time{}, fmt.Errorf("watching the kernel's notifications: %w", w.err)
	}
	for key, value := range x.left {
		return time.Time{}, fmt.Errorf("the kernel has not told of %d changes within %v, among them: %s %s", len(x.left), timeout, key, value)
	}
	return x.last, nil
}

// stop ends the watching and returns how many writes there were.
func (w *watcher) stop() (writes int, err error) {
	w.mu.Lock()
	writes, err = w.writes, w.err
	w.mu.Unlock()
	w.socket.Close() // ends the reader
	<-w.done
	if err != nil {
		return writes, fmt.Errorf("watching the kernel's notifications: %w", err)
	}
	return writes, nil
}
