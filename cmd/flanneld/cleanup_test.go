package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// cleanUp runs flanneld cleanup on a host, under what its daemon is started under,
// and returns what it prints and its exit status.
func cleanUp(h *cluster.Node, args ...string) (text string, status int) {
	p := h.StartProgram(lab.Program{Name: "cleanup", Args: slices.Concat(h.Under, []string{
		lab.Binary("flanneld"), "cleanup", "--subnet-file=" + h.SubnetFile(), "--iface=eth0",
	}, args)})
	status, err := p.Wait(startBound)
	if err != nil {
		text = err.Error()
	}
	return text + p.Log(), status
}

// startBound is for a command on a busy machine.
const startBound = 30 * time.Second

// cleaned runs flanneld cleanup and checks all that it says.
func cleaned(t *testing.T, h *cluster.Node, args []string, status int, want ...string) {
	t.Helper()
	text, got := cleanUp(h, args...)
	if all := strings.Join(append(want, ""), "\n"); text != all || got != status {
		t.Errorf("cleanup %s ends with %d and says\n%swant %d and\n%s", strings.Join(args, " "), got, text, status, all)
	}
}

const (
	nothingThere   = "nothing of flanneld's is on this host"
	forwardingLeft = "left IPv4 forwarding on, as others may need it; sysctl -w net.ipv4.ip_forward=0 turns it off"
)

var ruleCounters = regexp.MustCompile(` \[\d+:\d+\]$`)

// hostDump is all that is on a host, in the words of the tools that show it: links,
// addresses, routes of all tables, next hops, permanent neighbours, FDB, rules of
// both kinds of iptables, files. Tables without a rule count for nothing.
func hostDump(t *testing.T, h *cluster.Node) string {
	t.Helper()
	var b strings.Builder
	for _, command := range []string{
		"ip -o link", "ip -d -o link show type vxlan", "ip -4 -o addr", "ip -4 route show table all", "ip rule", "ip nexthop",
		"ip -4 neigh show nud permanent", "bridge fdb show | grep -v '33:33:\\|01:00:5e:' || true",
	} {
		fmt.Fprintf(&b, "# %s\n", command)
		all := strings.Split(h.Run("sh", "-ec", command), "\n")
		slices.Sort(all)
		for _, line := range all {
			fmt.Fprintln(&b, strings.TrimSpace(line))
		}
	}
	for _, kind := range []string{"iptables-nft-save", "iptables-legacy-save"} {
		if kind == "iptables-legacy-save" && h.Run("cat", "/proc/net/ip_tables_names") == "" {
			continue // asking would make its tables
		}
		for _, table := range strings.Split(h.Run(kind), "COMMIT") {
			var lines []string
			some := false
			for line := range strings.Lines(table) {
				line = ruleCounters.ReplaceAllString(strings.TrimSpace(line), "")
				if line == "" || line[0] == '#' {
					continue
				}
				some = some || line[0] == '-' || line[0] == ':' && !strings.HasSuffix(line, " ACCEPT")
				lines = append(lines, line)
			}
			if some {
				fmt.Fprintf(&b, "# %s\n%s\n", kind, strings.Join(lines, "\n"))
			}
		}
	}
	files, err := os.ReadDir(h.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".log") && !strings.HasSuffix(f.Name(), ".notify") {
			fmt.Fprintf(&b, "file %s\n", f.Name())
		}
	}
	return b.String()
}

// sameDump compares two dumps and shows the lines that differ.
func sameDump(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	less := func(a, b string) (rest []string) {
		there := strings.Split(b, "\n")
		for line := range strings.Lines(a) {
			if line = strings.TrimSpace(line); !slices.Contains(there, line) {
				rest = append(rest, line)
			}
		}
		return rest
	}
	t.Errorf("%s, there is more on the host:\n%s\nand less:\n%s", what, strings.Join(less(got, want), "\n"), strings.Join(less(want, got), "\n"))
}

// useIPTables has what is started on a host next find this kind of iptables, and the
// other beside it.
func useIPTables(t *testing.T, h *cluster.Node, program string) {
	t.Helper()
	dir := t.TempDir()
	link := func(name, to string) {
		path, err := exec.LookPath(to)
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, suffix := range []string{"", "-restore"} {
		link("iptables"+suffix, program+suffix)
		link("iptables-nft"+suffix, "iptables-nft"+suffix)
		link("iptables-legacy"+suffix, "iptables-legacy"+suffix)
	}
	h.Under = []string{"env", "PATH=" + dir + ":" + os.Getenv("PATH")}
}

// Whatever the backend, after cleanup the host is as it was before flanneld was
// first started on it, with all that is of others; but for IPv4 forwarding. The dry
// run says the same and changes nothing, and the second run does nothing.
func TestCleanup(t *testing.T) {
	iptablesKinds(t, func(t *testing.T, program string) {
		for _, nw := range kinds {
			t.Run(nw.name, func(t *testing.T) {
				needTUN(t, nw.name)
				c, s := newCluster(t)
				c.SetConfig(configOf(nw.config))
				h := c.Node("h1", s)
				useIPTables(t, h, program)
				sh(h, "ip link add docker0 type bridge; ip addr add 10.1.60.1/24 dev docker0; ip link set docker0 up")
				sh(h, strings.ReplaceAll(foreignThings, "iptables ", program+" "))
				sh(h, "ip route del 10.1.242.0/24") // it might be an older daemon's, see TestCleanupOlder
				putFakes(c, typeOf(nw.config), fakes())
				before := hostDump(t, h)
				for i, args := range [][]string{nil, {"--ip-masq"}, {"--iptables-forward-rules=false"}} {
					h.Start(append(args, "--iptables-resync=1")...)
					h.AwaitReady()
					c.Must(h.Daemon.WaitLog("iptables: put right", mending))
					stops[i%len(stops)].stop(h)
					what := fmt.Sprintf("after a flanneld with %q was %s", args, stops[i%len(stops)].name)

					if nw.dev == "flannel0" { // the kernel takes its time to say so
						lab.Eventually(t, within, "flannel0 without a daemon", func() error {
							if link := h.Run("ip", "link", "show", "flannel0"); !strings.Contains(link, "state DOWN") {
								return errors.New(link)
							}
							return nil
						})
					}
					running := hostDump(t, h)
					dry, status := cleanUp(h, "--dry-run")
					if status != exitOK {
						t.Fatalf("%s: the dry run ends with %d: %s", what, status, dry)
					}
					sameDump(t, what+" and the dry run", hostDump(t, h), running)
					said, status := cleanUp(h)
					if status != exitOK || said != strings.ReplaceAll(dry, "dry run: ", "") {
						t.Errorf("%s: it ends with %d and says\n%sand the dry run said\n%s", what, status, said, dry)
					}
					for _, part := range []string{"iptables: nat: took out chain FLANNEL-POSTRTG and the jumps to it", "removed the file " + h.SubnetFile(), forwardingLeft} {
						if strings.Count(said, part+"\n") != 1 {
							t.Errorf("%s: it does not say %q once:\n%s", what, part, said)
						}
					}
					sameDump(t, what, hostDump(t, h), before)
					cleaned(t, h, nil, exitOK, nothingThere)
					sameDump(t, what+" and cleaned twice", hostDump(t, h), before)
				}
			})
		}
	})
}

// An older daemon has left devices of several kinds and VNIs, its rules in both kinds
// of iptables, and routes that nothing marks but the leases. Rules are found by the
// subnet file, and without it by what they say themselves.
func TestCleanupOlder(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "host-gw"}`))
	putFakes(c, "host-gw", fakes())
	for i, with := range []string{"the subnet file", "the chains of a newer daemon", "the masquerading rules", "the config in etcd"} {
		t.Run(with, func(t *testing.T) {
			h := c.Node(fmt.Sprintf("h%d", i), s)
			useIPTables(t, h, []string{"iptables-nft", "iptables-legacy"}[i%2])
			// As an operator has them, who cares for just one direction.
			sh(h, foreignThings+`
				iptables-nft -A FORWARD -s 10.1.0.0/16 -j ACCEPT
				iptables-nft -A FORWARD -d 10.7.0.0/16 -j ACCEPT
				iptables-legacy -A FORWARD -s 10.7.0.0/16 -j ACCEPT
				iptables-legacy -A FORWARD -d 10.7.0.0/16 -j ACCEPT
				iptables-legacy -t nat -A POSTROUTING -s 10.7.0.0/16 -d 10.7.0.0/16 -j RETURN`)
			before := hostDump(t, h)

			sh(h, `
				ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning
				ip link add flannel.42 type vxlan id 42 dev eth0 dstport 8472 nolearning
				ip link set flannel.1 up
				ip addr add 10.1.1.0/32 dev flannel.1
				ip route add 10.1.13.0/24 via 10.1.13.0 dev flannel.1 onlink
				ip neigh add 10.1.13.0 lladdr 02:00:00:00:00:0d dev flannel.1 nud permanent
				ip route add 10.1.11.0/24 via 172.30.0.111
				ip route add 10.1.12.0/24 via 172.30.0.112`)
			if lab.TUN() == nil {
				sh(h, "ip tuntap add flannel0 mode tun; ip link set flannel0 up; ip route add 10.1.0.0/16 dev flannel0")
			}
			var args []string
			for _, rule := range oldRules("10.1.0.0/16", "10.1.1.0/24") {
				if with != "the masquerading rules" && strings.Contains(rule, "RETURN") {
					continue // what is left of them tells nothing by itself
				}
				sh(h, "iptables-nft "+rule+"; iptables-legacy "+rule)
			}
			const file = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
			byLeases := []string{"--etcd-endpoints=" + strings.Join(c.Endpoints(), ",")}
			switch with {
			case "the subnet file":
				c.Must(writeFile(h.SubnetFile(), file))
			case "the chains of a newer daemon":
				sh(h, "iptables-nft -N FLANNEL-FWD; iptables-nft -A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT; iptables-nft -A FLANNEL-FWD -d 10.1.0.0/16 -j ACCEPT; iptables-nft -A FORWARD -j FLANNEL-FWD")
			case "the config in etcd":
				args = byLeases
			}

			left := hostDump(t, h)
			dry, _ := cleanUp(h, append([]string{"--dry-run"}, args...)...)
			sameDump(t, "after the dry run", hostDump(t, h), left)
			said, status := cleanUp(h, args...)
			if status != exitOK || said != strings.ReplaceAll(dry, "dry run: ", "") {
				t.Errorf("it ends with %d and says\n%sand the dry run said\n%s", status, said, dry)
			}
			if args == nil {
				const route = "left the route 10.1.11.0/24 via 172.30.0.111 dev eth0 and 2 more into the network, which bears no mark: with --etcd-endpoints the leases tell whether an older daemon made it"
				if !strings.Contains(said, route+"\n") {
					t.Errorf("it does not say\n%s\nbut\n%s", route, said)
				}
				byThem := []string{
					"removed the route 10.1.11.0/24 via 172.30.0.111 dev eth0", "removed the route 10.1.12.0/24 via 172.30.0.112 dev eth0",
					"left the route 10.1.242.0/24 via 172.30.0.1 dev eth0, which bears no mark: no lease is reached that way",
				}
				if with == "the subnet file" { // which stays for that
					cleaned(t, h, nil, exitOK, route, "left "+h.SubnetFile()+", as the next run needs it to tell what is flannel's")
					byThem = append(byThem, "removed the file "+h.SubnetFile())
				}
				cleaned(t, h, byLeases, exitOK, byThem...)
				cleaned(t, h, byLeases, exitOK, byThem[2])
			}
			sameDump(t, "after cleanup", hostDump(t, h), before)
		})
	}
}

// Beside a daemon of this host cleanup is refused, beside that of another host it is
// not. --force has its way, for as long as the daemon lets it.
func TestCleanupBesideDaemon(t *testing.T) {
	for _, backend := range leaseBackends {
		t.Run(backend, func(t *testing.T) {
			needTUN(t, backend)
			c, s := newCluster(t)
			c.SetConfig(configOf(backend))
			putFakes(c, typeOf(backend), fakes())
			h, other := c.Node("h1", s), c.Node("h2", s)
			h.Start("--iptables-resync=1")
			h.AwaitReady()
			c.Must(h.Daemon.WaitLog("iptables: put right", mending))
			cleaned(t, other, nil, exitOK, nothingThere)

			before := hostDump(t, h)
			cleaned(t, h, nil, exitFailure, fmt.Sprintf(
				"flanneld cleanup: flanneld runs on this host as process %d: stop it first (systemctl stop flanneld), or clean beneath it with --force", h.Daemon.Pid))
			sameDump(t, "after it was refused", hostDump(t, h), before)
			if text, status := cleanUp(h, "--dry-run"); status != exitOK || !strings.HasPrefix(text, fmt.Sprintf("dry run: flanneld runs on this host as process %d: stop it first\n", h.Daemon.Pid)) {
				t.Errorf("the dry run ends with %d and says\n%s", status, text)
			}
			// The daemon writes its files when it starts, and not again when they go.
			left := fmt.Sprintf("left %[1]s and %[1]s.lease, which the daemon that runs would not write again\n", h.SubnetFile())
			if text, status := cleanUp(h, "--dry-run", "--force"); status != exitOK || !strings.Contains(text, "dry run: "+left) {
				t.Errorf("the dry run with --force ends with %d and says\n%s", status, text)
			}
			if text, status := cleanUp(h, "--force"); status != exitOK || !strings.Contains(text, left) {
				t.Errorf("with --force it ends with %d and says\n%s", status, text)
			}
			for _, file := range []string{h.SubnetFile(), h.SubnetFile() + ".lease"} {
				if _, err := os.Stat(file); err != nil {
					t.Errorf("beneath a daemon: %v", err)
				}
			}
			routes := func() int { return strings.Count(h.Routes(), "proto 102") }
			lab.Eventually(t, mending, "the daemon puts its routes back", func() error {
				if routes() == 0 {
					return errors.New(h.Routes())
				}
				return nil
			})
			h.Stop()
			if text, status := cleanUp(h); status != exitOK || routes() > 0 || !strings.Contains(text, "removed the file "+h.SubnetFile()+"\n") {
				t.Errorf("it ends with %d and leaves %d routes, and says\n%s", status, routes(), text)
			}
		})
	}
}

// A daemon of another version has no socket, but a name; a command has that name too.
func TestCleanupBesideOlderDaemon(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	older := filepath.Join(t.TempDir(), "flanneld")
	c.Must(os.WriteFile(older, []byte("#!/bin/sh\nwhile :; do sleep 1; done\n"), 0o755))
	p := h.Host.Start("older", older, "-etcd-endpoints=http://10.0.0.1:2379", "-iface=eth0")
	cleaned(t, h, nil, exitFailure, fmt.Sprintf(
		"flanneld cleanup: flanneld runs on this host as process %d: stop it first (systemctl stop flanneld), or clean beneath it with --force", p.Pid))
	p.Kill()
	cleaned(t, h, nil, exitOK, nothingThere)

	door := c.Etcd.Door(h.Host, 4001)
	defer door.Close()
	door.Set(lab.DoorSlow)
	command := h.StartProgram(lab.Program{Name: "command", Args: []string{lab.Binary("flanneld"), "cleanup", "--etcd-endpoints=" + door.Endpoint(), "--subnet-file=" + h.SubnetFile()}})
	lab.Eventually(t, mending, "a command at work", func() error {
		if door.Requests() == 0 {
			return errors.New("it has asked nothing")
		}
		return nil
	})
	command.Pause()
	cleaned(t, h, nil, exitOK, nothingThere)
	command.Kill()
}

// Of the leases just this host's own goes, and when etcd is away the next run
// makes up for it.
func TestCleanupReleaseLease(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "host-gw"}`))
	h, other := c.Node("h1", s), c.Node("h2", s)
	for i, n := range []*cluster.Node{h, other} {
		reserve(c, n, i+1)
		n.Start()
		n.AwaitReady()
	}
	own := fakeKey(1)
	h.Stop()
	bare := func(ip string) string { return fmt.Sprintf(`{"PublicIP": "%s"}`, ip) }
	c.PutLease(fakeKey(20), bare("172.30.0.20"), time.Hour)
	c.PutLease(fakeKey(21), "rubbish", time.Hour)
	c.PutLease(fakeKey(22), bare(h.Addr().String()), time.Hour) // from when the config was another
	c.PutLease(fakeKey(23), bare(h.Addr().String()), 0)
	all := leaseList(c)
	without := func(keys ...string) string {
		return strings.Join(slices.DeleteFunc(strings.Split(all, " "), func(key string) bool { return slices.Contains(keys, key) }), " ")
	}
	leases := func(what, want string) {
		t.Helper()
		if got := leaseList(c); got != want {
			t.Errorf("%s the leases are\n%s\nwant\n%s", what, got, want)
		}
	}
	etcd := "--etcd-endpoints=" + c.Endpoints()[0]
	reservation := fmt.Sprintf("left the reservation %s of this host, which an operator made; etcdctl rm /coreos.com/network/subnets/%[1]s deletes it", fakeKey(23))
	released := func(key string) string {
		return fmt.Sprintf("released the lease %s of this host, %v", key, h.Addr())
	}

	text, status := cleanUp(h, etcd, "--release-lease", "--dry-run")
	if status != exitOK || !strings.Contains(text, "dry run: "+released(own)+"\n") {
		t.Errorf("the dry run ends with %d and says\n%s", status, text)
	}
	leases("after a dry run", all)

	// It is the wrong address, or another host has the subnet by now.
	wrong := c.Node("h3", s)
	c.Must(writeFile(wrong.SubnetFile(), fmt.Sprintf("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=%v\n", other.Env().Gateway)))
	cleaned(t, wrong, []string{etcd, "--release-lease", "--public-ip=172.30.0.20"}, exitFailure, "removed the file "+wrong.SubnetFile(),
		fmt.Sprintf("flanneld cleanup: releasing nothing: %v, this host's subnet by its subnet file, is leased by %v, and this host is 172.30.0.20; if that was this host's address, give --public-ip=%[2]v or the daemon's --iface",
			other.Env().Subnet(), other.Addr()))
	leases("where the subnet file names another's subnet", all)

	c.Etcd.Stop()
	text, status = cleanUp(h, etcd, "--release-lease")
	if status != exitFailure || !strings.Contains(text, "removed the file "+h.SubnetFile()+"\n") || strings.Contains(h.Routes(), "proto 102") ||
		!regexp.MustCompile(`(?m)^flanneld cleanup: .*connection refused.*; a lease of this host stays until it ends or this is run again$`).MatchString(text) {
		t.Errorf("without etcd it ends with %d, routes are\n%s\nand it says\n%s", status, h.Routes(), text)
	}
	c.Etcd.Restart()
	leases("after etcd was away", all)
	cleaned(t, h, []string{etcd, "--release-lease"}, exitOK, nothingThere, released(own), released(fakeKey(22)), reservation)
	leases("afterwards", without(own, fakeKey(22)))
	cleaned(t, h, []string{etcd, "--release-lease"}, exitOK, nothingThere, reservation)
	cleaned(t, wrong, []string{etcd, "--release-lease"}, exitOK, nothingThere, fmt.Sprintf("no lease of this host, %v, is in etcd", wrong.Addr()))
	leases("in the end", without(own, fakeKey(22)))
}

// leaseList is the keys of all leases.
func leaseList(c *cluster.Cluster) string {
	return strings.Join(slices.Sorted(maps.Keys(c.Leases())), " ")
}

// What cannot be done is said and does not keep the rest from being done; what the
// host does not have is not missed.
func TestCleanupHindered(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h := c.Node("h1", s)
	h.Start()
	h.AwaitReady()
	c.Must(h.Daemon.WaitLog("iptables: put right", mending))
	h.Stop()

	before := hostDump(t, h)
	h.Under = []string{"setpriv", "--bounding-set=-net_admin"}
	cleaned(t, h, nil, exitFailure, "flanneld cleanup: this takes the capability NET_ADMIN: run it as root")
	sameDump(t, "without privileges", hostDump(t, h), before)

	d := behindFrontDoor(t, h, "iptables-nft")
	d.set(`case "$*" in *"-t nat"*) echo "out of order" >&2; exit 1;; esac`)
	cleaned(t, h, nil, exitFailure,
		"iptables: filter: took out chain FLANNEL-FWD and the jumps to it", "removed the device flannel.1",
		"left "+h.SubnetFile()+", as the next run needs it to tell what is flannel's", forwardingLeft,
		"flanneld cleanup: taking out the rules of iptables: listing the iptables table nat: iptables: exit status 1: out of order")
	d.set("")
	cleaned(t, h, nil, exitOK, "iptables: nat: took out chain FLANNEL-POSTRTG and the jumps to it",
		"removed the file "+h.SubnetFile(), "removed the file "+h.SubnetFile()+".lease", forwardingLeft)

	h.Under = []string{"unshare", "--mount", "sh", "-c", "for d in /usr/sbin /sbin /usr/local/sbin; do mount -t tmpfs none $d 2>/dev/null; done; PATH=/nowhere exec \"$@\"", "sh"}
	cleaned(t, h, nil, exitOK, "there is no iptables program, and so no rules were looked for", nothingThere)
	c.Must(writeFile(h.SubnetFile(), "FLANNEL_SUBNET=10.1.1.1/24\n"))
	cleaned(t, h, nil, exitOK, "there is no iptables program, and so no rules were looked for", nothingThere)
	if text, err := os.ReadFile(h.SubnetFile()); err != nil || len(text) == 0 {
		t.Errorf("what an operator wrote for the first start is %q, %v", text, err)
	}
	sh(h, fmt.Sprintf("rm %[1]s; mkfifo %[1]s; mkdir %[1]s.lease", h.SubnetFile()))
	before = hostDump(t, h)
	cleaned(t, h, nil, exitOK, "there is no iptables program, and so no rules were looked for", nothingThere)
	sameDump(t, "where no regular files are", hostDump(t, h), before)
	h.Under = []string{"unshare", "--net"} // a host without any route
	cleaned(t, h, nil, exitOK, nothingThere)
	useIPTables(t, h, "iptables-legacy")
	cleaned(t, h, nil, exitOK, nothingThere)
	if tables := h.Run("cat", "/proc/net/ip_tables_names"); tables != "" {
		t.Errorf("to look for rules has made the tables %s", tables)
	}
}
