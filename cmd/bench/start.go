package main

import (
	"time"
)

// size is what the rounds of one number of leases gave.
type size struct {
	in              *leased
	reference, ours []time.Duration
	ratios          []float64
}

// start measures how long flanneld takes on a host that has nothing yet.
func (c *control) start() error {
	once, twice := &size{in: c.once}, &size{in: c.twice}
	var growth []float64
	for round := range c.rounds {
		// In turns, so that what else the machine does disturbs all alike.
		for _, s := range []*size{once, twice} {
			reference, err := c.reference(s.in)
			if err != nil {
				return err
			}
			ours, err := c.startFresh(s.in)
			if err != nil {
				return err
			}
			s.reference, s.ours = append(s.reference, reference), append(s.ours, ours)
			s.ratios = append(s.ratios, ours.Seconds()/reference.Seconds())
			c.Say("Round %d, %5d leases: batch tools %s, flanneld %s.", round+1, len(s.in.leases), seconds(reference), seconds(ours))
		}
		growth = append(growth, twice.ours[round].Seconds()/once.ours[round].Seconds())
	}
	for _, s := range []*size{once, twice} {
		ratio := median(s.ratios)
		r := row{
			what: c.what("start with %d leases", len(s.in.leases)), measured: seconds(median(s.ours)),
			reference: seconds(median(s.reference)) + " batch tools", ratio: times(ratio),
		}
		if s == once {
			r.bound, r.verdict = "<= "+times(c.kind.start)+" (aim "+c.kind.aim+")", verdict(ratio <= c.kind.start)
		}
		c.add(r)
	}
	const most = 2.0
	c.add(row{
		what: c.what("start with %d against %d", len(c.twice.leases), len(c.once.leases)), measured: seconds(median(twice.ours)),
		reference: seconds(median(once.ours)) + " flanneld", ratio: times(median(growth)),
		bound: "<= " + times(most), verdict: verdict(median(growth) <= most),
	})
	return nil
}

// startFresh is the time from the start of the process to READY=1 on a fresh
// host, or to when all is in the kernel, if that is later.
func (c *control) startFresh(in *leased) (time.Duration, error) {
	h := c.fresh(in)
	begin := time.Now()
	h.Start()
	ready, err := h.Daemon.NotifiedAt("READY=1", patience)
	if err != nil {
		return 0, err
	}
	err = c.programmed(h, in)
	for deadline := begin.Add(patience); err != nil; {
		if time.Now().After(deadline) {
			return 0, err
		}
		c.Say("%v was ready too early: %v", h, err)
		err = c.programmed(h, in)
		ready = time.Now()
	}
	h.Stop()
	// It counts among the leases of nobody else.
	in.DeleteLease(keyOf(h.Env().Subnet()))
	return ready.Sub(begin), nil
}
