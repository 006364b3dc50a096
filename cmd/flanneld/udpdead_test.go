package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// Peers that are gone, and for which the kernel keeps datagrams while it asks for
// their addresses, take nothing from those that are there.
func TestUDPDeadPeers(t *testing.T) {
	needTUN(t, "udp")
	const dead = 100 // fewer than there are addresses left on the segment
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}`)
	for n := range dead {
		fake{ip: fmt.Sprint(near, 100+n)}.put(c, "udp", 100+n)
	}
	_, c1 := join(c, s, 1)
	_, c2 := join(c, s, 2)
	lab.EventuallyPing(t, patience, c1, c2.Addr(), lab.Echo{})

	var conns []*net.UDPConn
	c.Must(c1.Do(func() error {
		for n := range dead {
			conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fmt.Sprintf("10.1.%d.5:2000", 100+n))))
			if err != nil {
				return err
			}
			t.Cleanup(func() { conn.Close() })
			conns = append(conns, conn)
		}
		return nil
	}))
	// More than the kernel keeps for all of them together, in less time than it
	// takes to give them up, which is 3 s. Each round waits for its echo, so that
	// no queue overflows on a busy machine.
	const rounds = 200
	var took []time.Duration
	var lost []error
	data := make([]byte, 1400)
	for range rounds {
		for _, conn := range conns {
			conn.Write(data) // an error is that nobody is there
		}
		stats, err := c1.Ping(c2.Addr(), lab.Echo{Timeout: time.Second})
		if err != nil {
			lost = append(lost, err)
			if len(lost) > 1 {
				t.Fatalf("after %d echoes to a peer that is there, while others are gone: %v", len(took), errors.Join(lost...))
			}
			continue
		}
		took = append(took, stats.Mean)
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > 5*time.Millisecond {
		t.Errorf("echoes to a peer that is there take %v while others are gone", median)
	}
}
