package rtnl

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bufferSize is for one answer. The kernel fills at most 32 KiB of it at a time
// (netlink_dump in net/netlink/af_netlink.c).
const bufferSize = 64 << 10

// Socket is for requests, by one goroutine at a time.
type Socket struct {
	fd       int
	sequence uint32
	buffer   []byte
}

// Open opens a socket in the network namespace of the calling thread.
func Open() (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	// Each of these only makes answers smaller or clearer; older kernels do
	// without. With strict checking, a table can be asked for by its number
	// (4.20); without CAP_ACK an error repeats the request.
	for _, option := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	return &Socket{fd: fd, buffer: make([]byte, bufferSize)}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return unix.Close(s.fd) }

// port is the socket's address, which the kernel puts into notifications of what
// was changed through it.
func (s *Socket) port() (uint32, error) {
	a, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0, os.NewSyscallError("asking for a netlink socket's port", err)
	}
	return a.(*unix.SockaddrNetlink).Pid, nil
}

// Error is the kernel's refusal of a request.
type Error struct {
	Errno unix.Errno
	// Text is the kernel's own explanation, if it gives one.
	Text string
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%v (%s)", e.Errno, e.Text)
}

// Unwrap makes errors.Is find the errno.
func (e *Error) Unwrap() error { return e.Errno }

// refusal reads the body of an NLMSG_ERROR; nil is an acknowledgement.
func refusal(flags uint16, b []byte) error {
	if len(b) < 4 {
		return errors.New("the kernel's answer is cut off")
	}
	code := int32(order.Uint32(b))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	// struct nlmsgerr: the error, the header of the request, and where that is
	// not capped, its body.
	rest := b[min(4+unix.SizeofNlMsghdr, len(b)):]
	if flags&unix.NLM_F_CAPPED == 0 && len(b) >= 4+unix.SizeofNlMsghdr {
		rest = rest[min(align(int(order.Uint32(b[4:])))-unix.SizeofNlMsghdr, len(rest)):]
	}
	if flags&unix.NLM_F_ACK_TLVS != 0 {
		for kind, v := range attributes(rest) {
			if kind == unix.NLMSGERR_ATTR_MSG && len(v) > 0 {
				e.Text = string(v[:len(v)-1]) // without the terminating zero
			}
		}
	}
	return e
}

// dump asks for a table. It returns netlink.ErrDumpInterrupted if the table has
// changed meanwhile, so that an entry may be missing or be there twice.
func (s *Socket) dump(kind uint16, body []byte, each func(Message)) error {
	s.sequence++
	request := putHeader(nil, kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, s.sequence)
	request = append(request, body...)
	order.PutUint32(request, uint32(len(request)))
	if err := unix.Sendto(s.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sending to netlink", err)
	}
	var interrupted bool
	for {
		answer, err := s.receive()
		if err != nil {
			return err
		}
		for h, m := range parts(answer) {
			if h.sequence != s.sequence {
				continue // of a dump that was given up
			}
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
			switch h.kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := refusal(h.flags|unix.NLM_F_CAPPED, m); err != nil {
					return err
				}
				if interrupted {
					return netlink.ErrDumpInterrupted
				}
				return nil
			default:
				each(Message{h.kind, m})
			}
		}
	}
}

// receive waits for the next answer. What it returns is good until the next call.
func (s *Socket) receive() ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("receiving from netlink", err)
		}
		return s.buffer[:n], nil
	}
}

// batchSize is how many requests go out at once. Each may come back as an error
// of up to a KiB of the socket's receive buffer, 208 KiB by default, and none
// must be lost.
const batchSize = 128

// A Batch is a row of requests, each of which succeeds or fails on its own. The
// zero value is empty.
type Batch struct {
	bytes []byte
	// ends are the requests' ends in bytes.
	ends []int
}

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.bytes, b.ends = b.bytes[:0], b.ends[:0] }

func (b *Batch) add(kind, flags uint16, put func([]byte) []byte) {
	begin := len(b.bytes)
	b.bytes = put(putHeader(b.bytes, kind, unix.NLM_F_REQUEST|flags, 0))
	order.PutUint32(b.bytes[begin:], uint32(len(b.bytes)-begin))
	b.ends = append(b.ends, len(b.bytes))
}

func putHeader(b []byte, kind, flags uint16, sequence uint32) []byte {
	b = order.AppendUint32(b, 0) // the length, once it is known
	b = order.AppendUint16(b, kind)
	b = order.AppendUint16(b, flags)
	b = order.AppendUint32(b, sequence)
	return order.AppendUint32(b, 0) // the kernel fills in the port
}

// Do makes the requests in order and calls failed with the index of each that
// the kernel refuses, an *Error. It returns an error if netlink itself fails;
// what has become of the requests is not known then.
func (s *Socket) Do(b *Batch, failed func(i int, err error)) error {
	begin := 0
	for first := 0; first < len(b.ends); first += batchSize {
		last := min(first+batchSize, len(b.ends)) - 1
		base := s.sequence + 1
		for i, at := first, begin; i <= last; i++ {
			s.sequence++
			order.PutUint32(b.bytes[at+8:], s.sequence)
			if i == last { // the answer to it tells that all is done
				order.PutUint16(b.bytes[at+6:], order.Uint16(b.bytes[at+6:])|unix.NLM_F_ACK)
			}
			at = b.ends[i]
		}
		if err := unix.Sendto(s.fd, b.bytes[begin:b.ends[last]], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return os.NewSyscallError("sending to netlink", err)
		}
		begin = b.ends[last]
		for done := false; !done; {
			answer, err := s.receive()
			if err != nil {
				return err
			}
			for h, m := range parts(answer) {
				if h.kind != unix.NLMSG_ERROR || h.sequence-base > uint32(last-first) {
					continue
				}
				if err := refusal(h.flags, m); err != nil {
					failed(first+int(h.sequence-base), err)
				}
				done = done || h.sequence == s.sequence
			}
		}
	}
	return nil
}
