package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrMissed says that more has happened than the socket could hold.
var ErrMissed = errors.New("notifications from the kernel were dropped")

// Notices is a socket on which the kernel tells what others have changed.
//
// It is waited for in poll(2), not by Go's own poller, so that nobody is woken
// for each notice of a flood while nobody is in Receive: that would cost whoever
// causes the flood more than the changes themselves.
type Notices struct {
	fd     int
	stop   int // an eventfd that ends poll
	buffer []byte
}

// roomForNotices is the receive buffer in bytes. It has to hold what comes while
// nobody reads, about a KiB a notice: the change of a table of ten thousands.
const roomForNotices = 32 << 20

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
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	n := &Notices{fd: fd, stop: stop, buffer: make([]byte, bufferSize)}
	if err := set(fd, own, groups); err != nil {
		n.Close()
		return nil, fmt.Errorf("subscribing to the kernel's notifications: %w", err)
	}
	return n, nil
}

func set(fd int, own *Socket, groups []int) error {
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

// Receive waits for notices and calls each with all that there are, one after
// the other; their data is good until each returns. ErrMissed tells that some
// were dropped; another error is for good, os.ErrClosed after Interrupt.
func (n *Notices) Receive(each func(Message)) error {
	waiting := []unix.PollFd{{Fd: int32(n.fd), Events: unix.POLLIN}, {Fd: int32(n.stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(waiting, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("poll", err)
		}
		break
	}
	if waiting[1].Revents != 0 {
		return os.ErrClosed
	}
	for {
		size, _, err := unix.Recvfrom(n.fd, n.buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return ErrMissed
		case err != nil:
			return fmt.Errorf("reading the kernel's notifications: %w", err)
		}
		for h, m := range parts(n.buffer[:size]) {
			each(Message{h.kind, m})
		}
	}
}

// Interrupt ends Receive, also when it is called later.
func (n *Notices) Interrupt() error {
	_, err := unix.Write(n.stop, order.AppendUint64(nil, 1))
	return os.NewSyscallError("write to an eventfd", err)
}

// Close closes the socket. Receive must have ended.
func (n *Notices) Close() error {
	return errors.Join(unix.Close(n.fd), unix.Close(n.stop))
}
