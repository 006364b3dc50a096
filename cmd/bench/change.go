package main

import (
	"time"
)

const (
	single  = 200                   // leases that are added one by one
	spacing = 30 * time.Millisecond // between one and the next
	longest = 20 * time.Second      // for all of them: fewer have to do where each takes long
)

// change measures how soon one more lease is in the kernel.
func (c *control) change() error {
	h, err := c.settled()
	if err != nil {
		return err
	}
	w, err := watch(h.Host)
	if err != nil {
		return err
	}
	var took []time.Duration
	var added []lease
	for deadline := time.Now().Add(longest); len(took) < single && time.Now().Before(deadline); {
		l := newLease(c.next())
		x := w.expect(entries(c.kind, []lease{l}))
		c.once.writer.Write(l.stored(c.kind))
		answered := time.Now()
		at, err := w.await(x, patience)
		if err != nil {
			return err
		}
		took, added = append(took, max(0, at.Sub(answered))), append(added, l)
		time.Sleep(spacing)
	}
	// Back to as many as there were.
	if _, _, err := c.turn(w, added, nil); err != nil {
		return err
	}
	if _, err := w.stop(); err != nil {
		return err
	}
	const bound = 5 * time.Millisecond
	c.Say("One more lease, %d times: median %s, 95th percentile %s, worst %s.",
		len(took), milliseconds(median(took)), milliseconds(percentile(took, 95)), milliseconds(percentile(took, 100)))
	c.add(row{
		what: c.what("one more lease, median of %d", len(took)), measured: milliseconds(median(took)),
		bound: "<= " + milliseconds(bound), verdict: verdict(median(took) <= bound),
	})
	c.add(row{what: c.what("  95th percentile"), measured: milliseconds(percentile(took, 95))})
	return nil
}

// next is a number that no lease, MAC or address has yet.
func (c *control) next() int {
	c.serial++
	return c.serial - 1
}
