package network

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// watchdog tells the service manager that this node still works, for as long as
// each of its parts answers when it is asked. A timer of its own would tell that
// also of a daemon that is stuck.
type watchdog struct {
	// within is how often the service manager is to be told at the least
	// (WATCHDOG_USEC, sd_watchdog_enabled(3)).
	within time.Duration
	notify func(state string)
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

// run asks the parts until ctx ends. What a part does in one go, such as a
// comparison of large tables, may take as long as three of the four times that
// it is asked within the time allowed.
func (w watchdog) run(ctx context.Context) error {
	ticks := time.NewTicker(w.within / 4)
	defer ticks.Stop()
	w.ask()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		if silent := strings.Join(w.silent(), ", "); silent == "" {
			w.notify("WATCHDOG=1")
			w.ask()
			said = ""
		} else if silent != said {
			said = silent
			klog.Errorf("No answer within %v from: %s; without one the service manager will start flanneld again", w.within/4, silent)
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
