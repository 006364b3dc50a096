// Command demo shows flanneld at work. For each backend in turn it sets up
// three hosts with a flanneld on each, shows what an operator finds on one of
// them, pings from container to container and from host to container, and
// measures. It ends with a table of what it measured.
//
// The hosts are network namespaces (see package lab), which go with the
// program, however it ends; nothing of the machine itself is changed.
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
	"flanneld/pkg/lab/screen"
)

// A scene is one backend on three fresh hosts.
type scene struct {
	title  string
	about  string
	config string // the Backend object of the network config
	device string // that the backend makes
	fdb    bool   // the backend has neighbour and FDB entries to show
	apart  bool   // h3 is on a segment of its own, behind a router
	daemon bool   // packets pass through flanneld, not through the kernel alone
}

var scenes = []scene{
	{
		title:  "vxlan",
		about:  "Packets to other hosts go through the kernel's VXLAN device flannel.1.",
		config: `{"Type": "vxlan"}`, device: "flannel.1", fdb: true,
	},
	{
		title:  "vxlan + DirectRouting",
		about:  "h2 is on h1's segment and gets plain packets, h3 is behind a router and gets VXLAN.",
		config: `{"Type": "vxlan", "DirectRouting": true}`, device: "flannel.1", fdb: true, apart: true,
	},
	{
		title:  "host-gw",
		about:  "Each host is the next hop for its containers: plain routes, no device, the full MTU.",
		config: `{"Type": "host-gw"}`,
	},
	{
		title:  "udp",
		about:  "flanneld itself carries the packets, between the TUN device flannel0 and a UDP socket.",
		config: `{"Type": "udp"}`, device: "flannel0", daemon: true,
	},
}

const (
	settle = 5 * time.Second // for the hosts to know of each other; a tenth of a second is usual
	few    = 20              // echoes to show that a place is reached

	rounds  = 3               // of measuring, of which the best throughput counts
	echoes  = 100             // in each round
	measure = 1 * time.Second // of TCP in each round
)

func main() {
	out := screen.New(os.Stdout)
	cluster.Enter(out)
	if err := run(out); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(out screen.Screen) error {
	if err := lab.Tools("ip", "bridge", "iptables"); err != nil {
		return err
	}
	begin := time.Now()
	var rows []row
	for i, s := range scenes {
		out.Heading("%d of %d: %s", i+1, len(scenes), s.title)
		if s.daemon {
			if err := lab.TUN(); err != nil {
				out.Say("Left out:\n%v", err)
				rows = append(rows, row{backend: s.title, reason: "left out, as /dev/net/tun cannot be opened"})
				continue
			}
		}
		out.Say("%s", s.about)
		err := lab.Run(out.Say, func(l *lab.Lab) error {
			more, err := s.play(out, l)
			rows = append(rows, more...)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	out.Heading("What was measured")
	table(out, rows)
	out.Say("\n%s", worth())
	out.Say("The demo took %.0f s. All that it made is gone.", time.Since(begin).Seconds())
	return nil
}

// play shows one backend and returns what it measured.
func (s scene) play(out screen.Screen, l *lab.Lab) ([]row, error) {
	segment := l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
	segments := []*lab.Segment{segment, segment, segment}
	if s.apart {
		segments[2] = l.Segment("b", netip.MustParsePrefix("172.30.1.0/24"))
	}
	c := cluster.New(l, segment)
	config := fmt.Sprintf(`{"Network": "10.1.0.0/16", "Backend": %s}`, s.config)
	out.Say("etcd runs at %s, with this in %s/config:\n  %s", c.Etcd.Endpoint(), c.Prefix, config)
	c.SetConfig(config)

	var hosts []*cluster.Node
	for i, segment := range segments {
		h := c.Node(fmt.Sprintf("h%d", i+1), segment)
		h.Start()
		hosts = append(hosts, h)
		if i == 0 {
			out.Typed(h.Name, commandLine(h)+" &", "")
		}
	}
	// Containers first, then hosts: the order of the rows of pings.
	var from []*lab.Node
	for _, h := range hosts {
		h.AwaitReady()
		container := h.AddContainer("c")
		out.Say("%s at %-10v is ready and has the subnet %v; its container %s is %v",
			h.Name, h.Addr(), h.Env().Subnet(), container.Name, container.Addr())
		from = append(from, container.Node)
	}
	containers := from[:len(hosts):len(hosts)]
	for _, h := range hosts {
		from = append(from, h.Host.Node)
	}

	pingErr := pings(out, from, containers)
	look(out, c, hosts[0], s) // if a ping failed, here is why
	if pingErr != nil {
		return nil, pingErr
	}

	out.Say("\nMeasuring between hosts and between containers, %d rounds of %d pings and %v of TCP:", rounds, echoes, measure)
	var rows []row
	peers := []int{1}
	if s.apart {
		peers = append(peers, 2)
	}
	for _, i := range peers {
		r := row{backend: s.title, hosts: "on one segment", mtu: hosts[0].Env().MTU}
		if segments[i] != segments[0] {
			r.hosts = "a router between"
		}
		// In turns, so that what else the machine does disturbs both alike.
		for range rounds {
			if err := r.bare.add(hosts[0].Host.Node, hosts[i].Host.Node); err != nil {
				return rows, err
			}
			if err := r.through.add(containers[0], containers[i]); err != nil {
				return rows, err
			}
		}
		out.Say("  %s to %s      %v", hosts[0].Name, hosts[i].Name, r.bare)
		out.Say("  %s to %s  %v", containers[0].Name, containers[i].Name, r.through)
		rows = append(rows, r)
	}

	for _, h := range hosts {
		h.Stop()
	}
	if s.daemon {
		out.Say("The daemons are stopped, and with them the traffic they carried.")
		return rows, nil
	}
	stats, err := containers[0].Ping(containers[1].Addr(), lab.Echo{Count: few})
	if err != nil {
		return rows, fmt.Errorf("with the daemons stopped, traffic should go on: %w", err)
	}
	out.Say("The daemons are stopped. %s still reaches %s, %d of %d echoes: the kernel goes on alone.",
		containers[0].Name, containers[1].Name, stats.Received, stats.Sent)
	return rows, nil
}

// look shows what an operator looks at on a host.
func look(out screen.Screen, c *cluster.Cluster, h *cluster.Node, s scene) {
	show := func(argv ...string) { out.Typed(h.Name, strings.Join(argv, " "), h.Run(argv...)) }
	out.Typed(h.Name, "flanneld status", h.Run(lab.Binary("flanneld"), "status"))
	show("cat", "subnet.env")
	show("ip", "route")
	if s.fdb {
		show("ip", "neigh", "show", "dev", s.device)
		show("bridge", "fdb", "show", "dev", s.device)
	} else if s.device != "" {
		show("ip", "-brief", "address", "show", "dev", s.device)
	}
	// What curl and jq would print, which need not be installed for it.
	key := strings.ReplaceAll(h.Env().Subnet().String(), "/", "-")
	lease := c.Leases()[key]
	out.Typed(h.Name, fmt.Sprintf("curl -s %s/v2/keys%s/subnets/%s\n| jq -r '.node | .value, .ttl'", c.Etcd.Endpoint(), c.Prefix, key),
		lease.Value+"\n"+strconv.Itoa(lease.TTL))
}

// commandLine is how flanneld was started on a host, as typed in the directory
// it was started in. A newline in it is where a long line is continued.
func commandLine(h *cluster.Node) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.Daemon.Pid))
	if err != nil {
		return "flanneld" // waiting for it to be ready will tell what is wrong
	}
	words := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	if len(words) < 3 {
		return "flanneld" // it has ended already, as above
	}
	words[0] = "flanneld"
	line := strings.Join(words[:3], " ") + "\n" + strings.Join(words[3:], " ")
	return strings.ReplaceAll(line, h.Dir+"/", "")
}

// pings shows the round trips from all places to all containers of other hosts
// and returns an error for each that fails.
func pings(out screen.Screen, from, containers []*lab.Node) error {
	out.Say("\nPinging containers of other hosts, %d echoes each; the mean round trips in ms:", few)
	header := []string{"from", "to"}
	for _, c := range containers {
		header = append(header, c.Name)
	}
	lines := [][]string{header}
	var errs []error
	for i, a := range from {
		line := []string{a.Name, ""}
		for j, b := range containers {
			if i%len(containers) == j { // on the same host
				line = append(line, "-")
				continue
			}
			mean, err := ping(a, b)
			if err != nil {
				errs = append(errs, err)
				line = append(line, "fails")
				continue
			}
			line = append(line, ms(mean))
		}
		lines = append(lines, line)
	}
	out.Columns(lines)
	out.Say("")
	return errors.Join(errs...)
}

func ping(a, b *lab.Node) (mean time.Duration, err error) {
	err = lab.Poll(settle, "waiting for an answer", func() error {
		_, err := a.Ping(b.Addr(), lab.Echo{Timeout: 200 * time.Millisecond})
		return err
	})
	if err != nil {
		return 0, err
	}
	stats, err := a.Ping(b.Addr(), lab.Echo{Count: few})
	return stats.Mean, err
}

// reading is what was measured one way between two nodes.
type reading struct {
	ping  time.Duration // mean round trip
	gbits float64       // per second, by one TCP stream, in the best round
}

func (r reading) String() string { return fmt.Sprintf("%s ms, %5.2f Gbit/s", ms(r.ping), r.gbits) }

// add measures one round from a to b.
func (r *reading) add(a, b *lab.Node) error {
	stats, err := a.Ping(b.Addr(), lab.Echo{Count: echoes})
	if err != nil {
		return err
	}
	bits, err := lab.Throughput(a, b, b.Addr(), measure, 1)
	if err != nil {
		return err
	}
	r.ping += stats.Mean / rounds
	r.gbits = max(r.gbits, bits/1e9)
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond)) }
