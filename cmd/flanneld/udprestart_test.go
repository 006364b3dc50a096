package main

import (
	"regexp"
	"strings"
	"testing"
)

// The device stays, as the same one and with all that is on it, while no daemon
// runs and when the next one starts.
func TestUDPDeviceStays(t *testing.T) {
	needTUN(t, "udp")
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "udp"}`))
	h, _ := join(c, s, 1)
	// What says whether somebody has the device open is left out.
	state := regexp.MustCompile(`NO-CARRIER,|,LOWER_UP|linkdown|\bstate \w+`)
	look := func() string {
		text := h.Run("ip", "-4", "addr", "show", "dev", "flannel0") + "\n" + h.Run("ip", "-4", "route", "show", "dev", "flannel0")
		return strings.Join(strings.Fields(state.ReplaceAllString(text, "")), " ")
	}
	before := look()
	for _, part := range []string{"mtu 1472", "inet 10.1.1.0/32", "10.1.0.0/16 proto 102"} {
		if !strings.Contains(before, part) {
			t.Fatalf("%q is not in %s", part, before)
		}
	}
	for _, how := range stops {
		how.stop(h)
		if now := look(); now != before {
			t.Errorf("%s: flannel0 was\n%s\nand is\n%s", how.name, before, now)
		}
		h.Start()
		h.AwaitReady()
		if now := look(); now != before {
			t.Errorf("%s and started: flannel0 was\n%s\nand is\n%s", how.name, before, now)
		}
	}
}
