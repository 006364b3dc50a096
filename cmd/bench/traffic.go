package main

import (
	"fmt"
	"slices"
	"strings"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

const (
	udp  = "udp"       // the backend, and the scene's name
	bare = "bare veth" // from host to host, without flanneld
)

// carriers are what is compared, in the order of the columns.
var carriers = []string{udp, vxlan.name, hostGW.name, bare}

// layout is how packets cross the wires between hosts.
type layout struct {
	name       string
	offloads   bool // see lab.Host.Offloads
	tcp1, tcp4 bound
}

var layouts = []layout{
	{"whole", true, atLeast(0.55, 1.0), atLeast(0.35, 0.7)},
	{"wire", false, atLeast(0.9, 1.1), atLeast(0.9, 1.1)},
}

func layoutNames() (names []string) {
	for _, l := range layouts {
		names = append(names, l.name)
	}
	return names
}

// trafficParts are measured in this order, for each layout.
var trafficParts = []struct {
	name string
	play func(*traffic) error
}{
	{"tcp1", func(t *traffic) error { return t.tcp(1, t.layout.tcp1) }},
	{"tcp4", func(t *traffic) error { return t.tcp(4, t.layout.tcp4) }},
	{"datagrams", (*traffic).datagrams},
	{"ping", (*traffic).ping},
}

func trafficPartNames() (names []string) {
	for _, p := range trafficParts {
		names = append(names, p.name)
	}
	return names
}

// traffic measures how well packets are carried, by two hosts with each backend.
type traffic struct {
	*bench
	lab    *lab.Lab
	hosts  []*cluster.Node
	paths  []*path // in the order of carriers
	layout layout  // as it is now
}

// path is the way from one host to another by a carrier, and its ends: a
// container on each host, or the hosts themselves.
type path struct {
	carrier  string
	a, b     *cluster.Node
	from, to *lab.Node
}

// traffic plays the scene.
func (b *bench) traffic(l *lab.Lab) error {
	b.Heading("traffic by %v", strings.Join(carriers, ", "))
	if err := lab.TUN(); err != nil {
		b.Say("Left out, as there is nothing to compare with the others:\n%v", err)
		return nil
	}
	t := &traffic{bench: b, lab: l}
	if err := t.build(); err != nil {
		return err
	}
	for _, name := range b.chosen(layoutNames()) {
		t.lay(layouts[slices.Index(layoutNames(), name)])
		for _, p := range trafficParts {
			if !slices.Contains(b.chosen(trafficPartNames()), p.name) {
				continue
			}
			if err := p.play(t); err != nil {
				return fmt.Errorf("%s, %s: %w", name, p.name, err)
			}
		}
	}
	return nil
}

// build makes the hosts, two to a backend, each with a container and with an
// iperf3 that waits for others.
func (t *traffic) build() error {
	s := t.lab.Segment("a", segment)
	first := cluster.New(t.lab, s)
	for _, carrier := range carriers {
		p := &path{carrier: carrier}
		if carrier == bare {
			before := t.paths[len(t.paths)-1]
			p.a, p.b = before.a, before.b
			p.from, p.to = p.a.Host.Node, p.b.Host.Node
		} else {
			c := *first
			c.Prefix += "-" + carrier
			c.SetConfig(fmt.Sprintf(`{"Network": "%v", "Backend": {"Type": %q}}`, network, carrier))
			p.a, p.b = c.Node(carrier+"1", s), c.Node(carrier+"2", s)
			for _, h := range []*cluster.Node{p.a, p.b} {
				h.Start()
				h.AwaitReady()
				t.hosts = append(t.hosts, h)
			}
			p.from, p.to = p.a.AddContainer("c").Node, p.b.AddContainer("c").Node
		}
		server := p.to.Start("iperf3", "iperf3", "--server", "--forceflush")
		if err := server.WaitLog("Server listening", patience); err != nil {
			return err
		}
		t.paths = append(t.paths, p)
	}
	return nil
}

// lay lays the wires, and has every flanneld start on them: it may look only once
// at what they can do.
func (t *traffic) lay(as layout) {
	t.layout = as
	for _, h := range t.hosts {
		h.Stop()
		h.Offloads(as.offloads)
		h.Start()
	}
	for _, h := range t.hosts {
		h.AwaitReady()
	}
	for _, p := range t.paths {
		lab.EventuallyPing(t.lab, patience, p.from, p.to.Addr(), lab.Echo{})
	}
}

// turns measures each path once a round, one after the other, so that what else
// the machine does disturbs all alike. It returns the figures by carrier.
func (t *traffic) turns(c comparison, measure func(*path) (float64, error)) (comparison, error) {
	c.what, c.figures = t.layout.name+": "+c.what, map[string][]float64{}
	for round := range t.rounds {
		var said []string
		for _, p := range t.paths {
			f, err := measure(p)
			if err != nil {
				return c, fmt.Errorf("from %s to %s: %w", p.from.Name, p.to.Name, err)
			}
			c.figures[p.carrier] = append(c.figures[p.carrier], f)
			said = append(said, p.carrier+" "+c.format(f))
		}
		t.Say("Round %d, %s: %s.", round+1, c.what, strings.Join(said, ", "))
	}
	return c, nil
}
