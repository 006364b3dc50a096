package main

import (
	"fmt"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// The service manager's watchdog is fed from the start on, with every backend,
// and also while etcd does not answer: to start flanneld again would not mend
// that.
func TestWatchdogFed(t *testing.T) {
	for _, backend := range []string{`"vxlan"`, `"host-gw"`, `"udp"`} {
		t.Run(backend[1:len(backend)-1], func(t *testing.T) {
			c, s := newCluster(t)
			c.SetConfig(`{"Network":"10.1.0.0/16","Backend":{"Type":` + backend + `}}`)
			h := c.Node("h1", s)
			h.Under = []string{"env", "WATCHDOG_USEC=2000000"} // 2 s, so every half a second
			h.Start()
			h.AwaitReady()
			fed(t, h, 4)
			c.Etcd.Stop()
			c.Must(h.Daemon.WaitLog("Waiting for the store", 20*time.Second))
			fed(t, h, 4)
			c.Etcd.Restart()
			c.Must(h.Daemon.WaitLog("The store works again", 20*time.Second))
			fed(t, h, 4)
		})
	}
}

// fed waits until the watchdog was fed some more times, as often as it ought to
// be, but for what a busy machine may hold up.
func fed(t *testing.T, h *cluster.Node, times int) {
	t.Helper()
	count := func() (n int) {
		for _, line := range h.Daemon.Notified() {
			if line == "WATCHDOG=1" {
				n++
			}
		}
		return n
	}
	before := count()
	lab.Eventually(t, 10*time.Second, "feeding the watchdog", func() error {
		if now := count() - before; now < times {
			return fmt.Errorf("fed %d times, not %d", now, times)
		}
		return nil
	})
}
