package etcdv2

import (
	"context"
	"fmt"
	"path"
	"time"

	"go.etcd.io/etcd/client/v2"

	"flanneld/subnet"
)

// A watch of the v2 API asks for one event after another, and each answer takes
// etcd and us about as long as this many leases in a list do. Behind by fewer
// events than leastBehind, asking on is always less trouble.
const (
	leasesPerEvent = 16
	leastBehind    = 16
	// slowEvent is for an event of the past that takes long to come: so will the
	// next, and a list has all.
	slowEvent = 250 * time.Millisecond
)

type watcher struct {
	s   *Store
	ctx context.Context
	w   client.Watcher
}

// Next implements subnet.Watcher.
func (w *watcher) Next() ([]subnet.Event, error) {
	for {
		asked := time.Now()
		resp, err := next(w.ctx, w.w)
		if err != nil {
			_, err = w.s.explain(w.ctx, "watching", w.s.subnetsDir(), err)
			return nil, err
		}
		// An event of the past comes with the index of the present.
		behind := int64(resp.Index) - int64(resp.Node.ModifiedIndex)
		if behind > max(leastBehind, w.s.listed.Load()/leasesPerEvent) || behind > 0 && time.Since(asked) > slowEvent {
			return nil, fmt.Errorf("%s is %w, by %d events", w.s.subnetsDir(), subnet.ErrBehind, behind)
		}
		deleted := false
		switch resp.Action {
		case "delete", "expire", "compareAndDelete":
			deleted = true
		}
		switch {
		case path.Dir(resp.Node.Key) != w.s.subnetsDir():
			if deleted {
				return nil, fmt.Errorf("%w: %s was removed as a whole", subnet.ErrWatchLost, resp.Node.Key)
			}
		default:
			return []subnet.Event{{Entry: entry(resp.Node, asked), Deleted: deleted}}, nil
		}
	}
}

// next is the watcher's next event. What the client makes of an answer without one
// is a panic.
func next(ctx context.Context, w client.Watcher) (resp *client.Response, err error) {
	defer func() {
		if recover() != nil {
			err = client.ErrInvalidJSON
		}
	}()
	return whole(w.Next(ctx))
}

// whole makes an error of an answer that has no key in it, as of something that is
// not etcd.
func whole(resp *client.Response, err error) (*client.Response, error) {
	if err == nil && (resp == nil || resp.Node == nil) {
		err = client.ErrInvalidJSON
	}
	return resp, err
}
