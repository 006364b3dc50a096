package kernel

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// settle is the least time between two comparisons. Changes come in
	// bursts, our own writes among them, which netlink reports back to us.
	settle = 20 * time.Millisecond
	// settleShare keeps comparisons of large tables from taking all of a core:
	// the pause is this many times what the last one took.
	settleShare = 4
	// compareEvery is for what netlink might not have told.
	compareEvery = time.Minute
)

// Plan works out the state from the caller's input and the host's own routes.
// It has no side effects. What of the input cannot be turned into state it
// leaves out and returns as faults, which are logged once each.
type Plan[T any] func(input T, host Host) (want State, faults []error)

// Run keeps the kernel at the state that plan works out from the latest input,
// from the first input until ctx ends; then it returns nil and leaves the state
// in place.
//
// It calls synced after each comparison, with one error for each entry that
// could not be programmed and will be tried again with back-off. Each error is
// logged when it first appears. Run itself fails only when netlink does, or
// when to begin with it cannot set up the State's device or read what there is.
func Run[T any](ctx context.Context, owner Owner, inputs <-chan T, plan Plan[T], synced func(failed []error)) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer handle.Close()
	// Both sockets are opened here, not on a goroutine, as they belong to the
	// network namespace of the thread that opens them.
	notices, err := subscribe()
	if err != nil {
		return err
	}
	r := reconciler[T]{table: table{owner: owner, handle: handle}, plan: plan}

	var input T
	select {
	case <-ctx.Done():
		notices.Close()
		return nil
	case input = <-inputs:
	}

	g, ctx := errgroup.WithContext(ctx)
	dirty := make(chan struct{}, 1)
	g.Go(func() error {
		return watch(ctx, notices, &r.device, func() {
			select {
			case dirty <- struct{}{}:
			default:
			}
		})
	})
	g.Go(func() error {
		retry := backoff.NewExponentialBackOff()
		retry.InitialInterval, retry.MaxInterval = 500*time.Millisecond, 30*time.Second
		for first := true; ; first = false {
			begin := time.Now()
			faults, failed, whole := r.compare(input)
			if first && whole != nil {
				return whole
			}
			r.say(faults, failed)
			synced(failed)
			took := time.Since(begin)

			next := compareEvery
			if len(failed) > 0 {
				next = retry.NextBackOff()
			} else {
				retry.Reset()
			}
			again := time.NewTimer(next)
			select {
			case <-ctx.Done():
				again.Stop()
				return nil
			case input = <-inputs:
			case <-dirty:
			case <-again.C:
			}
			again.Stop()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(max(settle, settleShare*took) - time.Since(begin)):
			}
			// Take what has come meanwhile into the same comparison.
			select {
			case input = <-inputs:
			default:
			}
			select {
			case <-dirty:
			default:
			}
		}
	})
	return g.Wait()
}

type reconciler[T any] struct {
	table
	plan   Plan[T]
	device atomic.Int64 // index of the State's device, for watch
	said   map[string]bool
}

// say logs what was not said last time.
func (r *reconciler[T]) say(faults, failed []error) {
	saying := map[string]bool{}
	once := func(errs []error, log func(text string)) {
		for _, err := range errs {
			text := sentence(err.Error())
			if !saying[text] && !r.said[text] {
				log(text)
			}
			saying[text] = true
		}
	}
	once(faults, func(text string) { klog.Warning(text) })
	once(failed, func(text string) { klog.Errorf("%s; trying again", text) })
	r.said = saying
}

// compare makes one comparison and puts right what is wrong. Of what has failed,
// whole is what concerns more than an entry: the device, or reading the tables.
func (r *reconciler[T]) compare(input T) (faults, failed []error, whole error) {
	mine, err := r.readLinks()
	if err != nil {
		return nil, []error{err}, err
	}
	have, host, err := r.readRoutes()
	if err != nil {
		return nil, []error{err}, err
	}
	want, faults := r.plan(input, host)

	index, changed, err := r.ensureDevice(want.Device, mine)
	r.device.Store(int64(index))
	if err != nil {
		failed, whole = append(failed, err), err
	}
	if changed { // and routes may have gone with it
		if have, _, err = r.readRoutes(); err != nil {
			return faults, append(failed, err), err
		}
	}
	if index != 0 {
		if err := r.readEntries(&have, index); err != nil {
			return faults, append(failed, err), err
		}
	} else if want.Device != nil {
		if whole == nil {
			failed = append(failed, fmt.Errorf("the device %s is not there yet", want.Device.Name))
		}
		want.Routes, want.Neighbours, want.FDB = without(want.Routes, want.Device.Name), nil, nil
	}
	counts := map[op]int{}
	for _, c := range diff(want, have) {
		if err := r.apply(c, index); err != nil {
			failed = append(failed, err)
			continue
		}
		counts[c.op]++
		klog.V(2).Infof("%v", c)
	}
	if len(counts) > 0 {
		klog.V(1).Infof("Changed in the kernel: %d routes set and %d deleted, %d neighbours and %d, %d FDB entries and %d",
			counts[setRoute], counts[delRoute], counts[setNeigh], counts[delNeigh], counts[setFDB], counts[clearFDB]+counts[delFDB])
	}
	return faults, failed, whole
}

// sentence begins an error's text as a line of the log begins.
func sentence(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

// without leaves out the routes on a device that is not there.
func without(routes []Route, dev string) []Route {
	var rest []Route
	for _, r := range routes {
		if r.Dev != dev {
			rest = append(rest, r)
		}
	}
	return rest
}
