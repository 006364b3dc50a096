package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Echo says how to ping; the zero value is one echo of the usual 84 bytes.
type Echo struct {
	Count    int             // echoes to send; 0 is one
	Interval time.Duration   // between sends; 0 sends the next when the last is answered or given up
	Timeout  time.Duration   // to wait for each answer, and so until the next send after a loss; 0 is one second
	Size     int             // of the whole IP packet in bytes, header included, from 28 to 65535; 0 is 84
	DF       bool            // set "don't fragment", so that a packet larger than an MTU on the way is an error
	TTL      int             // time to live; 0 is the kernel's
	From     netip.Addr      // source address; the zero value leaves it to the kernel
	Context  context.Context // ends the run early, for pinging while something else goes on; nil is never
}

// EchoStats tells how a ping went.
type EchoStats struct {
	Sent, Received int
	Min, Mean, Max time.Duration // round trips of those received
}

func (s EchoStats) String() string {
	return fmt.Sprintf("%d of %d echoes answered, round trip min/mean/max %v/%v/%v", s.Received, s.Sent, s.Min, s.Mean, s.Max)
}

// An ICMPError is the answer of a node that could not deliver an echo, for
// tests that expect just that.
type ICMPError struct {
	From netip.Addr    // who says so
	Type ipv4.ICMPType // such as ipv4.ICMPTypeDestinationUnreachable
	Code int           // such as 0 for net unreachable, 4 for fragmentation needed
	MTU  int           // of the next hop, where fragmentation is needed
}

func (e *ICMPError) Error() string {
	s := fmt.Sprintf("%v says: %v, code %d", e.From, e.Type, e.Code)
	if e.MTU > 0 {
		s += fmt.Sprintf(", MTU %d", e.MTU)
	}
	return s
}

// Ping sends ICMP echoes from the namespace. It is an error if not all are
// answered; that error wraps the last thing that went wrong, which is an
// *ICMPError if somebody on the way objected. The statistics hold in any case.
func (n *Node) Ping(dst netip.Addr, e Echo) (EchoStats, error) {
	stats, err := n.ping(dst, e)
	if err == nil && stats.Received < stats.Sent {
		err = errors.New("no answer")
	}
	if err != nil {
		err = fmt.Errorf("ping from %s to %v: %d of %d echoes answered: %w", n.Name, dst, stats.Received, stats.Sent, err)
	}
	return stats, err
}

const icmpHeaders = 20 + 8 // of IPv4 without options and of an ICMP echo

func (n *Node) ping(dst netip.Addr, e Echo) (stats EchoStats, last error) {
	if e.Count == 0 {
		e.Count = 1
	}
	if e.Timeout == 0 {
		e.Timeout = time.Second
	}
	if e.Size == 0 {
		e.Size = 84
	}
	if e.Size < icmpHeaders || e.Size > 65535 {
		return stats, fmt.Errorf("size %d is not from %d to 65535", e.Size, icmpHeaders)
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	conn, err := n.echoSocket(e)
	if err != nil {
		return stats, err
	}
	defer conn.Close()
	var total time.Duration
	id := rand.N(1 << 16)
	for seq := 0; seq < e.Count && ctx.Err() == nil; seq++ {
		sent := time.Now()
		stats.Sent++
		rtt, err := echo(conn, dst, id, seq&0xffff, e)
		if err != nil {
			last = err
		} else {
			stats.Received++
			total += rtt
			if stats.Min == 0 || rtt < stats.Min {
				stats.Min = rtt
			}
			stats.Max = max(stats.Max, rtt)
		}
		if rest := e.Interval - time.Since(sent); rest > 0 && seq < e.Count-1 {
			pause(ctx, rest) // the loop looks at ctx
		}
	}
	if stats.Received > 0 {
		stats.Mean = total / time.Duration(stats.Received)
	}
	return stats, last
}

// echoSocket makes a raw ICMP socket in the namespace.
func (n *Node) echoSocket(e Echo) (conn net.PacketConn, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		discover := unix.IP_PMTUDISC_DONT // no DF bit
		if e.DF {
			discover = unix.IP_PMTUDISC_DO
		}
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover)
			if err == nil && e.TTL > 0 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, e.TTL)
			}
		})
		return errors.Join(cerr, err)
	}}
	from := netip.IPv4Unspecified()
	if e.From.IsValid() {
		from = e.From
	}
	err = n.Do(func() error {
		conn, err = lc.ListenPacket(context.Background(), "ip4:1", from.String())
		return err
	})
	return conn, err
}

// echo sends one echo and waits for its answer.
func echo(conn net.PacketConn, dst netip.Addr, id, seq int, e Echo) (rtt time.Duration, err error) {
	msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq, Data: make([]byte, e.Size-icmpHeaders)}}
	b, err := msg.Marshal(nil)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 65536)
	sent := time.Now()
	if err := conn.SetReadDeadline(sent.Add(e.Timeout)); err != nil {
		return 0, err
	}
	if _, err := conn.WriteTo(b, &net.IPAddr{IP: dst.AsSlice()}); err != nil {
		return 0, err
	}
	for {
		size, src, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("no answer within %v", e.Timeout)
		} else if err != nil {
			return 0, err
		}
		rtt := time.Since(sent)
		from, _ := netip.AddrFromSlice(src.(*net.IPAddr).IP)
		from = from.Unmap()
		b := buf[:size]
		if size < 8 {
			continue
		}
		switch typ := ipv4.ICMPType(b[0]); typ {
		case ipv4.ICMPTypeEchoReply:
			if from == dst && isEcho(b, id, seq) {
				if size != e.Size-20 {
					return 0, fmt.Errorf("the answer has %d bytes instead of %d", size+20, e.Size)
				}
				return rtt, nil
			}
		case ipv4.ICMPTypeDestinationUnreachable, ipv4.ICMPTypeTimeExceeded:
			if !quotes(b[8:], dst, id, seq) {
				continue
			}
			e := &ICMPError{From: from, Type: typ, Code: int(b[1])}
			if typ == ipv4.ICMPTypeDestinationUnreachable && e.Code == 4 {
				e.MTU = int(binary.BigEndian.Uint16(b[6:])) // RFC 1191, section 4
			}
			return 0, e
		}
	}
}

// isEcho reports whether an ICMP message is our echo or the answer to it.
func isEcho(b []byte, id, seq int) bool {
	return len(b) >= 8 && int(binary.BigEndian.Uint16(b[4:])) == id && int(binary.BigEndian.Uint16(b[6:])) == seq
}

// quotes reports whether b, which an ICMP error quotes, is the IP packet with
// our echo.
func quotes(b []byte, dst netip.Addr, id, seq int) bool {
	if len(b) < 20 {
		return false
	}
	header := int(b[0]&0xf) * 4
	return len(b) >= header && netip.AddrFrom4([4]byte(b[16:20])) == dst && isEcho(b[header:], id, seq)
}

// EventuallyPing waits until one echo from a place is answered, and fails t if
// that takes longer than within.
func EventuallyPing(t TB, within time.Duration, from Place, dst netip.Addr, e Echo) {
	t.Helper()
	if e.Timeout == 0 {
		e.Timeout = min(within, 200*time.Millisecond)
	}
	Eventually(t, within, "waiting for an answer", func() error {
		_, err := from.node().Ping(dst, e)
		return err
	})
}
