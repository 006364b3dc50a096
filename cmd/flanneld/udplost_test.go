package main

import (
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// While flanneld has no device to carry packets, /healthz says so and why, until
// packets are carried again.
func TestUDPLost(t *testing.T) {
	needTUN(t, "udp")
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}`)
	h1, c1 := join(c, s, 1, "--healthz-port=2401")
	_, c2 := join(c, s, 2)
	awaitHealthz(t, h1, 200, "ok")
	sh(h1, "ip link del flannel0; ip link add flannel0 type bridge")
	awaitHealthz(t, h1, 503, "data plane: packets are not carried: device flannel0 is there, but is a bridge device", "data plane: the device flannel0 is not there yet")
	sh(h1, "ip link del flannel0")
	c.Must(h1.Daemon.WaitLog("packets are carried again", 30*time.Second))
	awaitHealthz(t, h1, 200, "ok")
	lab.EventuallyPing(t, patience, c1, c2.Addr(), lab.Echo{})
}
