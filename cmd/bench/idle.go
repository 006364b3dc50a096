package main

import (
	"fmt"
	"time"

	"flanneld/pkg/lab/cluster"
)

// idling is how long flanneld is watched while nothing happens: once round all
// that it does now and then.
const idling = 2 * time.Minute

// calming is how long flanneld is left alone before that: it looks at its own
// writes once more, and gives back the memory that they needed.
const calming = 10 * time.Second

// idle measures what flanneld uses while nothing happens, on a host with the
// default flags and on one with --ip-masq, which has more rules to look after.
func (c *control) idle() error {
	plain, err := c.settled()
	if err != nil {
		return err
	}
	masq := c.fresh(c.once)
	masq.Start("--ip-masq")
	masq.AwaitReady()
	time.Sleep(calming)

	c.Say("Watching two idle daemons for %v ...", idling)
	hosts := []*cluster.Node{plain, masq}
	before, err := cpusOf(hosts)
	if err != nil {
		return err
	}
	begin := time.Now()
	time.Sleep(idling)
	elapsed := time.Since(begin)
	after, err := cpusOf(hosts)
	if err != nil {
		return err
	}
	masq.Stop()
	c.once.DeleteLease(keyOf(masq.Env().Subnet()))

	const bound = 0.2
	for i, name := range []string{"default flags", "--ip-masq"} {
		percent := func(d time.Duration) float64 { return 100 * d.Seconds() / elapsed.Seconds() }
		own, children := percent(after[i].own-before[i].own), percent(after[i].children-before[i].children)
		c.add(row{
			what:     c.what("idle, %s", name),
			measured: fmt.Sprintf("%.2f %% (%.2f own, %.2f children)", own+children, own, children),
			bound:    fmt.Sprintf("< %.2f %%", bound), verdict: verdict(own+children < bound),
		})
	}
	return nil
}

func cpusOf(hosts []*cluster.Node) (all []cpu, err error) {
	for _, h := range hosts {
		u, err := cpuOf(h.Daemon.Pid)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}
