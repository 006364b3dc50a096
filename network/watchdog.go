package network

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// watchdog tells the service manager, and who asks for the node's health, that it
// still works, for as long as each of its parts answers when it is asked. A timer
// of its own would tell that also of a daemon that is stuck.
type watchdog struct {
	// within is how often the service manager is to be told at the least
	// (WATCHDOG_USEC, sd_watchdog_enabled(3)).
	within time.Duration
	notify func(state string)
	health *health
	parts  []part
}

// part is a long-running part that can be asked for a sign of life.
type part struct {
	name string
	// ask makes the part do some of its work once more.
	ask func()
	// answered reports whether it has since.
	answered func() bool
}

// run asks the parts until ctx ends, four times within the time allowed. What a
// part does in one go, such as a comparison of large tables, may take as long as
// three of them; that it takes longer than one is nothing to speak of.
func (w watchdog) run(ctx context.Context) error {
	ticks := time.NewTicker(w.within / 4)
	defer ticks.Stop()
	w.ask()
	for times, said := 0, ""; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		silent := strings.Join(w.silent(), ", ")
		switch times++; {
		case silent == "":
			w.notify("WATCHDOG=1")
			w.ask()
			times, said = 0, ""
			w.health.set("watchdog", nil)
		case times > 1 && silent != said:
			said = silent
			err := fmt.Errorf("stuck, as it seems: no answer within %v from %s", w.within/2, silent)
			w.health.set("watchdog", []error{err})
			klog.Errorf("flanneld is %v; a service manager with a watchdog will start it again", err)
		}
	}
}

func (w watchdog) ask() {
	for _, p := range w.parts {
		p.ask()
	}
}

func (w watchdog) silent() (names []string) {
	for _, p := range w.parts {
		if !p.answered() {
			names = append(names, p.name)
		}
	}
	return names
}

// rounds counts what a part has done.
type rounds struct{ done, asked atomic.Uint64 }

func (r *rounds) another()       { r.done.Add(1) }
func (r *rounds) mark()          { r.asked.Store(r.done.Load()) }
func (r *rounds) answered() bool { return r.done.Load() != r.asked.Load() }
