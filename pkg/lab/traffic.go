package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// stalled is how long a connection may stand still before it counts as broken.
const stalled = 10 * time.Second

// connect makes a TCP connection from one place to another, which listens on
// addr, an address of its own.
func connect(from, to Place, addr netip.Addr) (sender, receiver *net.TCPConn, err error) {
	lis, err := to.node().Listen(netip.AddrPortFrom(addr, 0))
	if err != nil {
		return nil, nil, err
	}
	defer lis.Close()
	port := lis.Addr().(*net.TCPAddr).AddrPort().Port()
	ctx, cancel := context.WithTimeout(context.Background(), stalled)
	defer cancel()
	conn, err := from.node().Dial(ctx, "tcp4", netip.AddrPortFrom(addr, port))
	if err != nil {
		return nil, nil, err
	}
	lis.SetDeadline(time.Now().Add(stalled))
	receiver, err = lis.AcceptTCP()
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("accepting in %s: %w", to.node().Name, err)
	}
	return conn.(*net.TCPConn), receiver, nil
}

func source(receiver *net.TCPConn) netip.Addr {
	return receiver.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// SourceSeen is the address that a receiver sees a sender come from, by a TCP
// connection to addr, an address of the receiver.
func SourceSeen(from, to Place, addr netip.Addr) (netip.Addr, error) {
	sender, receiver, err := connect(from, to, addr)
	if err != nil {
		return netip.Addr{}, err
	}
	sender.Close()
	receiver.Close()
	return source(receiver), nil
}

// Transfer sends so many random bytes over TCP to addr, an address of the
// receiver, and checks that just those arrive. It returns the address that the
// receiver sees the sender come from.
func Transfer(from, to Place, addr netip.Addr, bytes int64) (seen netip.Addr, err error) {
	sender, receiver, err := connect(from, to, addr)
	if err != nil {
		return netip.Addr{}, err
	}
	defer receiver.Close()
	out, in := sha256.New(), sha256.New()
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() { sendErr = send(sender, out, bytes) })
	n, recvErr := receive(receiver, in)
	sender.SetDeadline(time.Now()) // if the receiver gave up, there is no use in sending on
	wg.Wait()
	if recvErr != nil || sendErr != nil || n != bytes {
		return netip.Addr{}, fmt.Errorf("transfer from %s to %s: %d of %d bytes arrived: %w", from.node().Name, addr, n, bytes, errors.Join(recvErr, sendErr))
	}
	if [32]byte(out.Sum(nil)) != [32]byte(in.Sum(nil)) {
		return netip.Addr{}, fmt.Errorf("transfer from %s to %s: the %d bytes that arrived are not those sent", from.node().Name, addr, n)
	}
	return source(receiver), nil
}

func send(conn net.Conn, sum hash.Hash, bytes int64) error {
	defer conn.Close()
	data := rand.NewChaCha8([32]byte{byte(rand.Int()), byte(rand.Int()), byte(rand.Int()), byte(rand.Int())})
	buf := make([]byte, 128<<10)
	for bytes > 0 {
		b := buf[:min(bytes, int64(len(buf)))]
		data.Read(b) // has no errors
		sum.Write(b)
		conn.SetWriteDeadline(time.Now().Add(stalled))
		n, err := conn.Write(b)
		bytes -= int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

func receive(conn net.Conn, sum hash.Hash) (bytes int64, err error) {
	buf := make([]byte, 128<<10)
	for {
		conn.SetReadDeadline(time.Now().Add(stalled))
		n, err := conn.Read(buf)
		bytes += int64(n)
		sum.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return bytes, nil
		} else if err != nil {
			return bytes, err
		}
	}
}

// Throughput sends as much as fits over so many TCP connections for so long,
// to addr, an address of the receiver, and returns what arrived, in bits per
// second.
func Throughput(from, to Place, addr netip.Addr, duration time.Duration, streams int) (bitsPerSecond float64, err error) {
	var conns []*net.TCPConn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range streams {
		sender, receiver, err := connect(from, to, addr)
		if err != nil {
			return 0, err
		}
		conns = append(conns, sender, receiver)
	}
	var arrived atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(duration)
	start := time.Now()
	for i := 0; i < len(conns); i += 2 {
		sender, receiver := conns[i], conns[i+1]
		sender.SetDeadline(end)
		receiver.SetDeadline(end)
		wg.Go(func() {
			buf := make([]byte, 512<<10)
			for {
				if _, err := sender.Write(buf); err != nil {
					return // mostly the deadline; if not, little arrives and that tells
				}
			}
		})
		wg.Go(func() {
			buf := make([]byte, 1<<20)
			for {
				n, err := receiver.Read(buf)
				arrived.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	if arrived.Load() == 0 || elapsed < duration/2 {
		return 0, fmt.Errorf("throughput from %s to %v: %d bytes in %v, so the connections broke", from.node().Name, addr, arrived.Load(), elapsed)
	}
	return float64(arrived.Load()) * 8 / elapsed.Seconds(), nil
}

// streamEvery is how often a Stream sends a piece, and streamPiece its size in
// bytes: enough for gaps to show, little enough to leave the processor to what
// is under test.
const (
	streamEvery = 2 * time.Millisecond
	streamPiece = 4 << 10
)

// A Stream is a TCP connection on which random bytes flow, a few all the time,
// while something else goes on.
type Stream struct {
	sender, receiver *net.TCPConn
	from             string
	stop             chan struct{}
	sent, arrived    atomic.Int64
	wg               sync.WaitGroup

	out, in          hash.Hash // these are their goroutine's own until wg is done
	sendErr, recvErr error
}

// NewStream begins a stream to addr, an address of the receiver. It is to be
// ended by Close.
func NewStream(from, to Place, addr netip.Addr) (*Stream, error) {
	sender, receiver, err := connect(from, to, addr)
	if err != nil {
		return nil, err
	}
	s := &Stream{sender: sender, receiver: receiver, from: from.node().Name, stop: make(chan struct{}), out: sha256.New(), in: sha256.New()}
	s.wg.Go(s.send)
	s.wg.Go(s.receive)
	return s, nil
}

func (s *Stream) send() {
	defer s.sender.CloseWrite()
	data := rand.NewChaCha8([32]byte{byte(rand.Int()), byte(rand.Int())})
	piece := make([]byte, streamPiece)
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		data.Read(piece) // has no errors
		s.sender.SetWriteDeadline(time.Now().Add(stalled))
		n, err := s.sender.Write(piece)
		s.out.Write(piece[:n])
		s.sent.Add(int64(n))
		if err != nil {
			s.sendErr = err
			return
		}
	}
}

func (s *Stream) receive() {
	buf := make([]byte, 128<<10)
	for {
		s.receiver.SetReadDeadline(time.Now().Add(stalled))
		n, err := s.receiver.Read(buf)
		s.in.Write(buf[:n])
		s.arrived.Add(int64(n))
		if errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			s.recvErr = err
			return
		}
	}
}

// Sent is how many bytes the sender's kernel has taken so far; it goes on for a
// while when nothing arrives.
func (s *Stream) Sent() int64 { return s.sent.Load() }

// Arrived is how many bytes have arrived so far.
func (s *Stream) Arrived() int64 { return s.arrived.Load() }

// Close ends the stream in good order and returns an error if the connection
// broke, or if what arrived is not what was sent.
func (s *Stream) Close() error {
	close(s.stop)
	s.wg.Wait()
	s.sender.Close()
	s.receiver.Close()
	err := errors.Join(s.sendErr, s.recvErr)
	if err == nil && s.Sent() != s.Arrived() {
		err = errors.New("the rest is lost")
	}
	if err != nil {
		return fmt.Errorf("stream from %s: %d of %d bytes arrived: %w", s.from, s.Arrived(), s.Sent(), err)
	}
	if [32]byte(s.out.Sum(nil)) != [32]byte(s.in.Sum(nil)) {
		return fmt.Errorf("stream from %s: the %d bytes that arrived are not those sent", s.from, s.Sent())
	}
	return nil
}
