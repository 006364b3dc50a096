package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrMissed says that more has happened than the socket could hold.
var ErrMissed = errors.New("notifications from the kernel were dropped")

// Notices is a socket on which the kernel tells what others have changed.
type Notices struct {
	file   *os.File
	raw    syscall.RawConn
	buffer []byte
}

// roomForNotices is the receive buffer in bytes. It has to hold what comes while
// nobody reads, about a KiB a notice: here the flush of a table of thousands.
const roomForNotices = 16 << 20

// Subscribe opens a socket for the given groups (RTNLGRP_ numbers of
// rtnetlink(7)) in the network namespace of the calling thread. A group that
// the kernel does not know is left out. What was changed through own is not
// told, as far as the kernel says whose doing a change is: of FDB entries it
// does not.
func Subscribe(own *Socket, groups ...int) (*Notices, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	n := &Notices{file: os.NewFile(uintptr(fd), "netlink"), buffer: make([]byte, bufferSize)}
	if err := n.set(fd, own, groups); err != nil {
		n.Close()
		return nil, fmt.Errorf("subscribing to the kernel's notifications: %w", err)
	}
	return n, nil
}

func (n *Notices) set(fd int, own *Socket, groups []int) (err error) {
	if n.raw, err = n.file.SyscallConn(); err != nil {
		return err
	}
	port, err := own.port()
	if err != nil {
		return err
	}
	if err := leaveOut(fd, port); err != nil {
		return err
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	// Beyond the system's limit, as far as that is allowed.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, roomForNotices) != nil {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, roomForNotices)
	}
	return nil
}

// leaveOut makes the kernel drop messages whose nlmsg_pid is the given port,
// before they take room on the socket.
func leaveOut(fd int, port uint32) error {
	const pidOffset = 12 // of nlmsg_pid in struct nlmsghdr
	// A filter loads in network byte order what netlink writes in the host's.
	var swapped [4]byte
	order.PutUint32(swapped[:], port)
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: pidOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: binary.BigEndian.Uint32(swapped[:])},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// Receive waits for notices and calls each with one after the other; its data is
// good until each returns. ErrMissed tells that some were dropped; another error
// is for good, os.ErrClosed after Close.
func (n *Notices) Receive(each func(Message)) error {
	var size int
	var err error
	if n.raw.Read(func(fd uintptr) bool {
		size, _, err = unix.Recvfrom(int(fd), n.buffer, 0)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	}) != nil {
		return os.ErrClosed
	}
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return ErrMissed
	case err != nil:
		return fmt.Errorf("reading the kernel's notifications: %w", err)
	}
	for h, m := range parts(n.buffer[:size]) {
		each(Message{h.kind, m})
	}
	return nil
}

// Close ends Receive.
func (n *Notices) Close() error { return n.file.Close() }
