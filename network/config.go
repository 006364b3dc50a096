package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"flanneld/backend/table"
	"flanneld/subnet"
)

// config is a network config as it was read from the store.
type config struct {
	table.Config
	text     string
	revision uint64
}

// awaitConfig waits until the store has a config that can be used. What is
// wrong with the one there is is said once for each change, and to tell.
func awaitConfig(ctx context.Context, store *subnet.Patient, tell func(why string)) (config, error) {
	for said := ""; ; {
		text, revision, err := store.Config(ctx)
		why := ""
		switch {
		case errors.Is(err, subnet.ErrNotFound):
			why = fmt.Sprintf("There is no network config yet (%v); waiting for somebody to write it", err)
			tell(err.Error())
		case err != nil:
			return config{}, err
		default:
			c, unknown, err := table.ParseConfig(text)
			if err == nil {
				for _, name := range unknown {
					klog.Warningf("The network config has a field that is not known here and has no effect: %s", name)
				}
				return config{c, text, revision}, nil
			}
			why = fmt.Sprintf("The network config cannot be used; waiting for it to be put right: %v", err)
			tell(err.Error())
		}
		if why != said {
			klog.Warning(why)
			said = why
		}
		if err := store.AwaitConfig(ctx, revision); err != nil {
			return config{}, err
		}
	}
}

// untilOtherConfig waits until the store has another config than c, or none. It
// reports false when ctx ends first.
func untilOtherConfig(ctx context.Context, store *subnet.Patient, c config) bool {
	// Most hosts have their subnet in a moment, and need not watch meanwhile.
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Second):
	}
	for revision := c.revision; ; {
		if store.AwaitConfig(ctx, revision) != nil {
			return false
		}
		text, now, err := store.Config(ctx)
		if ctx.Err() != nil {
			return false
		}
		if err != nil || text != c.text {
			return true
		}
		revision = now
	}
}

// configWatch compares the config in the store with the one in use, which only a
// restart replaces.
type configWatch struct {
	inUse  config
	own    netip.Prefix // this host's subnet
	health *health

	said    string // how the two differ; empty when they do not
	outside atomic.Bool
}

// run says how the config in the store differs from the one in use, once for
// each change, until ctx ends.
func (w *configWatch) run(ctx context.Context, store *subnet.Patient) error {
	for revision := w.inUse.revision; ; {
		if store.AwaitConfig(ctx, revision) != nil {
			return nil // ctx has ended
		}
		text, now, err := store.Config(ctx)
		switch {
		case errors.Is(err, subnet.ErrNotFound):
			w.outside.Store(false)
			w.say("the network config was deleted from the store; flanneld goes on with the one read at the start")
		case err != nil:
			return nil // ctx has ended
		default:
			w.compare(text)
		}
		revision = now
	}
}

// compare says how a config that is in the store now differs.
func (w *configWatch) compare(text string) {
	c, _, err := table.ParseConfig(text)
	if err != nil {
		w.outside.Store(false)
		w.say(fmt.Sprintf("the network config in the store was changed to one that cannot be used; flanneld goes on with the one read at the start: %v", err))
		return
	}
	differences := c.Differences(w.inUse.Config.Config)
	if len(differences) == 0 {
		w.outside.Store(false)
		if w.said != "" {
			w.said = ""
			w.health.note("config", "")
			klog.Info("The network config in the store is again the one in use")
		}
		return
	}
	consequence := ""
	w.outside.Store(!c.Fits(w.own))
	if w.outside.Load() {
		consequence = fmt.Sprintf("; this host's subnet %v is none of its subnets, and is kept until then", w.own)
	}
	w.say(fmt.Sprintf("the network config in the store was changed: %s%s; restart flanneld to apply it", strings.Join(differences, ", "), consequence))
}

func (w *configWatch) say(what string) {
	if what != w.said {
		w.said = what
		w.health.note("config", what)
		klog.Warning(strings.ToUpper(what[:1]) + what[1:])
	}
}

// renewed is told of each time the lease was written.
func (w *configWatch) renewed() {
	if w.outside.Load() {
		klog.Warningf("Renewed the lease of %v, although that is none of the subnets of the network config in the store: this host's containers use it until flanneld is restarted", w.own)
	}
}
