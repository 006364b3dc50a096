package main

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// A trouble that comes again and again is said at first, and then once a minute at
// most: repeats is how often by now, when it began at some time.
func repeats(began time.Time) int { return 3 + int(time.Since(began)/time.Minute) }

// newLog is what flanneld logs from now on.
type newLog struct {
	h    *cluster.Node
	from int
}

func logOf(h *cluster.Node) newLog { return newLog{h, len(h.Daemon.Log())} }

// is compares it with lines, each the regular expression of one with how often it is
// there: at least once, and at most so many times.
func (l newLog) is(t *testing.T, want map[string]int) {
	t.Helper()
	got := map[string]int{}
lines:
	for line := range strings.Lines(l.h.Daemon.Log()[l.from:]) {
		for pattern := range want {
			if regexp.MustCompile(`\] ` + pattern + `\n$`).MatchString(line) {
				got[pattern]++
				continue lines
			}
		}
		t.Errorf("it says %s", line)
	}
	for pattern, most := range want {
		if got[pattern] < 1 || got[pattern] > most {
			t.Errorf("it says %q %d times, want 1 to %d", pattern, got[pattern], most)
		}
	}
}

// deleted deletes a device while flanneld is held, so that it meets with the whole of
// that at once: one that is half taken apart may make it say what it could not write.
func deleted(h *cluster.Node, dev string) {
	h.Daemon.Pause()
	h.Run("ip", "link", "del", dev)
	h.Daemon.Continue()
}

// Who deletes the VXLAN device all the time is told of in one kind of line, and not
// each time.
func TestQuietVXLAN(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	a := audit(c, h)
	a.configure(configOf(`{"Type": "vxlan"}`))
	putFakes(c, "vxlan", fakes())
	a.ready(t, "the start")
	c.Must(h.Daemon.WaitLog("iptables: put right", mending))
	c.Must(h.Daemon.WaitLog(`Made the VXLAN device flannel\.1\n`, within))
	log, began := logOf(h), time.Now()
	for range 8 {
		deleted(h, "flannel.1")
		a.await(t, healing, "the device is made again")
	}
	log.is(t, map[string]int{`Put right in the kernel: the device.*`: repeats(began)})
}

// With the backend udp a device that was deleted makes one line of the backend's own,
// and none each time when that goes on. A firewall that lets no packet out makes one
// in all.
func TestQuietUDP(t *testing.T) {
	needTUN(t, "udp")
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	a := audit(c, h)
	a.configure(configOf(`{"Type": "udp"}`))
	putFakes(c, "udp", fakes())
	a.ready(t, "the start")
	c.Must(h.Daemon.WaitLog("iptables: put right", mending))
	log, began := logOf(h), time.Now()
	lose := func() {
		t.Helper()
		deleted(h, "flannel0")
		a.await(t, patience, "the device is made again")
	}
	lose()
	const (
		putRight = `Put right in the kernel: .*`
		again    = `udp: packets are carried again; for .*s they were not: device flannel0 was deleted.*`
	)
	c.Must(h.Daemon.WaitLog(putRight, within))
	c.Must(h.Daemon.WaitLog(again, within))
	log.is(t, map[string]int{putRight: 1, again: 1})

	sh(h, "iptables -I OUTPUT -p udp --dport 8285 -j DROP")
	for range 4 {
		if _, err := h.Ping(netip.MustParseAddr("10.1.11.1"), lab.Echo{Timeout: 50 * time.Millisecond}); err == nil {
			t.Fatal("the firewall lets packets out")
		}
		lose()
	}
	log.is(t, map[string]int{
		putRight: repeats(began), again: repeats(began),
		`udp: sending to 172\.30\.0\.111: sendmmsg: operation not permitted \(more of it is counted, and said every 10 minutes\)`: 1,
	})
}

// Where many things are in the way, some are named and the others counted; all are
// in /healthz.
func TestQuietObstacles(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	c.SetConfig(configOf(`{"Type": "host-gw"}`))
	for n := 11; n <= 18; n++ {
		fake{fmt.Sprint(near, 100+n), n}.put(c, "host-gw", n)
		sh(h, fmt.Sprintf("ip route add blackhole 10.1.%d.0/24 proto static", n))
	}
	h.Start("--healthz-port=2401")
	h.AwaitReady()
	const more = `And 5 more like these \(-v=2 lists them\); trying again\n`
	c.Must(h.Daemon.WaitLog(more, within))
	lab.Eventually(t, within, "all are in /healthz", func() error {
		body, _, err := getHealthz(h)
		if err == nil && strings.Count(body, "setting the route 10.1.") != 8 {
			err = errors.New(body)
		}
		return err
	})
	// Each of these makes it look again.
	for range 3 {
		sh(h, "ip route add 10.1.60.0/24 via 172.30.0.111 proto 102")
		lab.Eventually(t, healing, "another route goes", func() error {
			if strings.Contains(h.Routes(), "10.1.60.0") {
				return errors.New(h.Routes())
			}
			return nil
		})
	}
	for text, times := range map[string]int{"etting the route 10.1.": 3, " more like these": 1} {
		if n := strings.Count(h.Daemon.Log(), text); n != times {
			t.Errorf("%q is in the log %d times, want %d", text, n, times)
		}
	}
}
