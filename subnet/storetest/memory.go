// Package storetest is for testing what uses a subnet.Store and what is one:
// Memory is a store within the process, Run the behaviour that every store must
// have, Memory included.
package storetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"flanneld/subnet"
)

// ErrDown is what every call returns while a Memory is down.
var ErrDown = errors.New("the store is down")

// Memory is a subnet.Store within the process.
type Memory struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and made anew at each change
	revision uint64
	config   string
	hasConf  bool
	confRev  uint64
	leases   map[string]subnet.Entry
	history  []subnet.Event
	lost     uint64 // events up to this revision have been dropped
	wipes    int    // watches from before the last one are lost
	down     bool
	calls    int
}

// tooMany calls are those of somebody who asks as fast as can be, and for whom, in
// fake time, no time would pass.
const tooMany = 1_000_000

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{changed: make(chan struct{}), leases: map[string]subnet.Entry{}}
}

var _ subnet.Store = (*Memory)(nil)

// SetConfig writes the network config, as an operator would.
func (m *Memory) SetConfig(value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.config, m.hasConf, m.confRev = value, true, m.revision
	m.wake()
}

// DeleteConfig removes the network config.
func (m *Memory) DeleteConfig() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.hasConf, m.confRev = false, m.revision
	m.wake()
}

// Put writes a lease whatever there was before; a ttl of 0 makes it a
// reservation.
func (m *Memory) Put(key, value string, ttl time.Duration) subnet.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.write(key, value, ttl)
}

// Remove deletes a lease, as an operator or the end of its TTL would.
func (m *Memory) Remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(key)
}

// Restore puts back an entry as it was, with the revision it had, as a store does
// that is restored from a backup; watches are lost.
func (m *Memory) Restore(e subnet.Entry, ttl time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.Expires = time.Now().Add(ttl)
	m.leases[e.Key] = e
	m.expire(e)
	m.revision++
	m.history, m.lost = nil, m.revision
	m.wake()
}

// Wipe drops all there is, and begins to count from the beginning, as a store
// does whose data were lost.
func (m *Memory) Wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leases, m.history, m.hasConf = map[string]subnet.Entry{}, nil, false
	m.revision, m.lost, m.confRev = 0, 0, 0
	m.wipes++
	m.wake()
}

// Lease returns the lease of a key, as an operator sees it.
func (m *Memory) Lease(key string) (subnet.Entry, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.leases[key]
	return e, ok
}

// SetDown makes every call fail, and every watch too, or lets them work again.
func (m *Memory) SetDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
	m.wake()
}

// Forget drops the events there have been, so that watches behind them are lost.
func (m *Memory) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history, m.lost = nil, m.revision
	m.wake()
}

// Calls is how many requests there have been, watches not counted.
func (m *Memory) Calls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

func (m *Memory) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *Memory) write(key, value string, ttl time.Duration) subnet.Entry {
	return m.rewrite(key, value, ttl, m.revision+1)
}

func (m *Memory) rewrite(key, value string, ttl time.Duration, created uint64) subnet.Entry {
	m.revision++
	e := subnet.Entry{Key: key, Value: value, Revision: m.revision, Created: created}
	if ttl > 0 {
		e.Expires = time.Now().Add(ttl)
	}
	m.leases[key] = e
	m.expire(e)
	m.history = append(m.history, subnet.Event{Entry: e})
	m.wake()
	return e
}

// expire removes an entry at its end, unless it is another by then.
func (m *Memory) expire(e subnet.Entry) {
	if e.Expires.IsZero() {
		return
	}
	time.AfterFunc(time.Until(e.Expires), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.leases[e.Key] == e {
			m.remove(e.Key)
		}
	})
}

func (m *Memory) remove(key string) {
	if _, ok := m.leases[key]; !ok {
		return
	}
	m.revision++
	delete(m.leases, key)
	m.history = append(m.history, subnet.Event{Entry: subnet.Entry{Key: key, Revision: m.revision}, Deleted: true})
	m.wake()
}

// begin locks the store for one request.
func (m *Memory) begin(ctx context.Context) error {
	m.mu.Lock()
	if m.calls++; m.calls > tooMany {
		panic("the store is asked without end")
	}
	if m.down {
		return ErrDown
	}
	return ctx.Err()
}

// Config implements subnet.Store.
func (m *Memory) Config(ctx context.Context) (string, uint64, error) {
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return "", 0, err
	}
	if !m.hasConf {
		return "", m.revision, subnet.ErrNotFound
	}
	return m.config, m.revision, nil
}

// AwaitConfig implements subnet.Store.
func (m *Memory) AwaitConfig(ctx context.Context, revision uint64) error {
	return m.await(ctx, func() (bool, error) { return m.confRev > revision, nil })
}

// await waits until done says so, or the store is down, or ctx ends.
func (m *Memory) await(ctx context.Context, done func() (bool, error)) error {
	for {
		m.mu.Lock()
		ok, err := done()
		down, changed := m.down, m.changed
		m.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case down:
			return ErrDown
		case ok || err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// List implements subnet.Store.
func (m *Memory) List(ctx context.Context) ([]subnet.Entry, uint64, error) {
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return nil, 0, err
	}
	var all []subnet.Entry
	for _, e := range m.leases {
		all = append(all, e)
	}
	return all, m.revision, nil
}

// Get implements subnet.Store.
func (m *Memory) Get(ctx context.Context, key string) (subnet.Entry, error) {
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return subnet.Entry{}, err
	}
	e, ok := m.leases[key]
	if !ok {
		return subnet.Entry{}, subnet.ErrNotFound
	}
	return e, nil
}

// Watch implements subnet.Store.
func (m *Memory) Watch(ctx context.Context, revision uint64) subnet.Watcher {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memoryWatcher{m, ctx, revision, m.wipes}
}

type memoryWatcher struct {
	m        *Memory
	ctx      context.Context
	revision uint64
	wipes    int
}

// Next implements subnet.Watcher.
func (w *memoryWatcher) Next() (events []subnet.Event, err error) {
	err = w.m.await(w.ctx, func() (bool, error) {
		if w.m.lost > w.revision || w.m.wipes != w.wipes || w.m.revision < w.revision {
			return false, subnet.ErrWatchLost
		}
		i, _ := slices.BinarySearchFunc(w.m.history, w.revision+1, func(e subnet.Event, r uint64) int { return int(e.Revision) - int(r) })
		events = slices.Clone(w.m.history[i:])
		return len(events) > 0, nil
	})
	if len(events) > 0 {
		w.revision = events[len(events)-1].Revision
	}
	return events, err
}

// Create implements subnet.Store.
func (m *Memory) Create(ctx context.Context, key, value string, ttl time.Duration) (subnet.Entry, error) {
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return subnet.Entry{}, err
	}
	if _, ok := m.leases[key]; ok {
		return subnet.Entry{}, subnet.ErrConflict
	}
	return m.write(key, value, ttl), nil
}

// Update implements subnet.Store.
func (m *Memory) Update(ctx context.Context, old subnet.Entry, value string, ttl time.Duration) (subnet.Entry, error) {
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return subnet.Entry{}, err
	}
	if err := m.is(old); err != nil {
		return subnet.Entry{}, err
	}
	return m.rewrite(old.Key, value, ttl, m.leases[old.Key].Created), nil
}

// Delete implements subnet.Store.
func (m *Memory) Delete(ctx context.Context, old subnet.Entry) error {
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return err
	}
	if err := m.is(old); err != nil {
		return err
	}
	m.remove(old.Key)
	return nil
}

func (m *Memory) is(old subnet.Entry) error {
	switch e, ok := m.leases[old.Key]; {
	case !ok:
		return subnet.ErrNotFound
	case e.Revision != old.Revision || e.Value != old.Value:
		return subnet.ErrConflict
	}
	return nil
}

// Members implements subnet.Store: there is one, this.
func (m *Memory) Members(ctx context.Context) []subnet.Member {
	defer m.mu.Unlock()
	return []subnet.Member{{Endpoint: "memory", InUse: true, Err: m.begin(ctx)}}
}
