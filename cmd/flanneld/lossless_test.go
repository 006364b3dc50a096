package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// restartBoth ends and starts the daemons of both hosts in turn, in each way. It
// calls check with none running and again after the start. Meanwhile other peers
// come, change and go, so that each start has something to write.
func restartBoth(t *testing.T, c *cluster.Cluster, backend string, h1, h2 *cluster.Node, check func(what string, down bool)) {
	t.Helper()
	n := 0
	for _, h := range []*cluster.Node{h1, h2} {
		for _, how := range stops {
			how.stop(h)
			n++
			fake{near + "111", n}.put(c, backend, 11)
			fake{far + fmt.Sprint(n), 100 + n}.put(c, backend, 12+n%2)
			c.DeleteLease(fakeKey(13 - n%2))
			check(fmt.Sprintf("%v was %s", h, how.name), true)
			h.Start()
			h.AwaitReady()
			check(fmt.Sprintf("%v was %s and started", h, how.name), false)
		}
	}
}

// A pinger sends 200 echoes a second until it is stopped.
type pinger struct {
	sent   atomic.Int64
	stop   context.CancelFunc
	failed chan []error
}

func startPinger(t *testing.T, from *lab.Container, to netip.Addr) *pinger {
	ctx, cancel := context.WithCancel(t.Context())
	p := &pinger{stop: cancel, failed: make(chan []error, 1)}
	go func() {
		var failed []error
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			// An answer that takes longer has not come.
			if _, err := from.Ping(to, lab.Echo{Timeout: time.Second}); err != nil {
				failed = append(failed, fmt.Errorf("echo %d: %w", p.sent.Load(), err))
			}
			p.sent.Add(1)
			<-tick.C
		}
		p.failed <- failed
	}()
	return p
}

// await waits for so many more echoes.
func (p *pinger) await(t *testing.T, what string, more int64) {
	t.Helper()
	before := p.sent.Load()
	lab.Eventually(t, 20*time.Second, "echoes after "+what, func() error {
		if n := p.sent.Load() - before; n < more {
			return fmt.Errorf("%d more", n)
		}
		return nil
	})
}

// A ping between containers runs through stops, kills and starts of both
// daemons: the kernel goes on without them, and what a start puts right is not
// what was right before. Not one echo is lost.
func TestLossless(t *testing.T) {
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`} {
		t.Run(backend, func(t *testing.T) {
			c, s := newCluster(t)
			c.SetConfig(configOf(backend))
			fake{far + "1", 100}.put(c, typeOf(backend), 12)
			h1, c1 := join(c, s, 1)
			h2, c2 := join(c, s, 2)
			reach(t, c1, c2, c2.Addr(), c1.Addr(), h1.Env().MTU)
			p := startPinger(t, c1, c2.Addr())
			for range 3 {
				restartBoth(t, c, typeOf(backend), h1, h2, func(what string, _ bool) { p.await(t, what, 10) })
			}
			p.stop()
			for _, err := range <-p.failed {
				t.Error(err)
			}
		})
	}
}

// With udp the daemon itself carries the packets, so there is a gap while it is
// away. A connection between containers outlives that: nothing tells them that
// the network is unreachable, and data flows again, and whole, once it is back.
func TestConnectionOutlivesRestart(t *testing.T) {
	needTUN(t, "udp")
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "udp"}`))
	fake{far + "1", 100}.put(c, "udp", 12)
	h1, c1 := join(c, s, 1)
	h2, c2 := join(c, s, 2)
	reach(t, c1, c2, c2.Addr(), c1.Addr(), h1.Env().MTU)
	var streams []*lab.Stream
	for _, p := range [][2]*lab.Container{{c1, c2}, {c2, c1}} { // who sends matters to what a gap does
		stream, err := lab.NewStream(p[0], p[1], p[1].Addr())
		c.Must(err)
		streams = append(streams, stream)
	}
	flowing := func(what string, down bool) {
		t.Helper()
		for _, stream := range streams {
			before := stream.Arrived()
			// TCP tries again after a time that doubles, from 0.2 s on.
			lab.Eventually(t, 5*time.Second, "data after "+what, func() error {
				arrived, waiting := stream.Arrived()-before, stream.Sent()-stream.Arrived()
				if !down && arrived < 64<<10 || down && waiting < 8<<10 { // so that there is a gap
					return fmt.Errorf("%d bytes have arrived, %d have not", arrived, waiting)
				}
				return nil
			})
		}
	}
	flowing("the connection was made", false)
	restartBoth(t, c, "udp", h1, h2, flowing)
	for _, stream := range streams {
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
	}
}
