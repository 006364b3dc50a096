package kernel

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"flanneld/pkg/rtnl"
)

const (
	// settle is the least time between two comparisons: changes come in bursts.
	settle = 20 * time.Millisecond
	// settleShare keeps comparisons of large tables from taking all of a core:
	// the pause is this many times what the last one took, but no longer than
	// settleMost: what took long may have been the kernel, busy with others.
	settleShare = 4
	settleMost  = 500 * time.Millisecond
	// lookAgain is when the tables are read once more after something has changed
	// in the kernel. It tells that a link goes down before it takes the link's
	// routes away, and says nothing when it does.
	lookAgain = 500 * time.Millisecond
	// compareEvery is for what netlink might not have told.
	compareEvery = 2 * time.Minute
)

// Plan works out the state from the caller's input and the host's own routes.
// It has no side effects but to remember what it need not work out again. What
// of the input cannot be turned into state it leaves out and returns as faults,
// which are logged once each.
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
	// The sockets are opened here, not on a goroutine, as they belong to the
	// network namespace of the thread that opens them.
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer handle.Close()
	socket, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer socket.Close()
	notices, err := subscribe(socket)
	if err != nil {
		return err
	}
	r := reconciler[T]{
		table: table{owner: owner, handle: handle, socket: socket}, plan: plan, stale: true,
		watcher: &watcher{notices: notices, bell: make(chan struct{}, 1), writing: make(chan struct{}, 1)},
	}

	var input T
	select {
	case <-ctx.Done():
		return notices.Close()
	case input = <-inputs:
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.watcher.run(ctx) })
	g.Go(func() error {
		retry := backoff.NewExponentialBackOff()
		retry.InitialInterval, retry.MaxInterval = 500*time.Millisecond, 30*time.Second
		told := false     // that something has changed in the kernel
		var all time.Time // when the tables are to be read again
		sooner := func(d time.Duration) {
			if at := time.Now().Add(d); at.Before(all) {
				all = at
			}
		}
		for first := true; ; first = false {
			begin := time.Now()
			faults, failed, whole := r.compare(input)
			if first && whole != nil {
				return whole
			}
			r.say(faults, failed)
			synced(failed)
			took := time.Since(begin)

			// What only a change in the input has brought about puts nothing off.
			if r.readAll {
				all = begin.Add(compareEvery)
				if len(failed) > 0 {
					sooner(retry.NextBackOff())
				} else {
					retry.Reset()
				}
				if told {
					sooner(lookAgain)
				}
				told = false
			} else if r.refused {
				retry.Reset()
				sooner(retry.NextBackOff())
			}
			if r.torn {
				sooner(lookAgain)
			}
			if r.freed && len(failed) > 0 {
				sooner(settle) // there may be room now for what there was none for
			}
			again := time.NewTimer(time.Until(all))
			for due := false; !due; {
				select {
				case <-ctx.Done():
				case input = <-inputs:
					due = true
				case <-r.watcher.bell:
				case <-again.C:
					due, r.stale = true, true
				}
				select {
				case <-ctx.Done():
					again.Stop()
					return nil
				case <-time.After(min(max(settle, settleShare*took), settleMost) - time.Since(begin)):
				}
				// Take what has come meanwhile into the same comparison.
				select {
				case input = <-inputs:
					due = true
				default:
				}
				if news := r.watcher.take(); news.contradicts(&r.have, r.device, r.index, &r.table, r.matters) {
					due, r.stale, told = true, true, true
				}
			}
			again.Stop()
		}
	})
	return g.Wait()
}

// reconciler is the state of Run.
type reconciler[T any] struct {
	table
	plan    Plan[T]
	watcher *watcher

	// What the kernel has, as it was last read and has been written since. stale
	// says that it may have something else by now.
	have  have
	host  Host
	stale bool
	// device is that of the last State, and index its index; 0 is none.
	device *Device
	index  int32
	// devs are the interfaces that the last State names.
	devs map[string]bool

	// want is the last State. Since then have is as it asks for, but for what
	// has failed.
	want   State
	failed map[entry]error
	said   map[string]bool

	unread bool // the last try to read the tables has failed
	// What came of the last comparison: whether all tables were read for it,
	// whether the kernel has refused anything, whether anything was taken away.
	readAll, refused, freed bool
}

// say logs what was not said last time.
func (r *reconciler[T]) say(faults, failed []error) {
	saying := map[string]bool{}
	if r.unread { // and so nothing is known of all else
		maps.Copy(saying, r.said)
	}
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

// matters reports whether the routes there are and ought to be hang on an
// interface.
func (r *reconciler[T]) matters(dev string) bool {
	return r.devs[dev] || r.host.hostRoutes != nil && r.host.devs[dev]
}

// compare makes one comparison and puts right what is wrong. Of what has failed,
// whole is what concerns more than an entry: the device, or reading the tables.
func (r *reconciler[T]) compare(input T) (faults, failed []error, whole error) {
	var want State
	if !r.stale {
		want, faults = r.plan(input, r.host)
		r.stale = !sameDevice(want.Device, r.device)
	}
	r.readAll, r.refused, r.freed, r.torn = r.stale, false, false, false
	if r.readAll {
		var err error
		if want, faults, whole, err = r.read(input); err != nil {
			r.unread = true
			return faults, []error{err}, err
		}
		r.unread = false
		r.stale = false
		if whole != nil {
			failed, r.stale = append(failed, whole), true
		}
	}
	if want.Device != nil && r.index == 0 {
		if whole == nil {
			failed = append(failed, fmt.Errorf("the device %s is not there yet", want.Device.Name))
		}
		want.Routes, want.Neighbours, want.FDB = without(want.Routes, want.Device.Name), nil, nil
	}
	var changes []change
	if r.readAll {
		r.failed = map[entry]error{}
		changes = diff(want, &r.have)
	} else {
		r.forget(want)
		changes = diffSince(r.want, want, &r.have)
	}
	r.watcher.writing <- struct{}{}
	done, err := r.apply(changes, &r.have, r.index, func(c *change, err error) {
		r.failed[c.entry()], r.refused = err, true
	})
	<-r.watcher.writing
	if err != nil {
		r.stale, r.refused = true, true
		return faults, append(failed, err), err
	}
	r.want = want
	r.freed = done[delRoute]+done[delNeigh]+done[delFDB]+done[delHop] > 0
	if len(done) > 0 {
		klog.V(1).Infof("Changed in the kernel: %d routes set and %d deleted, %d neighbours and %d, %d FDB entries and %d",
			done[setRoute], done[delRoute], done[setNeigh], done[delNeigh], done[setFDB], done[clearFDB]+done[delFDB])
	}
	failed = slices.AppendSeq(failed, maps.Values(r.failed))
	slices.SortFunc(failed, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return faults, failed, whole
}

// forget forgets failures of what is no longer wanted as it was.
func (r *reconciler[T]) forget(want State) {
	if len(r.failed) == 0 {
		return
	}
	forgetApart(r.failed, r.want.Routes, want.Routes, routeEntry)
	forgetApart(r.failed, r.want.Neighbours, want.Neighbours, neighEntry)
	forgetApart(r.failed, r.want.FDB, want.FDB, fdbEntry)
}

func forgetApart[E any](failed map[entry]error, before, now []*E, of func(*E) entry) {
	before, now = apart(before, now)
	for _, e := range slices.Concat(before, now) {
		delete(failed, of(e))
	}
}

// read reads all tables, works out the State and makes its device what it ought
// to be, if it can: device says why not.
func (r *reconciler[T]) read(input T) (want State, faults []error, device, err error) {
	r.watcher.take() // it is about what is read now
	mine, err := r.readLinks()
	if err != nil {
		return want, nil, nil, err
	}
	h, host, err := r.readRoutes()
	if err != nil {
		return want, nil, nil, err
	}
	r.have = h
	if !host.same(r.host) {
		r.host = host // a plan that knows r.host need not look at all peers again
	}
	want, faults = r.plan(input, r.host)
	r.devs = want.devices()

	index, changed, device := r.ensureDevice(want.Device, mine)
	r.device, r.index = want.Device, index
	r.watcher.device.Store(index)
	if changed { // and routes may have gone with it
		if r.have, _, err = r.readRoutes(); err != nil {
			return want, faults, device, err
		}
	}
	if index != 0 {
		err = r.readEntries(&r.have, index)
	}
	return want, faults, device, err
}

// sentence begins an error's text as a line of the log begins.
func sentence(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

// without leaves out the routes on a device that is not there.
func without(routes []*Route, dev string) []*Route {
	var rest []*Route
	for _, r := range routes {
		if r.Dev != dev {
			rest = append(rest, r)
		}
	}
	return rest
}
