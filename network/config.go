package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"flanneld/backend"
	"flanneld/backend/table"
	"flanneld/subnet"
)

// config is a network config that can be used, its backend's part read too.
type config struct {
	subnet.Config
	open backend.Open

	text     string
	revision uint64
}

// parseConfig reads a config as a whole. unknown lists the fields that nobody
// knows, which is no error, as other versions may.
func parseConfig(text string) (c config, unknown []string, err error) {
	if c.Config, err = subnet.ParseConfig(text); err != nil {
		return config{}, nil, err
	}
	parse, ok := table.Backends[c.BackendType]
	if !ok {
		names := []string{}
		for name := range table.Backends {
			names = append(names, name)
		}
		slices.Sort(names)
		return config{}, nil, c.Backend.Errorf("Type", "there is no such backend, only %s", strings.Join(names, ", "))
	}
	if c.open, err = parse(c.Backend); err != nil {
		return config{}, nil, err
	}
	return c, c.Unknown(), nil
}

// awaitConfig waits until the store has a config that can be used. What is
// wrong with the one there is is said once for each change.
func awaitConfig(ctx context.Context, store *subnet.Patient) (config, error) {
	for said := ""; ; {
		text, revision, err := store.Config(ctx)
		why := ""
		switch {
		case errors.Is(err, subnet.ErrNotFound):
			why = fmt.Sprintf("There is no network config yet (%v); waiting for somebody to write it", err)
		case err != nil:
			return config{}, err
		default:
			c, unknown, err := parseConfig(text)
			if err == nil {
				for _, name := range unknown {
					klog.Warningf("The network config has a field that is not known here and has no effect: %s", name)
				}
				c.text, c.revision = text, revision
				return c, nil
			}
			why = fmt.Sprintf("The network config cannot be used; waiting for it to be put right: %v", err)
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

// watchConfig warns when the config in the store becomes another than the one
// in use, which only a restart applies.
func watchConfig(ctx context.Context, store *subnet.Patient, inUse config) error {
	last, revision := inUse.text, inUse.revision
	for {
		if store.AwaitConfig(ctx, revision) != nil {
			return nil // ctx has ended
		}
		text, now, err := store.Config(ctx)
		if err != nil && !errors.Is(err, subnet.ErrNotFound) {
			return nil
		}
		revision = now
		if text == last {
			continue
		}
		last = text
		c, _, perr := parseConfig(text)
		switch {
		case err != nil:
			klog.Warning("The network config was deleted from the store; going on with the one read at the start")
		case text == inUse.text:
			klog.Info("The network config in the store is again the one in use")
		case perr != nil:
			klog.Warningf("The network config in the store was changed to one that cannot be used; going on with the one read at the start: %v", perr)
		default:
			klog.Warningf("The network config in the store was changed to %v; in use is %v, until flanneld is restarted", c, inUse)
		}
	}
}
