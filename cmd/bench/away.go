package main

import (
	"errors"
	"strings"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

const (
	awayLeases = 1000             // that flanneld follows
	awayTime   = 30 * time.Second // for which it is watched while etcd is away
)

// An outage is a way for etcd to be away, from one host only, so that others can
// write leases meanwhile.
type outage struct {
	name    string
	rule    string // of iptables, on the host
	restart bool   // etcd, to end the connections that there are
}

var outages = []outage{
	// On a connection that is there, what etcd sends would still come in.
	{"refused", "OUTPUT -p tcp --dport 2379 -j REJECT --reject-with tcp-reset", true},
	{"silent", "INPUT -p tcp --sport 2379 -j DROP", false},
}

// away measures what flanneld uses while etcd is away, and how soon it has caught
// up when etcd is back. Backends have no part in that, so one of them will do.
func (c *control) away() error {
	if c.kind.name != vxlan.name {
		c.Say("Outages of etcd are the same for every backend, and measured with %s.", vxlan.name)
		return nil
	}
	if c.host != nil && c.host.Daemon.Running() {
		c.host.Stop() // or it would catch up beside the other
	}
	network := *c.once.Cluster
	network.Prefix += "-away"
	in := c.load(&network, min(awayLeases, c.leases))
	h := c.fresh(in)
	h.Start()
	h.AwaitReady()
	if err := c.programmed(h, in); err != nil {
		return err
	}
	for _, o := range outages {
		time.Sleep(calming)
		if err := c.outage(o, in, h); err != nil {
			return err
		}
	}
	h.Stop()
	return nil
}

// outage is one on the host, from its begin until flanneld has caught up.
func (c *control) outage(o outage, in *leased, h *cluster.Node) error {
	w, err := watch(h.Host)
	if err != nil {
		return err
	}
	iptables := func(do string) { h.Run(append([]string{"iptables", "-w", do}, strings.Fields(o.rule)...)...) }
	noticed := func() int { return strings.Count(h.Daemon.Log(), "] Waiting for the store: ") }
	before := noticed()
	begin := time.Now()
	iptables("-I")
	if o.restart {
		in.Etcd.Restart()
	}
	// Until flanneld has noticed, it has nothing to do.
	err = lab.Poll(patience, "waiting for flanneld to notice that etcd is "+o.name, func() error {
		if noticed() == before {
			return errors.New("its log does not say so")
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.Say("Etcd is %s, which flanneld has noticed after %s; watching it for %v ...", o.name, seconds(time.Since(begin)), awayTime)
	u, err := usageOver(awayTime, h)
	if err != nil {
		return err
	}

	leases, l := len(in.leases), newLease(c.next())
	x := w.expect(entries(c.kind, []lease{l}))
	in.writer.Write(l.stored(c.kind))
	back := time.Now()
	iptables("-D")
	at, err := w.await(x, patience)
	if err != nil {
		return err
	}
	in.leases = append(in.leases, l)
	if _, err := w.stop(); err != nil {
		return err
	}
	if err := c.programmed(h, in); err != nil {
		return err
	}

	const most, latest = 1.0, 5 * time.Second
	c.add(row{
		what: c.what("etcd %s, %d leases", o.name, leases), measured: u[0].String(),
		bound: "<= " + percent(most), verdict: verdict(u[0].total() <= most),
	})
	c.add(row{
		what: c.what("  from its return to a lease written before"), measured: seconds(at.Sub(back)),
		bound: "<= " + seconds(latest), verdict: verdict(at.Sub(back) <= latest),
	})
	return nil
}
