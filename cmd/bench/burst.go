package main

import (
	"net/netip"
	"slices"
	"time"

	"flanneld/pkg/lab/cluster"
)

// burstSize is how many leases change at once, if there are as many.
const burstSize = 1000

// burst measures how soon many changes at once are in the kernel.
func (c *control) burst() error {
	h, err := c.settled()
	if err != nil {
		return err
	}
	w, err := watch(h.Host)
	if err != nil {
		return err
	}
	n := min(burstSize, len(c.once.leases))
	changed := &swings{what: c.what("%d leases changed at once", n)}
	replaced := &swings{what: c.what("%d removed, %d new at once", n/2, n/2), linger: linger}
	for range c.rounds {
		for _, s := range []*swings{changed, replaced} {
			n := n
			if s == replaced {
				n /= 2
			}
			before := slices.Clone(c.once.leases[:n])
			var after []lease
			for _, l := range before {
				if s == changed {
					l = c.kind.change(l, c.next())
				} else {
					l = newLease(c.next())
				}
				after = append(after, l)
			}
			written, done, err := c.turn(w, before, after)
			if err != nil {
				return err
			}
			s.add(written, done)
			// The next burst is of others, and from all over the network.
			c.once.leases = append(c.once.leases[n:], after...)
			time.Sleep(settling)
			if err := c.programmed(h, c.once); err != nil {
				return err
			}
		}
	}
	if _, err := w.stop(); err != nil {
		return err
	}
	changed.report(c)
	replaced.report(c)
	return nil
}

// turn makes leases into others, both in etcd. It returns the times from the
// first request to etcd's last answer and to when the kernel has it all.
func (c *control) turn(w *watcher, before, after []lease) (written, done time.Duration, err error) {
	// A lease that stays under its key is overwritten, not removed.
	stays := map[netip.Prefix]bool{}
	for _, l := range after {
		stays[l.subnet] = true
	}
	var requests []cluster.Lease
	for i := range max(len(before), len(after)) {
		if i < len(before) && !stays[before[i].subnet] {
			requests = append(requests, before[i].removed())
		}
		if i < len(after) {
			requests = append(requests, after[i].stored(c.kind))
		}
	}
	x := w.expect(difference(c.kind, before, after))
	begin := time.Now()
	c.once.writer.Write(requests...)
	written = time.Since(begin)
	at, err := w.await(x, patience)
	return written, at.Sub(begin), err
}

// linger is how long flanneld waits before it unprograms a lease that is gone from
// etcd: a host that still runs has claimed it again by then.
const linger = 500 * time.Millisecond

// swings are the bursts of one sort.
type swings struct {
	what          string
	linger        time.Duration // how long what is gone stays on purpose
	written, done []time.Duration
	late          []time.Duration // done after the last answer
}

func (s *swings) add(written, done time.Duration) {
	s.written, s.done, s.late = append(s.written, written), append(s.done, done), append(s.late, max(0, done-written))
}

func (s *swings) report(c *control) {
	bound := 300*time.Millisecond + s.linger
	c.Say("%s: written %v, programmed %v.", s.what, s.written, s.done)
	c.add(row{
		what: s.what, measured: seconds(median(s.done)), reference: seconds(median(s.written)) + " etcd's answers",
		bound: "<= " + seconds(bound), verdict: verdict(median(s.done) <= bound),
	})
	c.add(row{
		what: c.what("  of that, after etcd's last answer"), measured: seconds(median(s.late)),
		bound: "<= " + seconds(bound), verdict: verdict(median(s.late) <= bound),
	})
}
