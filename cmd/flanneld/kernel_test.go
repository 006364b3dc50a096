package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// healing is the bound for what somebody has changed in the kernel by hand.
const healing = 2 * time.Second

// An auditor compares all that a host's kernel has with all that it ought to
// have: what was there before flanneld ever ran, and what README.md promises
// for the leases there are. It knows nothing of how flanneld works that out, and
// reads the leases from etcd itself.
type auditor struct {
	c *cluster.Cluster
	h *cluster.Node
	// others are the lines of what is not flanneld's.
	others []string
	// config is the network config that flanneld was started with.
	config string
	// blind is why a line is left out of the comparison, on both sides.
	blind *regexp.Regexp
}

// audit begins an audit of a host that flanneld has not run on yet.
func audit(c *cluster.Cluster, h *cluster.Node) *auditor {
	c.Helper()
	a := &auditor{c: c, h: h}
	var err error
	a.others, err = a.dump()
	c.Must(err)
	return a
}

// configure writes the network config, for a flanneld that is started next.
func (a *auditor) configure(config string) {
	a.c.Helper()
	a.config = config
	a.c.SetConfig(config)
}

// add and drop say that the host itself has another line, or no longer has one.
func (a *auditor) add(lines ...string) { a.others = append(a.others, lines...) }

func (a *auditor) drop(line string) {
	a.c.Helper()
	i := slices.Index(a.others, line)
	if i < 0 {
		a.c.Fatalf("no line %q is known of the host", line)
	}
	a.others = slices.Delete(a.others, i, i+1)
}

// check compares, now.
func (a *auditor) check() error {
	a.c.Helper()
	want, err := a.wanted(a.c.Leases())
	if err != nil {
		return err
	}
	return a.compare(want)
}

// compare is check with lines that the caller has from wanted.
func (a *auditor) compare(want []string) error {
	have, err := a.dump()
	if err != nil {
		return err
	}
	if a.blind != nil {
		dark := func(line string) bool { return a.blind.MatchString(line) }
		want, have = slices.DeleteFunc(slices.Clone(want), dark), slices.DeleteFunc(have, dark)
	}
	slices.Sort(have)
	slices.Sort(want)
	if d := difference(want, have); d != "" {
		return fmt.Errorf("the kernel of %v is not what the leases say: -missing +too much\n%s", a.h, d)
	}
	return nil
}

// await waits until kernel and leases agree.
func (a *auditor) await(t *testing.T, within time.Duration, what string) {
	t.Helper()
	lab.Eventually(t, within, what, a.check)
}

// ready starts flanneld, and has kernel and leases agree at READY, not later.
func (a *auditor) ready(t *testing.T, what string, args ...string) {
	t.Helper()
	a.h.Start(args...)
	a.h.AwaitReady()
	if err := a.check(); err != nil {
		t.Fatalf("%s: at READY: %v", what, err)
	}
}

// difference lists the lines that only one of two sorted lists has.
func difference(want, have []string) string {
	var b strings.Builder
	for len(want) > 0 || len(have) > 0 {
		switch {
		case len(have) == 0 || len(want) > 0 && want[0] < have[0]:
			fmt.Fprintf(&b, "- %s\n", want[0])
			want = want[1:]
		case len(want) == 0 || have[0] < want[0]:
			fmt.Fprintf(&b, "+ %s\n", have[0])
			have = have[1:]
		default:
			want, have = want[1:], have[1:]
		}
	}
	return b.String()
}

// netConfig is the network config as far as it says what the kernel ought to
// have.
type netConfig struct {
	Network netip.Prefix
	Backend struct {
		Type               string
		VNI, Port, MTU     *int
		GBP, DirectRouting bool
	}
}

func or(p *int, otherwise int) int {
	if p != nil {
		return *p
	}
	return otherwise
}

// leaseValue is the value of a lease.
type leaseValue struct {
	PublicIP    netip.Addr
	BackendType string
	BackendData *leaseData `json:",omitempty"`
}

type leaseData struct{ VtepMAC string }

// wanted are the lines that the kernel ought to have. They are for what
// README.md says of one host in a set of leases; where it is silent, as on two
// hosts with one MAC, they are not to be asked for.
func (a *auditor) wanted(leases map[string]cluster.Lease) ([]string, error) {
	a.c.Helper()
	var nw netConfig
	a.c.Must(json.Unmarshal([]byte(a.config), &nw))
	nw.Network = nw.Network.Masked()
	backend := nw.Backend.Type
	own := a.h.Env().Subnet()
	want := slices.Clone(a.others)
	say := func(format string, args ...any) { want = append(want, fmt.Sprintf(format, args...)) }

	var mine leaseValue
	key := strings.ReplaceAll(own.String(), "/", "-")
	if err := json.Unmarshal([]byte(leases[key].Value), &mine); err != nil || mine.PublicIP != a.h.Addr() || mine.BackendType != backend {
		return nil, fmt.Errorf("%v has the subnet %v in its subnet file, and the lease in etcd is %q", a.h, own, leases[key].Value)
	}
	dev := ""
	switch backend {
	case "udp":
		dev = "flannel0"
		say("link %s up mtu %d - tun", dev, 1500-28)
		say("route %v dev %s proto 102 scope link", nw.Network, dev)
	case "vxlan":
		vni := or(nw.Backend.VNI, 1)
		dev = fmt.Sprintf("flannel.%d", vni)
		gbp := ""
		if nw.Backend.GBP {
			gbp = " gbp"
		}
		// The MAC that peers are told is the one it has.
		say("link %s up mtu %d %s vxlan id %d local %v dev eth0 dstport %d nolearning udpcsum%s",
			dev, or(nw.Backend.MTU, 1500)-50, mine.BackendData.VtepMAC, vni, a.h.Addr(), or(nw.Backend.Port, 8472), gbp)
	}
	if dev != "" {
		say("addr %s %v/32", dev, own.Addr())
	}

	found := map[string]bool{} // MACs in the FDB
	for key, l := range leases {
		p, err := netip.ParsePrefix(strings.Replace(key, "-", "/", 1))
		if err != nil || p == own || !nw.Network.Contains(p.Addr()) {
			continue
		}
		var v leaseValue
		if json.Unmarshal([]byte(l.Value), &v) != nil || v.BackendType != backend || v.PublicIP == a.h.Addr() {
			continue
		}
		switch direct := a.onLink(v.PublicIP); {
		case backend == "udp":
		case direct && (backend == "host-gw" || nw.Backend.DirectRouting):
			say("route %v via %v dev eth0 proto 102", p, v.PublicIP)
		case backend == "vxlan" && v.BackendData != nil:
			mac := v.BackendData.VtepMAC
			say("route %v via %v dev %s proto 102 onlink", p, p.Addr(), dev)
			say("neigh %v dev %s lladdr %s PERMANENT", p.Addr(), dev, mac)
			if !found[mac] { // a host with two subnets has one VTEP
				found[mac] = true
				say("fdb %s dev %s dst %v self permanent", mac, dev, v.PublicIP)
			}
		}
	}
	return want, nil
}

// onLink reports whether the host's own routes lead to an address without a
// gateway in between.
func (a *auditor) onLink(addr netip.Addr) bool {
	longest, direct := -1, false
	for _, line := range a.others {
		f := strings.Fields(strings.Replace(line, "route default ", "route 0.0.0.0/0 ", 1))
		if f[0] != "route" || strings.Contains(line, " table ") {
			continue
		}
		if f[1] == "blackhole" {
			f = f[1:]
		}
		if !strings.Contains(f[1], "/") {
			f[1] += "/32"
		}
		if p, err := netip.ParsePrefix(f[1]); err == nil && p.Contains(addr) && p.Bits() > longest {
			longest, direct = p.Bits(), strings.Contains(line, " dev eth0") && !strings.Contains(line, " via ")
		}
	}
	return direct
}

// everything lists what dump reads, in one go so as not to start six commands.
const everything = `set -e
ip -d -o link; echo ==
ip -4 -o addr; echo ==
ip -4 route show table all; echo ==
ip -4 neigh show nud permanent; echo ==
bridge fdb; echo ==
ip nexthop`

var (
	// What is said of a VXLAN device, as far as flanneld decides on it.
	vxlanFacts = regexp.MustCompile(`vxlan id \d+ |remote \S+|local \S+|dev \S+|dstport \d+|nolearning|gbp|udp6?csum|external|proxy|rsc|l[23]miss`)
	// lo, and what the lab makes for containers.
	notJudged = regexp.MustCompile(`^(lo|docker0|veth-.*)$`)
	marked    = regexp.MustCompile(` proto 102\b`)
	usesHop   = regexp.MustCompile(`\bnhid (\d+) `)
)

// dump is what the kernel has, in the words of ip and bridge, whoever it belongs
// to: devices, their IPv4 addresses, routes of all tables, permanent neighbours,
// FDB, and next-hop objects. How a route of flanneld's gets at its next hop is
// left out, so is a next-hop object of flanneld's that a route of its uses.
func (a *auditor) dump() ([]string, error) {
	text, err := a.h.Exec("sh", "-c", everything)
	if err != nil {
		return nil, err // something has gone while it was listed
	}
	parts := strings.Split(text, "==")
	if len(parts) != 6 {
		return nil, fmt.Errorf("%d lists instead of 6:\n%s", len(parts), text)
	}
	var all []string
	each := func(i int, f func(line string, words []string)) {
		for line := range strings.Lines(parts[i]) {
			if words := strings.Fields(line); len(words) > 0 {
				f(strings.Join(words, " "), words)
			}
		}
	}
	after := func(words []string, name string) string {
		if i := slices.Index(words, name); i >= 0 && i+1 < len(words) {
			return words[i+1]
		}
		return "-"
	}
	each(0, func(line string, words []string) {
		name, _, _ := strings.Cut(strings.TrimSuffix(words[1], ":"), "@")
		if notJudged.MatchString(name) {
			return
		}
		up := "down"
		if slices.Contains(strings.Split(strings.Trim(words[2], "<>"), ","), "UP") {
			up = "up"
		}
		facts := []string{"link", name, up, "mtu", after(words, "mtu"), after(words, "link/ether")}
		if _, vxlan, ok := strings.Cut(line, " vxlan id "); ok {
			facts = append(facts, vxlanFacts.FindAllString("vxlan id "+vxlan, -1)...)
		} else if strings.Contains(line, " tun type tun ") {
			facts = append(facts, "tun")
		}
		all = append(all, strings.Join(strings.Fields(strings.Join(facts, " ")), " "))
	})
	each(1, func(line string, words []string) {
		if notJudged.MatchString(words[1]) {
			return
		}
		text := "addr " + words[1] + " " + words[3]
		if words[4] == "peer" {
			text += " peer " + words[5]
		}
		all = append(all, text)
	})
	used := map[string]bool{}
	each(2, func(line string, words []string) {
		if strings.Contains(line, " table local ") || notJudged.MatchString(after(words, "dev")) {
			return
		}
		if marked.MatchString(line) {
			if hop := usesHop.FindStringSubmatch(line); hop != nil {
				used[hop[1]] = true
			}
			line = cluster.WithoutNextHopIDs(line)
		}
		all = append(all, "route "+line)
	})
	each(3, func(line string, words []string) {
		if !notJudged.MatchString(after(words, "dev")) {
			all = append(all, "neigh "+line)
		}
	})
	each(4, func(line string, words []string) {
		// Multicast addresses that somebody has joined are on each device.
		if dev := after(words, "dev"); dev != "eth0" && !notJudged.MatchString(dev) {
			all = append(all, "fdb "+line)
		}
	})
	each(5, func(line string, words []string) {
		if !marked.MatchString(line) || !used[after(words, "id")] {
			all = append(all, "nexthop "+line)
		}
	})
	return all, nil
}

// fake is a host that is there in etcd only, which is all a kernel's state
// depends on.
type fake struct {
	ip  string
	mac int
}

const (
	near = "172.30.0." // addresses on the segment of the hosts
	far  = "172.31.0." // behind the router
)

// put writes the fake's lease of 10.1.<n>.0/24 for a backend.
func (f fake) put(c *cluster.Cluster, backend string, n int) {
	c.Helper()
	c.PutLease(fakeKey(n), f.value(c, backend), time.Hour)
}

func fakeKey(n int) string { return fmt.Sprintf("10.1.%d.0-24", n) }

func (f fake) value(c *cluster.Cluster, backend string) string {
	c.Helper()
	v := leaseValue{PublicIP: netip.MustParseAddr(f.ip), BackendType: backend}
	if backend == "vxlan" {
		v.BackendData = &leaseData{fmt.Sprintf("02:00:00:00:%02x:%02x", f.mac>>8, f.mac&0xff)}
	}
	text, err := json.Marshal(v)
	c.Must(err)
	return string(text)
}

// fakes are some hosts by the number of their subnet, some on the segment and
// some not.
func fakes() map[int]fake {
	return map[int]fake{
		11: {near + "111", 11}, 12: {near + "112", 12}, 13: {near + "113", 13},
		14: {far + "14", 14}, 15: {far + "15", 15}, 16: {far + "16", 16},
	}
}

func putFakes(c *cluster.Cluster, backend string, all map[int]fake) {
	c.Helper()
	for n, f := range all {
		f.put(c, backend, n)
	}
}

// configOf is a network config with this Backend object. No host gets a subnet
// by chance that a test has put something else into.
func configOf(backend string) string {
	return fmt.Sprintf(`{"Network": "10.1.0.0/16", "SubnetMax": "10.1.99.0", "Backend": %s}`, backend)
}

// typeOf is the Type in such a Backend object.
func typeOf(backend string) string {
	_, rest, _ := strings.Cut(backend, `"Type": "`)
	typ, _, _ := strings.Cut(rest, `"`)
	return typ
}

// awaitHealthz waits until /healthz, of a flanneld started with
// --healthz-port=2401, answers with a status and a line for each of the texts.
func awaitHealthz(t *testing.T, h *cluster.Node, status int, texts ...string) {
	t.Helper()
	lab.Eventually(t, healing, "healthz", func() error {
		body, got, err := getHealthz(h)
		if err != nil {
			return err
		}
		all := strings.Split(strings.TrimSpace(body), "\n")
		wrong := got != status || len(all) != len(texts)
		for _, text := range texts {
			wrong = wrong || !slices.ContainsFunc(all, func(line string) bool { return strings.Contains(line, text) })
		}
		if wrong {
			return fmt.Errorf("got %d and\n%s\nwant %d and a line for each of %q", got, body, status, texts)
		}
		return nil
	})
}

func getHealthz(h *cluster.Node) (body string, status int, err error) {
	resp, err := h.HTTP().Get("http://127.0.0.1:2401/healthz")
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return string(all), resp.StatusCode, err
}

// sh runs commands of a shell on the host, which have to work.
func sh(h *cluster.Node, script string) { h.Run("sh", "-ec", script) }

// stops are the ways a daemon ends.
var stops = []struct {
	name string
	stop func(*cluster.Node)
}{
	{"stopped", func(h *cluster.Node) { h.Stop() }},
	{"killed", func(h *cluster.Node) { h.Daemon.Kill() }},
}

// needTUN skips a test of the udp backend where it cannot work.
func needTUN(t *testing.T, backend string) {
	t.Helper()
	if strings.Contains(backend, "udp") {
		if err := lab.TUN(); err != nil {
			t.Skip(err)
		}
	}
}

// The auditor is of use only if it sees what is wrong: here each kind of line
// is too much, then missing.
func TestAuditor(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	a := audit(c, h)
	sees := func(script string, want ...string) {
		t.Helper()
		sh(h, script)
		err := a.compare(slices.Clone(a.others))
		if err == nil {
			t.Fatalf("after %q nothing is seen", script)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("after %q there is no %q in: %v", script, w, err)
			}
		}
		a.others, err = a.dump()
		c.Must(err)
		if err := a.compare(slices.Clone(a.others)); err != nil {
			t.Error(err)
		}
	}
	sees("ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dev eth0 dstport 8472 nolearning", "+ link flannel.1 down mtu 1450 02:00:00:00:00:01 vxlan id 1 dev eth0 dstport 8472 nolearning")
	sees("ip link set flannel.1 up", "+ link flannel.1 up", "- link flannel.1 down")
	sees("ip addr add 10.1.1.0/32 dev flannel.1", "+ addr flannel.1 10.1.1.0/32\n")
	sees("ip route add 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink proto 102", "+ route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 proto 102 onlink\n")
	sees("ip route add 10.1.2.0/24 via 172.30.0.1 table 100 proto 102", "+ route 10.1.2.0/24 via 172.30.0.1 dev eth0 table 100 proto 102\n")
	sees("ip neigh add 10.1.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent", "+ neigh 10.1.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT\n")
	sees("ip neigh replace 10.1.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud reachable", "- neigh 10.1.2.0")
	sees("bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 172.31.0.2", "+ fdb 02:00:00:00:00:02 dev flannel.1 dst 172.31.0.2 self permanent\n")
	sees("bridge fdb del 02:00:00:00:00:02 dev flannel.1", "- fdb 02:00:00:00:00:02")
	sees("ip nexthop add id 5 via 172.30.0.1 dev eth0 proto 102", "+ nexthop id 5")
	// A next-hop object in use is no line of its own.
	sees("ip route add 10.1.3.0/24 nhid 5 proto 102", "+ route 10.1.3.0/24 via 172.30.0.1 dev eth0 proto 102\n", "- nexthop id 5")
	sees("ip nexthop add id 7 via 172.30.0.1 dev eth0; ip route add 10.1.4.0/24 nhid 7 proto static", "+ nexthop id 7", "+ route 10.1.4.0/24 nhid 7 via 172.30.0.1 dev eth0 proto static\n")
	sees("ip link del flannel.1", "- link flannel.1", "- addr flannel.1", "- route 10.1.2.0/24 via 10.1.2.0")
	for addr, want := range map[string]bool{near + "9": true, far + "9": false} {
		if got := a.onLink(netip.MustParseAddr(addr)); got != want {
			t.Errorf("onLink(%s) = %v", addr, got)
		}
	}
}
