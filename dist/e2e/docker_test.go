//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// dockerNet is a network of hosts with dockerd, and a host beside it that knows
// nothing of the network.
type dockerNet struct {
	t       *testing.T
	c       *cluster.Cluster
	hosts   []*dockerHost
	outside *lab.Host
	// direct says that the kernel carries packets, also while flanneld is down.
	direct bool
	masq   bool
	flags  []string // of flanneld

	containers []*dockerContainer // one on each host, in their order
	neighbour  *dockerContainer   // another on the first host, that publishes nothing
}

// newDockerNet is one with hosts on which nothing runs yet, the last of them on
// a segment of its own if there are three. backend is that of the network config.
func newDockerNet(t *testing.T, backend string, masq bool, hosts int, options ...string) *dockerNet {
	t.Helper()
	if err := lab.Tools("ip", "chroot"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	near := l.Segment("near", netip.MustParsePrefix("172.30.0.0/24"))
	far := l.Segment("far", netip.MustParsePrefix("172.30.1.0/24"))
	c := cluster.New(l, near)
	c.SetConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "Backend": %s}`, backend))
	n := &dockerNet{
		t: t, c: c, outside: l.Host("outside", near), masq: masq, direct: !strings.Contains(backend, "udp"),
		flags: []string{fmt.Sprintf("--ip-masq=%t", masq), "--iptables-resync=1"},
	}
	for i := range hosts {
		s := near
		if i == 2 {
			s = far
		}
		h := newDockerHost(t, c, fmt.Sprintf("h%d", i+1), s)
		h.Options = options
		n.hosts = append(n.hosts, h)
	}
	return n
}

// StartFlanneld starts flanneld on every host and waits until all are ready.
func (n *dockerNet) StartFlanneld() {
	n.t.Helper()
	for _, h := range n.hosts {
		h.Start(n.flags...)
	}
	for _, h := range n.hosts {
		h.AwaitReady()
	}
}

// StartDockerd starts dockerd on every host, with the subnet that flanneld has.
func (n *dockerNet) StartDockerd() {
	n.t.Helper()
	for _, h := range n.hosts {
		h.WriteDockerOptions()
		h.StartDockerd()
	}
	for _, h := range n.hosts {
		h.AwaitDockerd()
	}
}

// StopDockerd stops dockerd on every host.
func (n *dockerNet) StopDockerd() {
	n.t.Helper()
	var g errgroup.Group
	for _, h := range n.hosts {
		g.Go(h.StopDockerd) // it takes its time
	}
	n.c.Must(g.Wait())
}

// RestartFlanneld restarts flanneld on one host after the other, while the
// streams flow.
func (n *dockerNet) RestartFlanneld(what string, stop func(*dockerHost), streams []*lab.Stream) {
	n.t.Helper()
	for _, h := range n.hosts {
		stop(h)
		if n.direct {
			n.Check(fmt.Sprintf("after %s on %v", what, h))
			n.flows(fmt.Sprintf("after %s on %v", what, h), streams)
		}
		h.Start(n.flags...)
		h.AwaitReady()
		n.Check(fmt.Sprintf("after %s on %v and a start", what, h))
		n.flows(fmt.Sprintf("after %s on %v and a start", what, h), streams)
	}
}

// Streams are TCP connections from the first container to all others.
func (n *dockerNet) Streams() (streams []*lab.Stream) {
	n.t.Helper()
	for _, to := range n.containers[1:] {
		s, err := lab.NewStream(n.containers[0], to, to.Addr())
		n.c.Must(err)
		streams = append(streams, s)
	}
	return streams
}

// flows waits until something has arrived on each stream that was sent just now.
func (n *dockerNet) flows(when string, streams []*lab.Stream) {
	n.t.Helper()
	for _, s := range streams {
		sent := s.Sent()
		lab.Eventually(n.t, dockerTime, when+" an open connection goes on", func() error {
			if arrived := s.Arrived(); arrived <= sent {
				return fmt.Errorf("%d bytes have arrived, and %d were sent before", arrived, sent)
			}
			return nil
		})
	}
}

// RunContainers makes the containers.
func (n *dockerNet) RunContainers() {
	n.t.Helper()
	var g errgroup.Group
	for i, h := range n.hosts {
		g.Go(func() error {
			if err := h.ImportImage(); err != nil {
				return err
			}
			if err := h.Create("web", "-p", fmt.Sprintf("%d:%d", publishedPort, webPort)); err != nil {
				return err
			}
			if i == 0 {
				return h.Create("other")
			}
			return nil
		})
	}
	n.c.Must(g.Wait())
	n.FindContainers()
}

// FindContainers waits for the containers after a start or restart of dockerd,
// and for flanneld to have its rules in order after it.
func (n *dockerNet) FindContainers() {
	n.t.Helper()
	n.containers = nil
	for _, h := range n.hosts {
		n.containers = append(n.containers, h.Container("web"))
	}
	n.neighbour = n.hosts[0].Container("other")
	for _, h := range n.hosts {
		lab.Eventually(n.t, dockerTime, "flanneld's rules are in order on "+h.String(), h.rulesInOrder)
	}
	for _, from := range n.containers {
		for _, to := range n.containers {
			lab.EventuallyPing(n.t, dockerTime, from, to.Addr(), lab.Echo{})
		}
	}
}

// rulesInOrder is an error unless each jump of flanneld's is there once, and in
// front of dockerd's masquerading.
func (h *dockerHost) rulesInOrder() error {
	for _, w := range []struct{ table, chain, jump, what string }{
		{"nat", "POSTROUTING", "-j FLANNEL-POSTRTG", "MASQUERADE"},
		{"filter", "FORWARD", "-j FLANNEL-FWD", ""},
	} {
		out, err := h.Exec("chroot", h.root, "iptables", "-w", "-t", w.table, "-S", w.chain)
		if err != nil {
			return err
		}
		if n := strings.Count(out, w.jump); n != 1 {
			return fmt.Errorf("%d times %s in\n%s", n, w.jump, out)
		}
		rules := strings.Split(out, "\n")[1:] // behind the policy
		if w.what != "" && rules[0] != "-A "+w.chain+" "+w.jump {
			return fmt.Errorf("%s does not come first in\n%s", w.jump, out)
		}
	}
	return nil
}

// Check has every kind of connection that containers and their clients make, and
// says as whom each is seen. It ends the test at the first that is not made, which
// takes its time, and in the end if anything else was wrong.
func (n *dockerNet) Check(when string) {
	n.t.Helper()
	for _, h := range n.hosts {
		if out := h.IPTables("-S", "FORWARD"); !strings.HasPrefix(out, "-P FORWARD DROP\n") {
			n.t.Errorf("%s: FORWARD on %v does not drop by policy, so that nothing is shown here:\n%s", when, h, out)
		}
		// Or the case that dockerd masquerades by itself is not tried at all.
		rule := fmt.Sprintf("-A POSTROUTING -s %v ! -o docker0 -j MASQUERADE", h.Env().Subnet())
		if out := h.IPTables("-t", "nat", "-S", "POSTROUTING"); strings.Contains(out, rule) == n.masq {
			n.t.Errorf("%s: --ip-masq=%t, and the rules on %v are\n%s", when, n.masq, h, out)
		}
		if err := h.rulesInOrder(); err != nil {
			n.t.Errorf("%s: %v: %v", when, h, err)
		}
	}
	for _, from := range n.containers {
		for _, to := range n.containers {
			port := netip.AddrPortFrom(to.On.Addr(), publishedPort)
			if from == to {
				n.sees(when, "a container through its own published port", from.Node, port, from.On.Env().Gateway.Addr())
				continue
			}
			// Packets of the MTU that dockerd was told pass, and none that is larger
			// even leaves.
			mtu := from.On.Env().MTU
			if _, err := from.Ping(to.Addr(), lab.Echo{Count: 2, Size: mtu, DF: true, Timeout: askTime}); err != nil {
				n.t.Fatalf("%s: %v", when, err)
			}
			if _, err := from.Ping(to.Addr(), lab.Echo{Size: mtu + 1, DF: true}); !errors.Is(err, unix.EMSGSIZE) {
				n.t.Errorf("%s: %v can send packets of more than %d bytes, the MTU: %v", when, from, mtu, err)
			}
			n.sees(when, "container to container on another host", from.Node, netip.AddrPortFrom(to.Addr(), serverPort), from.Addr())
			n.sees(when, "container to another host's published port", from.Node, port, from.On.Addr())
		}
		n.goesOut(when, from)
	}
	n.goesOut(when, n.neighbour)
	for i, h := range n.hosts {
		port := netip.AddrPortFrom(h.Addr(), publishedPort)
		n.sees(when, "outside to a published port", n.outside.Node, port, n.outside.Addr())
		for _, from := range n.hosts {
			if from != h {
				n.sees(when, "host to another host's published port", from.Host.Node, port, from.Addr())
				n.sees(when, "host to a container on another host", from.Host.Node, netip.AddrPortFrom(n.containers[i].Addr(), serverPort), from.Addr(), from.Env().Subnet().Addr())
			}
		}
		n.sees(when, "host to its own published port", h.Host.Node, port, h.Addr(), h.Env().Gateway.Addr())
	}
	h := n.hosts[0]
	n.sees(when, "container to its neighbour's published port", n.neighbour.Node, netip.AddrPortFrom(h.Addr(), publishedPort), n.neighbour.Addr(), h.Env().Gateway.Addr())
	if n.t.Failed() {
		n.t.FailNow()
	}
}

// sees checks that a server answers, and that it sees one of those addresses.
func (n *dockerNet) sees(when, what string, from *lab.Node, to netip.AddrPort, want ...netip.Addr) {
	n.t.Helper()
	if seen, err := ask(from, to); err != nil {
		n.t.Fatalf("%s: %s, from %s to %v: %v", when, what, from.Name, to, err)
	} else if !slices.Contains(want, seen) {
		n.t.Errorf("%s: %s, from %s to %v, is seen as %v; want %v", when, what, from.Name, to, seen, want)
	}
}

// goesOut checks that a container reaches who has no way back to it.
func (n *dockerNet) goesOut(when string, from *dockerContainer) {
	n.t.Helper()
	if _, err := from.Ping(n.outside.Addr(), lab.Echo{Timeout: askTime}); err != nil {
		n.t.Fatalf("%s: %v", when, err)
	}
	if seen, err := lab.SourceSeen(from, n.outside, n.outside.Addr()); err != nil {
		n.t.Fatalf("%s: %v to the outside: %v", when, from, err)
	} else if seen != from.On.Addr() {
		n.t.Errorf("%s: %v to the outside is seen as %v; want %v", when, from, seen, from.On.Addr())
	}
}

// talk has a program in a container, and not just the lab in a container's
// namespace, reach one on another host.
func (n *dockerNet) talk() {
	n.t.Helper()
	to := n.containers[len(n.containers)-1]
	out, err := n.hosts[0].Docker("run", "--rm", "box", "/busybox", "sh", "-c",
		`/busybox hostname -i && /busybox ping -c 1 -W 20 "$0" >/dev/null && /busybox nc -w 20 "$0" "$1" </dev/null`, to.Addr().String(), fmt.Sprint(serverPort))
	n.c.Must(err)
	own, peer, _ := strings.Cut(out, "\n")
	if seen, err := parsePeer(peer); err != nil || seen.String() != own {
		n.t.Errorf("nc in a container with the address %s is seen by %v as %v, %v", own, to, seen, err)
	}
}

// Real dockerd with each backend, with masquerading by flanneld and by dockerd,
// and from the first start through restarts of both. What else operators choose
// is spread over that.
func TestDocker(t *testing.T) {
	const liveRestore, noProxy = "--live-restore", "--userland-proxy=false"
	for _, test := range []struct {
		name, backend string
		hosts         int
		masq, legacy  bool
		options       []string // of dockerd
	}{
		{"vxlan", `{"Type": "vxlan"}`, 2, false, false, []string{liveRestore, noProxy}},
		{"vxlan", `{"Type": "vxlan"}`, 2, true, false, nil},
		{"vxlan legacy", `{"Type": "vxlan"}`, 2, true, true, []string{noProxy}},
		{"DirectRouting", `{"Type": "vxlan", "DirectRouting": true}`, 3, false, false, nil},
		{"DirectRouting", `{"Type": "vxlan", "DirectRouting": true}`, 3, true, false, []string{liveRestore, noProxy}},
		{"host-gw", `{"Type": "host-gw"}`, 2, false, false, []string{liveRestore}},
		{"host-gw", `{"Type": "host-gw"}`, 2, true, false, []string{noProxy}},
		{"udp", `{"Type": "udp"}`, 2, false, false, []string{noProxy}},
		{"udp", `{"Type": "udp"}`, 2, true, false, []string{liveRestore}},
		{"udp legacy", `{"Type": "udp"}`, 2, false, true, nil},
	} {
		t.Run(fmt.Sprintf("%s masq=%t", test.name, test.masq), func(t *testing.T) {
			n := newDockerNet(t, test.backend, test.masq, test.hosts, test.options...)
			if test.legacy {
				for _, h := range n.hosts {
					h.UseLegacy()
				}
			}
			n.StartFlanneld()
			for _, h := range n.hosts {
				// dockerd sets FORWARD's policy to DROP if it is the first to turn
				// forwarding on. Here flanneld was before it, but on many a host
				// dockerd has run before flanneld came.
				h.Sysctl("net.ipv4.ip_forward", "0")
			}
			n.StartDockerd()
			n.RunContainers()
			n.Check("at first")
			n.talk()

			streams := n.Streams()
			n.RestartFlanneld("SIGTERM", func(h *dockerHost) { h.Stop() }, streams)
			n.RestartFlanneld("SIGKILL", func(h *dockerHost) { h.Daemon.Kill() }, streams)
			if slices.Contains(test.options, liveRestore) {
				pid := n.containers[0].pid
				n.StopDockerd()
				n.flows("without dockerd", streams)
				n.StartDockerd()
				n.FindContainers()
				n.flows("with dockerd again", streams)
				if n.containers[0].pid != pid {
					t.Error("the containers have not outlived dockerd, in spite of --live-restore")
				}
			}
			for _, s := range streams {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
			if !slices.Contains(test.options, liveRestore) {
				// As operators do who want to begin anew. dockerd puts all its
				// rules in front of what it finds.
				n.StopDockerd()
				for _, h := range n.hosts {
					h.IPTables("-t", "nat", "-F")
					h.IPTables("-F")
				}
				n.StartDockerd()
				n.FindContainers()
			}
			n.Check("after a restart of dockerd")

			for _, h := range n.hosts {
				other := map[bool]string{false: "iptables-legacy-save", true: "iptables-nft-save"}[test.legacy]
				if out := h.Run("chroot", h.root, other); strings.Contains(out, "FLANNEL") || strings.Contains(out, "DOCKER") {
					t.Errorf("%v has rules of the other iptables as well:\n%s", h, out)
				}
			}
		})
	}
}

// A host on which dockerd has run before flanneld came: its docker0 goes, its
// policy stays.
func TestDockerFirst(t *testing.T) {
	n := newDockerNet(t, `{"Type": "vxlan"}`, false, 2)
	for _, h := range n.hosts {
		h.StartDockerd()
	}
	for _, h := range n.hosts {
		h.AwaitDockerd()
	}
	n.StartFlanneld()
	for _, h := range n.hosts {
		if out := h.Run("ip", "-4", "addr", "show", "docker0"); !strings.Contains(out, "inet 172.17.0.1/16") {
			t.Errorf("%v has another docker0 than dockerd makes by itself:\n%s", h, out)
		}
	}
	n.StopDockerd()
	for _, h := range n.hosts {
		h.Run("sh", h.script("remove-docker0.sh"), "-f", h.SubnetFile())
		if out, err := h.Exec("ip", "link", "show", "docker0"); err == nil {
			t.Errorf("%v still has the docker0 of before:\n%s", h, out)
		}
	}
	n.StartDockerd()
	n.RunContainers()
	n.Check("with the subnet of flanneld")
}
