// Package echo finds out which of many hosts answer, all at once: by ICMP echo
// (RFC 792), as ping does.
package echo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// tries is how often a host is asked that does not answer: the first question
	// may be lost to address resolution.
	tries = 2
	// patience is how long to wait for answers after the last question of a try.
	patience = time.Second
	// burst questions are sent every pause: 2,000 a second, which no host minds
	// receiving the answers of.
	burst = 20
	pause = 10 * time.Millisecond
)

// ErrNotAllowed says that this user may not send ICMP echoes.
var ErrNotAllowed = errors.New("only root, or who is in a group of the sysctl net.ipv4.ping_group_range, may send ICMP echoes")

// Answer is what came of asking one host.
type Answer struct {
	// Took is the round trip, of one that answered.
	Took time.Duration
	// Err says why there is no answer; nil where there is one.
	Err error
}

// Ask asks all hosts and returns their answers, in the same order. It takes the
// longest round trip where all answer, else about two seconds, and half a second
// more for each 1,000 hosts. An error, such as ErrNotAllowed, is of no host.
func Ask(ctx context.Context, hosts []netip.Addr) ([]Answer, error) {
	return ask(ctx, hosts, raw, echoes)
}

// The kinds of sockets there are for it, as package icmp names them: one for all
// of ICMP, which is root's, and one for echoes alone, which others may have too
// (icmp(7)).
const raw, echoes = "ip4:icmp", "udp4"

// ask is Ask with the first kind of socket that may be had.
func ask(ctx context.Context, hosts []netip.Addr, kinds ...string) ([]Answer, error) {
	a := asker{hosts: hosts, answers: make([]Answer, len(hosts)), sent: make([]time.Time, len(hosts)), all: make(chan struct{})}
	if len(hosts) == 0 {
		return nil, nil
	}
	for i := range a.answers {
		a.answers[i].Err = fmt.Errorf("no answer within %v", patience)
	}
	if _, err := rand.Read(a.token[:]); err != nil {
		return nil, err
	}
	if err := a.open(kinds); err != nil {
		return nil, err
	}
	var reading sync.WaitGroup
	reading.Go(a.read)
	err := a.ask(ctx)
	a.conn.Close() // which ends reading
	reading.Wait()
	return a.answers, err
}

// asker is the state of Ask.
type asker struct {
	hosts []netip.Addr
	conn  *icmp.PacketConn
	raw   bool
	// token is in each question, and tells its answer from all else that comes.
	token [8]byte
	all   chan struct{} // closed when all have answered

	mu      sync.Mutex
	answers []Answer
	sent    []time.Time // of the last question to each
	got     int
}

// open opens a socket.
func (a *asker) open(kinds []string) (err error) {
	for _, kind := range kinds {
		a.conn, err = icmp.ListenPacket(kind, "0.0.0.0")
		if a.raw = kind == raw; err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("opening a socket for ICMP: %w", err)
		}
	}
	return ErrNotAllowed
}

func (a *asker) ask(ctx context.Context) error {
	for range tries {
		n := 0
		for i := range a.hosts {
			if !a.silent(i) {
				continue
			}
			if err := a.send(i); err != nil {
				a.mu.Lock()
				a.answers[i].Err = err
				a.mu.Unlock()
				continue
			}
			if n++; n%burst == 0 && !a.wait(ctx, pause) {
				break
			}
		}
		if !a.wait(ctx, patience) {
			break
		}
	}
	return ctx.Err()
}

// silent reports whether a host has not answered yet.
func (a *asker) silent(i int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.answers[i].Err != nil
}

// wait reports false when there is nothing more to wait for.
func (a *asker) wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-a.all:
		return false
	case <-time.After(d):
		return true
	}
}

func (a *asker) send(i int) error {
	body := icmp.Echo{ID: int(binary.BigEndian.Uint16(a.token[:])), Seq: i & 0xffff, Data: binary.BigEndian.AppendUint32(bytes.Clone(a.token[:]), uint32(i))}
	packet, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &body}).Marshal(nil)
	if err != nil {
		return err
	}
	var to net.Addr = &net.UDPAddr{IP: a.hosts[i].AsSlice()}
	if a.raw { // the other takes a port, of which there is none
		to = &net.IPAddr{IP: a.hosts[i].AsSlice()}
	}
	a.mu.Lock()
	a.sent[i] = time.Now()
	a.mu.Unlock()
	_, err = a.conn.WriteTo(packet, to)
	var no *os.SyscallError
	if errors.Is(err, unix.ENOBUFS) {
		return nil // lost, as on any link that is full
	} else if errors.As(err, &no) {
		return no.Err
	}
	return err
}

// read takes answers until the socket is closed.
func (a *asker) read() {
	buf := make([]byte, 1500)
	for {
		n, from, err := a.conn.ReadFrom(buf)
		now := time.Now()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // of one host, which is not known here
		}
		m, err := icmp.ParseMessage(ipv4.ICMPTypeEchoReply.Protocol(), buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		e, ok := m.Body.(*icmp.Echo)
		if !ok || len(e.Data) != len(a.token)+4 || !bytes.HasPrefix(e.Data, a.token[:]) {
			continue
		}
		if i := int(binary.BigEndian.Uint32(e.Data[len(a.token):])); i < len(a.hosts) && a.hosts[i] == addrOf(from) {
			a.answered(i, now)
		}
	}
}

func (a *asker) answered(i int, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answers[i].Err == nil {
		return
	}
	a.answers[i] = Answer{Took: at.Sub(a.sent[i])}
	if a.got++; a.got == len(a.hosts) {
		close(a.all)
	}
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.IPAddr:
		ip = a.IP
	case *net.UDPAddr:
		ip = a.IP
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
