package kernel

import (
	"context"
	"errors"
	"fmt"
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
// It calls synced after each comparison. What has failed is tried again with
// back-off, and each error is logged when it first appears, of many at once only a
// few. Run itself fails only when netlink does, or when to begin with it cannot set up
// the State's device or read what there is.
func Run[T any](ctx context.Context, owner Owner, inputs <-chan T, plan Plan[T], synced func(Comparison)) error {
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
		var why Cause     // they are
		sooner := func(d time.Duration, cause Cause) {
			if at := time.Now().Add(d); at.Before(all) {
				all, why = at, cause
			}
		}
		for cause := Start; ; {
			begin := time.Now()
			c, whole := r.compare(input, cause)
			if cause == Start && whole != nil {
				return whole
			}
			c.Took = time.Since(begin)
			r.say(c)
			synced(c)

			// What only a change in the input has brought about puts nothing off.
			if c.Whole {
				all, why = begin.Add(compareEvery), Periodic
				if len(c.Failed) > 0 {
					sooner(retry.NextBackOff(), Retry)
				} else {
					retry.Reset()
				}
				if told {
					sooner(lookAgain, Notice)
				}
				told = false
			} else if r.refused {
				retry.Reset()
				sooner(retry.NextBackOff(), Retry)
			}
			if r.torn {
				sooner(lookAgain, Retry)
			}
			if r.freed && len(c.Failed) > 0 {
				sooner(settle, Retry) // there may be room now for what there was none for
			}
			again := time.NewTimer(time.Until(all))
			for due := false; !due; {
				select {
				case <-ctx.Done():
				case input = <-inputs:
					due, cause = true, Input
				case <-r.watcher.bell:
				case <-again.C:
					due, r.stale, cause = true, true, why
				}
				select {
				case <-ctx.Done():
					again.Stop()
					return nil
				case <-time.After(min(max(settle, settleShare*c.Took), settleMost) - time.Since(begin)):
				}
				// Take what has come meanwhile into the same comparison.
				select {
				case input = <-inputs:
					due, cause = true, Input
				default:
				}
				if news := r.watcher.take(); news.contradicts(&r.have, r.device, r.index, &r.table, r.matters) {
					due, r.stale, told, cause = true, true, true, Notice
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
	failed map[entry]refusal

	saidFaults, saidFailed said

	unread bool       // the last try to read the tables has failed
	last   Comparison // the last one, but for how long it took
	// What came of it besides: whether the kernel has refused anything, whether
	// anything was taken away.
	refused, freed bool
}

// refusal is why the kernel is not as it ought to be in one entry.
type refusal struct {
	error
	missing bool // the entry is; otherwise it is one to be gone
}

// errAbsent is why a device is not there that somebody else has to make.
var errAbsent = errors.New("not there yet")

// matters reports whether the routes there are and ought to be hang on an
// interface.
func (r *reconciler[T]) matters(dev string) bool {
	return r.devs[dev] || r.host.hostRoutes != nil && r.host.devs[dev]
}

// compare makes one comparison and puts right what is wrong. Of what has failed,
// whole is what concerns more than an entry: the device, or reading the tables.
func (r *reconciler[T]) compare(input T, cause Cause) (c Comparison, whole error) {
	c = r.last.next(cause)
	defer func() { r.last = c }()
	var want State
	if !r.stale {
		want, c.Faults = r.plan(input, r.host)
		r.stale = !sameDevice(want.Device, r.device)
	}
	c.Whole, r.refused, r.freed, r.torn = r.stale, false, false, false
	if c.Whole {
		var err error
		if want, whole, err = r.read(input, &c); err != nil {
			r.unread = true
			c.Failed = []error{err}
			return c, err
		}
		r.unread = false
		r.stale = false
		if whole != nil {
			c.Failed, r.stale = append(c.Failed, whole), true
		}
	}
	asked := want // with what has to wait for the device
	if want.Device != nil && r.index == 0 {
		if whole == nil {
			c.Failed = append(c.Failed, fmt.Errorf("the device %s is %w", want.Device.Name, errAbsent))
		}
		want.Routes, want.Neighbours, want.FDB = without(want.Routes, want.Device.Name), nil, nil
	}
	var changes []change
	if c.Whole {
		r.failed = map[entry]refusal{}
		changes = diff(want, &r.have)
	} else {
		r.forget(want)
		changes = diffSince(r.want, want, &r.have)
	}
	r.watcher.writing <- struct{}{}
	done, err := r.apply(changes, &r.have, r.index, func(c *change, err error) {
		r.failed[c.entry()], r.refused = refusal{err, !c.deletes()}, true
	})
	<-r.watcher.writing
	c.Routes.Changed, c.Neighbours.Changed, c.FDB.Changed = done[setRoute]+done[delRoute], done[setNeigh]+done[delNeigh], done[setFDB]+done[delFDB]
	if c.Whole && cause != Start {
		r.countRepairs(&c, want, changes)
	}
	if err != nil {
		r.stale, r.refused = true, true
		c.Failed = append(c.Failed, err)
		return c, err
	}
	r.want = want
	r.freed = done[delRoute]+done[delNeigh]+done[delFDB]+done[delHop] > 0
	if len(done) > 0 {
		klog.V(1).Infof("Changed in the kernel: %d routes set and %d deleted, %d neighbours and %d, %d FDB entries and %d",
			done[setRoute], done[delRoute], done[setNeigh], done[delNeigh], done[setFDB], done[clearFDB]+done[delFDB])
	}
	c.count(asked, want, r.failed)
	for _, f := range r.failed {
		c.Failed = append(c.Failed, f.error)
	}
	slices.SortFunc(c.Failed, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return c, whole
}

// forget forgets failures of what is no longer wanted as it was.
func (r *reconciler[T]) forget(want State) {
	if len(r.failed) == 0 {
		return
	}
	for e := range r.changed(want) {
		delete(r.failed, e)
	}
}

// changed are the entries that are wanted otherwise than they were.
func (r *reconciler[T]) changed(want State) map[entry]bool {
	changed := map[entry]bool{}
	addApart(changed, r.want.Routes, want.Routes, routeEntry)
	addApart(changed, r.want.Neighbours, want.Neighbours, neighEntry)
	addApart(changed, r.want.FDB, want.FDB, fdbEntry)
	return changed
}

func addApart[E any](to map[entry]bool, before, now []*E, of func(*E) entry) {
	before, now = apart(before, now)
	for _, e := range slices.Concat(before, now) {
		to[of(e)] = true
	}
}

// countRepairs counts the changes that were made although what is wanted was the
// same before.
func (r *reconciler[T]) countRepairs(c *Comparison, want State, changes []change) {
	changed := r.changed(want)
	for i := range changes {
		if !changes[i].made || changed[changes[i].entry()] {
			continue
		}
		switch changes[i].op {
		case setRoute, delRoute:
			c.Routes.Repaired++
		case setNeigh, delNeigh:
			c.Neighbours.Repaired++
		case setFDB, delFDB:
			c.FDB.Repaired++
		}
	}
}

// read reads all tables, works out the State and makes its device what it ought
// to be, if it can: device says why not.
func (r *reconciler[T]) read(input T, c *Comparison) (want State, device, err error) {
	r.watcher.take() // it is about what is read now
	mine, err := r.readLinks()
	if err != nil {
		return want, nil, err
	}
	h, host, err := r.readRoutes()
	if err != nil {
		return want, nil, err
	}
	r.have = h
	if !host.same(r.host) {
		r.host = host // a plan that knows r.host need not look at all peers again
	}
	want, c.Faults = r.plan(input, r.host)
	r.devs = want.devices()

	// Later on it is for the caller to say that somebody else has changed it.
	level := klog.Level(1)
	if c.Cause == Start {
		level = 0
	}
	index, changed, device := r.ensureDevice(want.Device, mine, level)
	c.Device = changed
	r.device, r.index = want.Device, index
	r.watcher.device.Store(index)
	if changed { // and routes may have gone with it
		if r.have, _, err = r.readRoutes(); err != nil {
			return want, device, err
		}
	}
	if index != 0 {
		err = r.readEntries(&r.have, index)
	}
	return want, device, err
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
