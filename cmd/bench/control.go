package main

import (
	"fmt"
	"slices"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

const (
	connections = 32               // to etcd, where many leases are written
	patience    = 60 * time.Second // with what ought to take a second
	settling    = 2 * time.Second  // after a start or a burst, for all that follows from it
)

// parts are measured in this order. Each can be left out.
var parts = []struct {
	name string
	play func(*control) error
}{
	{"start", (*control).start},
	{"restart", (*control).restart},
	{"change", (*control).change},
	{"burst", (*control).burst},
	{"idle", (*control).idle},
	{"status", (*control).status},
	{"memory", (*control).memory},
	{"away", (*control).away}, // after memory, as it stops the settled flanneld
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// control measures the control plane with one backend: an etcd with two
// networks, of so many leases and of twice as many.
type control struct {
	*bench
	lab     *lab.Lab
	kind    kind
	segment *lab.Segment
	once    *leased
	twice   *leased
	serial  int // of the next lease, MAC or address that is not in use yet
	hosts   int // made by now

	// The host whose flanneld most parts watch, and what that took when it had
	// settled; see settled.
	host *cluster.Node
	rss  int64
}

// leased is a network in etcd, and its leases, but for those of real hosts.
type leased struct {
	*cluster.Cluster
	writer *cluster.Writer
	leases []lease
}

// control plays the scene of one backend.
func (b *bench) control(l *lab.Lab, k kind) error {
	b.Heading("%s", k.name)
	c := &control{bench: b, lab: l, kind: k, segment: l.Segment("a", segment), serial: 2 * b.leases}
	first := cluster.New(l, c.segment)
	second := *first
	second.Prefix += "-twice"
	chosen := b.chosen(partNames())
	c.once = c.load(first, b.leases)
	if slices.Contains(chosen, "start") {
		c.twice = c.load(&second, 2*b.leases)
	}
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		if err := p.play(c); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// load writes a network's config and leases.
func (c *control) load(to *cluster.Cluster, leases int) *leased {
	to.SetConfig(fmt.Sprintf(`{"Network": "%v", "SubnetLen": %d, "SubnetMin": "%v", "Backend": {"Type": %q}}`,
		network, subnetLen, subnetMin, c.kind.name))
	n := &leased{Cluster: to, writer: to.Writer(connections)}
	for i := range leases {
		n.leases = append(n.leases, newLease(i))
	}
	begin := time.Now()
	n.writer.Write(c.stored(n.leases)...)
	c.Say("Wrote %d leases to etcd in %s.", leases, seconds(time.Since(begin)))
	return n
}

func (c *control) stored(leases []lease) (all []cluster.Lease) {
	for _, l := range leases {
		all = append(all, l.stored(c.kind))
	}
	return all
}

// fresh adds a host on which nothing has run yet.
func (c *control) fresh(in *leased) *cluster.Node {
	c.hosts++
	return in.Node(fmt.Sprintf("h%d", c.hosts), c.segment)
}

// settled is the host on which flanneld runs and has nothing left to do.
func (c *control) settled() (*cluster.Node, error) {
	if c.host == nil {
		c.host = c.fresh(c.once)
	}
	h := c.host
	if h.Daemon != nil && h.Daemon.Running() {
		return h, nil
	}
	h.Start()
	h.AwaitReady()
	time.Sleep(settling)
	m, err := memoryOf(h.Daemon.Pid)
	if err != nil {
		return nil, err
	}
	c.rss = m.rss
	return h, c.programmed(h, c.once)
}

// programmed reports what a host's kernel lacks of a network's leases.
func (c *control) programmed(h *cluster.Node, in *leased) error {
	have, err := dump(h.Host)
	if err != nil {
		return err
	}
	if err := lacking(entries(c.kind, in.leases), have); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// what names a row.
func (c *control) what(format string, args ...any) string {
	return c.kind.name + ": " + fmt.Sprintf(format, args...)
}
