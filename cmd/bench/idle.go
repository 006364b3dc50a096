package main

import (
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
	shares, err := usageOver(idling, plain, masq)
	if err != nil {
		return err
	}
	masq.Stop()
	c.once.DeleteLease(keyOf(masq.Env().Subnet()))

	const bound = 0.2
	for i, name := range []string{"default flags", "--ip-masq"} {
		c.add(row{
			what: c.what("idle, %s", name), measured: shares[i].String(),
			bound: "< " + percent(bound), verdict: verdict(shares[i].total() < bound),
		})
	}
	return nil
}

// usageOver watches the hosts' daemons for some time.
func usageOver(d time.Duration, hosts ...*cluster.Node) (all []share, err error) {
	before, err := cpusOf(hosts)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	time.Sleep(d)
	elapsed := time.Since(begin)
	after, err := cpusOf(hosts)
	if err != nil {
		return nil, err
	}
	for i := range hosts {
		all = append(all, usage(before[i], after[i], elapsed))
	}
	return all, nil
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
