package main

import (
	"fmt"
	"time"
)

// tcp measures how much so many connections carry, and what that costs the
// daemons of the udp backend if it is one connection.
func (t *traffic) tcp(streams int, b bound) error {
	c := comparison{what: "TCP, 1 stream, Gbit/s", format: decimals(2), bound: b}
	if streams > 1 {
		c.what = fmt.Sprintf("TCP, %d streams, Gbit/s", streams)
	}
	var cost []float64
	c, err := t.turns(c, func(p *path) (float64, error) {
		before, err := daemons(p)
		if err != nil {
			return 0, err
		}
		// The first second, in which connections find their pace, does not count;
		// iperf3 has no shorter one.
		got, frames, err := iperf(p, "--omit", "1", "--parallel", fmt.Sprint(streams))
		if err != nil {
			return 0, err
		}
		after, err := daemons(p)
		if err != nil {
			return 0, err
		}
		if p.carrier == udp { // warm-up included, in the one as in the other
			cost = append(cost, 100*(after-before).Seconds()/gbits(got.sent))
		}
		return gbits(got.bytes) / got.seconds, t.layout.bulk(p, frames)
	})
	if err != nil {
		return err
	}
	t.compare(c)
	if streams == 1 {
		t.compare(comparison{
			what: t.layout.name + ":   both daemons, % of a core per Gbit/s", format: decimals(0),
			figures: map[string][]float64{udp: cost},
		})
	}
	return nil
}

func gbits(bytes int64) float64 { return float64(bytes) * 8 / 1e9 }

// daemons is what the flannelds at both ends of a path have used of processors,
// the kernel's work for their system calls included.
func daemons(p *path) (time.Duration, error) {
	a, err := cpuOf(p.a.Daemon.Pid)
	if err != nil {
		return 0, err
	}
	b, err := cpuOf(p.b.Daemon.Pid)
	return a.own + b.own, err
}

// datagrams measures how many datagrams arrive when more are sent than can be
// carried: those nearly as large as fit everywhere, and small ones.
func (t *traffic) datagrams() error {
	for _, size := range []int{1400, 64} {
		c, err := t.turns(comparison{
			what: fmt.Sprintf("datagrams of %d bytes, a second", size), format: decimals(0), bound: atLeast(0.7, 1.0),
		}, func(p *path) (float64, error) {
			got, frames, err := iperf(p, "--udp", "--bitrate", "0", "--length", fmt.Sprint(size))
			if err != nil {
				return 0, err
			}
			// Around a datagram are its own headers and those of vxlan, which are the
			// largest.
			return float64(got.bytes) / float64(size) / got.seconds, t.layout.cut(frames, size+28+50)
		})
		if err != nil {
			return err
		}
		t.compare(c)
	}
	return nil
}

// ping measures the round trip while nothing else is carried.
func (t *traffic) ping() error {
	c, err := t.turns(comparison{
		what: "ping, mean round trip, ms", format: decimals(3), bound: atMost(2.5, 1.5),
	}, echo)
	if err == nil {
		t.compare(c)
	}
	return err
}
