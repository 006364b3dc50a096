package metrics

import (
	"context"
	"errors"
	"time"

	"flanneld/subnet"
)

// The operations of a store.
const (
	readConfig  = "config"
	awaitConfig = "await_config"
	list        = "list"
	get         = "get"
	watch       = "watch"
	create      = "create"
	update      = "update"
	remove      = "delete"
)

var operations = []string{readConfig, awaitConfig, list, get, watch, create, update, remove}

// Why a watch on the leases has ended.
const (
	watchFailed = "failed"
	watchLost   = "lost"
	watchBehind = "behind"
)

// Count is a store that does what s does, and counts what it is asked.
func (m *Metrics) Count(s subnet.Store) subnet.Store { return counted{s, m} }

// counted does not count Members: that is asked by people, and of all servers.
type counted struct {
	subnet.Store
	metrics *Metrics
}

// request counts one, which has ended with err. That ctx has ended as well is how
// requests are given up that are no longer needed.
func (c counted) request(ctx context.Context, operation string, err error) {
	c.metrics.requests.WithLabelValues(operation).Inc()
	answer := err == nil || ctx.Err() != nil
	for _, is := range []error{subnet.ErrNotFound, subnet.ErrConflict, subnet.ErrWatchLost, subnet.ErrBehind} {
		answer = answer || errors.Is(err, is)
	}
	if !answer {
		c.metrics.errors.WithLabelValues(operation).Inc()
	}
}

// Config implements subnet.Store.
func (c counted) Config(ctx context.Context) (string, uint64, error) {
	value, revision, err := c.Store.Config(ctx)
	c.request(ctx, readConfig, err)
	return value, revision, err
}

// AwaitConfig implements subnet.Store.
func (c counted) AwaitConfig(ctx context.Context, revision uint64) error {
	err := c.Store.AwaitConfig(ctx, revision)
	c.request(ctx, awaitConfig, err)
	return err
}

// List implements subnet.Store.
func (c counted) List(ctx context.Context) ([]subnet.Entry, uint64, error) {
	entries, revision, err := c.Store.List(ctx)
	c.request(ctx, list, err)
	return entries, revision, err
}

// Get implements subnet.Store.
func (c counted) Get(ctx context.Context, key string) (subnet.Entry, error) {
	e, err := c.Store.Get(ctx, key)
	c.request(ctx, get, err)
	return e, err
}

// Create implements subnet.Store.
func (c counted) Create(ctx context.Context, key, value string, ttl time.Duration) (subnet.Entry, error) {
	e, err := c.Store.Create(ctx, key, value, ttl)
	c.request(ctx, create, err)
	return e, err
}

// Update implements subnet.Store.
func (c counted) Update(ctx context.Context, old subnet.Entry, value string, ttl time.Duration) (subnet.Entry, error) {
	e, err := c.Store.Update(ctx, old, value, ttl)
	c.request(ctx, update, err)
	return e, err
}

// Delete implements subnet.Store.
func (c counted) Delete(ctx context.Context, old subnet.Entry) error {
	err := c.Store.Delete(ctx, old)
	c.request(ctx, remove, err)
	return err
}

// Watch implements subnet.Store.
func (c counted) Watch(ctx context.Context, revision uint64) subnet.Watcher {
	return watcher{c.Store.Watch(ctx, revision), c, ctx}
}

type watcher struct {
	subnet.Watcher
	counted counted
	ctx     context.Context
}

// Next implements subnet.Watcher. Each is a request.
func (w watcher) Next() ([]subnet.Event, error) {
	events, err := w.Watcher.Next()
	w.counted.request(w.ctx, watch, err)
	if err != nil && w.ctx.Err() == nil {
		reason := watchFailed
		switch {
		case errors.Is(err, subnet.ErrWatchLost):
			reason = watchLost
		case errors.Is(err, subnet.ErrBehind):
			reason = watchBehind
		}
		w.counted.metrics.restarts.WithLabelValues(reason).Inc()
	}
	return events, err
}
