package network

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"flanneld/pkg/kernel"
)

// repairLog says what was put right in the kernel although no lease has changed:
// somebody else has changed it. Who does so again and again is named once a minute.
type repairLog struct {
	limit *rate.Limiter
	held  repairs // not said yet
	// log says a line; it is klog's, but in tests.
	log func(line string)
}

func newRepairLog() *repairLog {
	return &repairLog{limit: rate.NewLimiter(rate.Every(time.Minute), 3), log: func(line string) { klog.Info(line) }}
}

// repairs counts what was put right.
type repairs struct{ times, devices, routes, neighbours, fdb int }

// compared takes note of a comparison with the kernel.
func (l *repairLog) compared(c kernel.Comparison, now time.Time) {
	if c.Cause != kernel.Notice && c.Cause != kernel.Periodic {
		return
	}
	found := repairs{routes: c.Routes.Repaired, neighbours: c.Neighbours.Repaired, fdb: c.FDB.Repaired}
	if c.Device {
		found.devices = 1
	}
	if found == (repairs{}) {
		return
	}
	l.held.times++
	l.held.devices += found.devices
	l.held.routes += found.routes
	l.held.neighbours += found.neighbours
	l.held.fdb += found.fdb
	if l.limit.AllowN(now, 1) {
		l.log("Put right in the kernel: " + l.held.String())
		l.held = repairs{}
	}
}

func (r repairs) String() string {
	var parts []string
	add := func(n int, one, many string) {
		switch {
		case n == 1:
			parts = append(parts, "1 "+one)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %s", n, many))
		}
	}
	if r.devices > 0 {
		parts = append(parts, "the device")
	}
	add(r.routes, "route", "routes")
	add(r.neighbours, "neighbour", "neighbours")
	add(r.fdb, "FDB entry", "FDB entries")
	text := strings.Join(parts, ", ")
	if r.times > 1 {
		text += fmt.Sprintf(", in %d comparisons since this was said last", r.times)
	}
	return text
}
