package kernel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/rtnl"
)

// The tests of this file run the real thing against the real kernel, on a host
// made of a network namespace.
func TestMain(m *testing.M) { lab.Main(m) }

const (
	healing = 2 * time.Second        // bound for what was changed by hand to be put right
	within  = 5 * time.Second        // bound for all else: removing a device takes a busy kernel a second
	quiet   = 150 * time.Millisecond // long enough for several comparisons
)

var (
	testOwner = Owner{Protocol: 102, Device: func(name, kind string) bool {
		return kind == "vxlan" && strings.HasPrefix(name, "flannel.") || kind == "tun" && name == "flannel0"
	}}
	lan = netip.MustParsePrefix("172.16.16.0/24")
)

// newHost is a host 172.16.16.2 with eth0, the router being 172.16.16.1.
func newHost(t *testing.T) *lab.Host {
	t.Helper()
	if err := lab.Tools("ip", "bridge"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	return l.Host("h1", l.Segment("lan", lan))
}

func linkIndex(t *testing.T, h *lab.Host, name string) int {
	t.Helper()
	handle, err := netlink.NewHandleAt(h.NS(), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	l, err := handle.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// vxlanState is a state as a vxlan backend makes it, with the given number of
// peers behind VXLAN and one more, 10.1.100.0/24, on the link of eth0.
func vxlanState(t *testing.T, h *lab.Host, peers int) State {
	s := State{Device: &Device{
		Name: "flannel.1", MTU: 1450, Addr: ip("10.1.1.0"),
		VXLAN: &VXLAN{VNI: 1, Port: 8472, Link: "eth0", Source: h.Addr(), MAC: MAC{2, 0, 0, 0, 0, 1}},
	}}
	for i := 2; i < 2+peers; i++ {
		a, m := netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), MAC{2, 0, 0, 0, 1, byte(i)}
		s.Routes = append(s.Routes, &Route{Dst: netip.PrefixFrom(a, 24), Via: a, Dev: "flannel.1", OnLink: true})
		s.Neighbours = append(s.Neighbours, &Neighbour{IP: a, MAC: m})
		s.FDB = append(s.FDB, &FDBEntry{MAC: m, Dst: netip.AddrFrom4([4]byte{172, 16, 17, byte(i)})})
	}
	s.Routes = append(s.Routes, &Route{Dst: pfx("10.1.100.0/24"), Via: ip("172.16.16.100"), Dev: "eth0"})
	return s
}

// A runner is a Run at work on a host, whose input is the state itself.
type runner struct {
	inputs chan State
	cancel context.CancelFunc
	done   chan error
	hold   chan struct{} // whoever has what is in it keeps Run from going on after a comparison

	mu  sync.Mutex
	all []Comparison // that synced was called with
}

func start(t *testing.T, h *lab.Host) *runner {
	return startPlan(t, h, func(s State, _ Host) (State, []error) { return s, nil })
}

func startPlan(t *testing.T, h *lab.Host, plan Plan[State]) *runner {
	ctx, cancel := context.WithCancel(context.Background())
	r := &runner{inputs: make(chan State, 1), cancel: cancel, done: make(chan error, 1), hold: make(chan struct{}, 1)}
	r.hold <- struct{}{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.done <- h.Do(func() error {
			return Run(ctx, testOwner, r.inputs, plan, func(c Comparison) {
				for _, e := range []Entries{c.Routes, c.Neighbours, c.FDB} {
					if e.Repaired > e.Changed {
						t.Errorf("of %d changes %d are repairs: %+v", e.Changed, e.Repaired, c)
					}
				}
				r.mu.Lock()
				r.all = append(r.all, c)
				r.mu.Unlock()
				r.hold <- <-r.hold
			})
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(within):
			t.Error("Run has not ended with its context")
		}
	})
	return r
}

// pause keeps Run from going on after its next comparison, until release is
// called.
func (r *runner) pause(t *testing.T) (release func()) {
	held := <-r.hold
	release = sync.OnceFunc(func() { r.hold <- held })
	t.Cleanup(release)
	return release
}

// set replaces what Run has not taken yet. It hands over a copy, so that the
// caller may go on with s.
func (r *runner) set(s State) {
	s.Routes, s.Neighbours, s.FDB = slices.Clone(s.Routes), slices.Clone(s.Neighbours), slices.Clone(s.FDB)
	select {
	case <-r.inputs:
	default:
	}
	r.inputs <- s
}

// stop ends Run and returns its error.
func (r *runner) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			t.Fatalf("Run: %v", err)
		}
	case <-time.After(time.Second):
		t.Fatal("Run has not ended within a second")
	}
}

// synced is how often Run has called synced, and with which failures at last.
func (r *runner) synced() (times int, failed []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == 0 {
		return 0, nil
	}
	return len(r.all), r.all[len(r.all)-1].Failed
}

func (r *runner) awaitSynced(t *testing.T) {
	t.Helper()
	lab.Eventually(t, within, "the first comparison without failure", func() error {
		times, failed := r.synced()
		if times == 0 {
			return errors.New("none yet")
		}
		return errors.Join(failed...)
	})
}

var linkFacts = regexp.MustCompile(`vxlan id \d+ |local \S+|dev \S+|dstport \d+|nolearning|gbp|udp6?csum`)

// nextHopID is how ip shows that a route is through a next-hop object; what the
// object says it shows as well.
var nextHopID = regexp.MustCompile(`nhid \d+ `)

// tables shows all there is on the host in the words of ip and bridge: the
// devices other than eth0 and lo, IPv4 routes, permanent neighbours, FDB.
func tables(t *testing.T, h *lab.Host) string {
	t.Helper()
	var lines []string
	field := func(text, name string) string {
		_, rest, _ := strings.Cut(" "+text, " "+name+" ")
		return strings.Fields(rest + " -")[0]
	}
	for _, line := range strings.Split(h.Run("ip", "-d", "-o", "link"), "\n") {
		name := strings.TrimSuffix(strings.Fields(line)[1], ":")
		if name == "lo" || strings.HasPrefix(name, "eth0@") {
			continue
		}
		up := "down"
		if strings.Contains(line, ",UP") {
			up = "up"
		}
		facts := []string{"link", name, up, "mtu", field(line, "mtu"), field(line, "link/ether")}
		if _, vxlan, ok := strings.Cut(line, " vxlan id "); ok {
			facts = append(facts, linkFacts.FindAllString("vxlan id "+vxlan, -1)...)
		}
		lines = append(lines, strings.Join(strings.Fields(strings.Join(facts, " ")), " "))
		addrs, _ := h.Exec("ip", "-4", "-o", "addr", "show", "dev", name) // unless it has gone meanwhile
		for _, addr := range strings.Split(addrs, "\n") {
			if _, rest, ok := strings.Cut(addr, "inet "); ok {
				rest, _, _ = strings.Cut(rest, " scope")
				lines = append(lines, "addr "+name+" "+rest)
			}
		}
	}
	slices.Sort(lines)
	add := func(what, text string, keep func(string) bool) {
		var part []string
		for _, line := range strings.Split(text, "\n") {
			line = strings.Join(strings.Fields(line), " ")
			line = nextHopID.ReplaceAllString(line, "")
			line = strings.Replace(line, "tos lowdelay", "tos 0x10", 1) // its name in older rt_dsfield files
			if line != "" && keep(line) {
				part = append(part, what+" "+line)
			}
		}
		slices.Sort(part)
		lines = append(lines, part...)
	}
	all := func(string) bool { return true }
	add("route", h.Run("ip", "-4", "route"), all)
	add("neigh", h.Run("ip", "-4", "neigh", "show", "nud", "permanent"), all)
	add("fdb", h.Run("bridge", "fdb"), func(line string) bool { return !strings.Contains(line, " dev eth0 ") })
	if used, there := hopIDs(h.Run("ip", "-4", "route")), hopIDs(nextHops(h)); !slices.Equal(used, there) {
		lines = append(lines, fmt.Sprintf("next hops %v, of which routes use %v", there, used))
	}
	return strings.Join(lines, "\n")
}

// nextHops are the next-hop objects of ours.
func nextHops(h *lab.Host) string { return h.Run("ip", "nexthop", "show", "proto", "102") }

// hopIDs are the IDs of next hops that are named in a text.
func hopIDs(text string) []string {
	ids := regexp.MustCompile(`\b(nhid|id) \d+`).FindAllString(text, -1)
	for i := range ids {
		ids[i] = strings.Fields(ids[i])[1]
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

var ownRoutes = []string{
	"default via 172.16.16.1 dev eth0",
	"172.16.16.0/24 dev eth0 proto kernel scope link src 172.16.16.2",
}

// shown is what tables prints when the host has the state, its own two routes,
// and those foreign lines.
func shown(s State, foreign ...string) string {
	var links, routes, neighs, fdb []string
	sortIn := func(line string) {
		switch what, _, _ := strings.Cut(line, " "); what {
		case "link", "addr":
			links = append(links, line)
		case "route":
			routes = append(routes, line)
		case "neigh":
			neighs = append(neighs, line)
		case "fdb":
			fdb = append(fdb, line)
		}
	}
	for _, line := range foreign {
		sortIn(line)
	}
	for _, line := range ownRoutes {
		sortIn("route " + line)
	}
	if d := s.Device; d != nil {
		if v := d.VXLAN; v != nil {
			sortIn(fmt.Sprintf("link %s up mtu %d %v vxlan id %d local %v dev eth0 dstport %d nolearning udpcsum", d.Name, d.MTU, v.MAC, v.VNI, v.Source, v.Port))
			if v.GBP {
				links[len(links)-1] += " gbp"
			}
		} else {
			sortIn(fmt.Sprintf("link %s up mtu %d -", d.Name, d.MTU))
		}
		sortIn(fmt.Sprintf("addr %s %v/32", d.Name, d.Addr))
	}
	for _, r := range s.Routes {
		text := fmt.Sprintf("route %v dev %s proto 102 scope link", r.Dst, r.Dev)
		if r.Via.IsValid() {
			text = fmt.Sprintf("route %v via %v dev %s proto 102", r.Dst, r.Via, r.Dev)
		}
		if r.OnLink {
			text += " onlink"
		}
		sortIn(text)
	}
	for _, n := range s.Neighbours {
		sortIn(fmt.Sprintf("neigh %v dev %s lladdr %v PERMANENT", n.IP, s.Device.Name, n.MAC))
	}
	for _, f := range s.FDB {
		sortIn(fmt.Sprintf("fdb %v dev %s dst %v self permanent", f.MAC, s.Device.Name, f.Dst))
	}
	for _, part := range [][]string{links, routes, neighs, fdb} {
		slices.Sort(part)
	}
	return strings.Join(slices.Concat(links, routes, neighs, fdb), "\n")
}

// await waits until the host has the state and the foreign lines, and no more.
func await(t *testing.T, h *lab.Host, what string, s State, foreign ...string) {
	t.Helper()
	awaitTables(t, h, within, what, shown(s, foreign...))
}

// awaitTables waits until tables prints what is wanted.
func awaitTables(t *testing.T, h *lab.Host, bound time.Duration, what, want string) {
	t.Helper()
	lab.Eventually(t, bound, what, func() error {
		if got := tables(t, h); got != want {
			return fmt.Errorf("got\n%s\nwant\n%s", got, want)
		}
		return nil
	})
}

// A monitor counts what the kernel tells of changes on a host, as `ip monitor`
// prints it: any write, also one that changes nothing.
type monitor struct {
	own     *rtnl.Socket // nothing is written through it; while it is open, nobody else has its port
	notices *rtnl.Notices
	ended   chan struct{}

	mu   sync.Mutex
	seen []string
}

func watchHost(t *testing.T, h *lab.Host) *monitor {
	t.Helper()
	eth0 := linkIndex(t, h, "eth0")
	m := &monitor{ended: make(chan struct{})}
	err := h.Do(func() (err error) {
		if m.own, err = rtnl.Open(); err != nil {
			return err
		}
		m.notices, err = subscribe(m.own)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.ended)
		for {
			err := m.notices.Receive(func(msg rtnl.Message) {
				if n, ok := rtnl.ParseNeighbour(msg.Data); ok && int(n.Link) == eth0 {
					return // ARP
				}
				m.mu.Lock()
				m.seen = append(m.seen, fmt.Sprintf("type %d %x", msg.Type, msg.Data))
				m.mu.Unlock()
			})
			if err != nil && !errors.Is(err, rtnl.ErrMissed) {
				return // closed
			}
		}
	}()
	t.Cleanup(func() {
		m.notices.Interrupt()
		<-m.ended
		m.notices.Close()
		m.own.Close()
	})
	return m
}

func (m *monitor) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.seen)
}

// awaitQuiet waits until nothing has been written for a while.
func (m *monitor) awaitQuiet(t *testing.T) {
	t.Helper()
	count, since := m.count(), time.Now()
	lab.Eventually(t, within, "quiet in the kernel", func() error {
		if now := m.count(); now != count {
			count, since = now, time.Now()
		}
		if time.Since(since) < quiet {
			return fmt.Errorf("%d changes so far, the last being %s", count, m.last())
		}
		return nil
	})
}

func (m *monitor) last() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.seen) == 0 {
		return "none"
	}
	return m.seen[len(m.seen)-1]
}

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// sh runs commands of one shell line on the host.
func sh(h *lab.Host, script string) { h.Run("sh", "-ec", script) }

func TestRunFromNothing(t *testing.T) {
	for _, gbp := range []bool{false, true} {
		t.Run(fmt.Sprintf("gbp=%v", gbp), func(t *testing.T) {
			h := newHost(t)
			s := vxlanState(t, h, 3)
			s.Device.VXLAN.GBP = gbp
			r := start(t, h)
			r.set(s)
			r.awaitSynced(t)
			if got, want := tables(t, h), shown(s); got != want {
				t.Errorf("after the first synced call: got\n%s\nwant\n%s", got, want)
			}
			hops := len(s.Routes)
			if testOwner.plain {
				hops = 0
			}
			if got := hopIDs(nextHops(h)); len(got) != hops {
				t.Errorf("there are the next hops %v, want %d", got, hops)
			}
			m := watchHost(t, h)
			m.awaitQuiet(t)
		})
	}
}

// What an earlier run under another config, and an earlier state of the
// cluster, have left behind goes; what is right stays as it is.
func TestRunFromLeftovers(t *testing.T) {
	const device = "ip link add flannel.1 type vxlan id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning\n"
	const wrongDevice = "ip link add flannel.1 type vxlan "
	for name, script := range map[string]string{
		"other MAC, MTU and address": device + `
			ip link set flannel.1 address 02:00:00:00:00:99 mtu 1400 up
			ip addr add 10.1.7.0/32 dev flannel.1`,
		"wide address": device + `
			ip link set flannel.1 up
			ip addr add 10.1.1.0/16 dev flannel.1`,
		"address with a peer": device + `
			ip link set flannel.1 up
			ip addr add 10.1.1.0 peer 10.9.9.9 dev flannel.1`,
		"stale entries": device + `
			ip link set flannel.1 up
			ip addr add 10.1.1.0/32 dev flannel.1
			ip route add 10.1.2.0/24 via 10.1.9.0 dev flannel.1 onlink proto 102
			ip route add 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink
			ip route add 10.1.4.0/24 via 172.16.16.4 proto 102
			ip route add 10.1.9.0/24 via 10.1.9.0 dev flannel.1 onlink proto 102
			ip route add 10.1.10.0/24 via 10.1.9.0 dev flannel.1 onlink proto static
			ip route add 10.1.11.0/24 dev eth0 proto 102
			ip route add 10.1.12.0/24 via 172.16.16.12 metric 50 proto 102
			ip route add 10.1.3.0/24 via 172.16.16.13 metric 60 proto 102
			ip route add 10.1.3.0/24 via 172.16.16.13 tos 0x10 proto 102
			ip route add blackhole 10.1.13.0/24 proto 102
			ip route add 10.1.14.0/24 proto 102 nexthop via 172.16.16.14 nexthop via 172.16.16.15
			ip route add 10.1.15.0/24 dev eth0 proto 102 src 172.16.16.2
			ip neigh add 10.1.2.0 lladdr 02:00:00:00:01:99 dev flannel.1 nud permanent
			ip neigh add 10.1.3.0 lladdr 02:00:00:00:01:03 dev flannel.1 nud reachable
			ip neigh add 10.1.9.0 lladdr 02:00:00:00:01:09 dev flannel.1 nud permanent
			bridge fdb add 02:00:00:00:01:02 dev flannel.1 dst 172.16.17.99
			bridge fdb add 02:00:00:00:01:09 dev flannel.1 dst 172.16.17.9
			bridge fdb add 02:00:00:00:01:03 dev flannel.1 dst 172.16.17.3
			bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.16.17.97
			bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.16.17.98`,
		"route of ours that differs in what a state cannot say": `
			ip route add 10.1.100.0/24 via 172.16.16.100 proto 102 src 172.16.16.2 mtu 1000`,
		"blackhole of ours in a slot": `ip route add blackhole 10.1.100.0/24 proto 102`,
		"several routes of nobody's in a slot": `
			ip route add 10.1.100.0/24 via 172.16.16.99
			ip route append 10.1.100.0/24 via 172.16.16.98
			ip route append 10.1.100.0/24 via 172.16.16.100 proto 102`,
		"several routes of ours in a slot": `
			ip route add 10.1.100.0/24 via 172.16.16.99 proto 102
			ip route append 10.1.100.0/24 via 172.16.16.98 proto 102`,
		"wrong port with the right entries": wrongDevice + `id 1 local 172.16.16.2 dev eth0 dstport 4789 nolearning
			ip addr add 10.1.1.0/32 dev flannel.1
			ip link set flannel.1 up
			ip route add 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink proto 102
			ip neigh add 10.1.2.0 lladdr 02:00:00:00:01:02 dev flannel.1 nud permanent
			bridge fdb add 02:00:00:00:01:02 dev flannel.1 dst 172.16.17.2`,
		"wrong VNI":    wrongDevice + "id 7 local 172.16.16.2 dev eth0 dstport 8472 nolearning",
		"wrong port":   wrongDevice + "id 1 local 172.16.16.2 dev eth0 dstport 4789 nolearning",
		"wrong device": wrongDevice + "id 1 local 172.16.16.2 dev lo dstport 8472 nolearning",
		"no device":    wrongDevice + "id 1 local 172.16.16.2 dstport 8472 nolearning",
		"wrong source": wrongDevice + "id 1 local 172.16.16.9 dev eth0 dstport 8472 nolearning",
		"GBP":          wrongDevice + "id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning gbp",
		"learning":     wrongDevice + "id 1 local 172.16.16.2 dev eth0 dstport 8472 learning",
		"miss notices": wrongDevice + "id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning l2miss l3miss",
		"default peer": wrongDevice + "id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning remote 172.16.16.77",
		"other devices": wrongDevice + `id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning
			ip link add flannel.9 type vxlan id 9 local 172.16.16.2 dev eth0 dstport 8472 nolearning
			ip addr add 10.1.1.0/32 dev flannel.9
			ip link set flannel.9 up
			ip route add 10.1.2.0/24 via 10.1.2.0 dev flannel.9 onlink proto 102
			ip route add 10.1.9.0/24 via 10.1.9.0 dev flannel.9 onlink`,
		"other device with the same VNI": `
			ip link add flannel.9 type vxlan id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			sh(h, script)
			s := vxlanState(t, h, 3)
			r := start(t, h)
			release := r.pause(t)
			r.set(s)
			r.awaitSynced(t)
			if got, want := tables(t, h), shown(s); got != want {
				t.Errorf("after one comparison: got\n%s\nwant\n%s", got, want)
			}
			release()
			watchHost(t, h).awaitQuiet(t)
			await(t, h, "the state for good", s)
		})
	}
}

// A TUN device is not ours to make: it is configured when it appears, removed
// when another backend is in use.
func TestRunTUN(t *testing.T) {
	if err := lab.TUN(); err != nil {
		t.Skip(err)
	}
	h := newHost(t)
	const tun = "ip tuntap add dev flannel0 mode tun"
	s := State{
		Device: &Device{Name: "flannel0", MTU: 1472, Addr: ip("10.1.1.0")},
		Routes: []*Route{{Dst: pfx("10.1.0.0/16"), Dev: "flannel0"}},
	}
	sh(h, "ip link add flannel.1 type vxlan id 1 local 172.16.16.2 dev eth0 dstport 8472")
	r := start(t, h)
	r.set(s)
	lab.Eventually(t, within, "the missing device to be reported", func() error {
		if _, failed := r.synced(); len(failed) != 1 || !strings.Contains(failed[0].Error(), "flannel0 is not there") {
			return fmt.Errorf("synced with %v", failed)
		}
		return nil
	})
	sh(h, tun)
	// Nothing holds the device open, so its routes are there without a carrier.
	linkdown := func(text string) string { return strings.ReplaceAll(text, " linkdown", "") }
	want := shown(s)
	lab.Eventually(t, within, "the TUN device configured", func() error {
		if got := linkdown(tables(t, h)); got != want {
			return fmt.Errorf("got\n%s\nwant\n%s", got, want)
		}
		return nil
	})
	r.awaitSynced(t)
	watchHost(t, h).awaitQuiet(t)

	v := vxlanState(t, h, 2)
	r.set(v)
	await(t, h, "VXLAN in place of the TUN device", v)
	r.set(State{Routes: v.Routes[2:]})
	await(t, h, "no device", State{Routes: v.Routes[2:]})
}

// foreignThings makes what belongs to others, some of it where ours will be.
const foreignThings = `
	ip route add 10.1.50.0/24 via 172.16.16.50 proto static
	ip route add 10.1.51.0/24 via 172.16.16.51 proto bird
	ip route add 10.1.52.0/24 dev eth0 proto kernel scope link src 172.16.16.2
	ip route add 10.1.53.0/24 via 172.16.16.53
	ip route add 10.1.2.0/24 via 172.16.16.54 metric 100 proto static
	ip route add 10.1.3.0/24 via 172.16.16.55 metric 100
	ip route add 192.168.9.0/24 via 172.16.16.56
	ip route add 192.168.10.0/24 via 172.16.16.57 table 100 proto 102
	ip link add vx0 type vxlan id 77 local 172.16.16.2 dev eth0 dstport 8472 nolearning
	ip link set vx0 address 02:00:00:00:00:77 up
	ip addr add 10.77.0.1/24 dev vx0
	ip neigh add 10.77.0.2 lladdr 02:00:00:00:77:02 dev vx0 nud permanent
	bridge fdb add 02:00:00:00:77:02 dev vx0 dst 172.16.17.77
	ip neigh add 172.16.16.200 lladdr 02:00:00:00:77:03 dev eth0 nud permanent`

var foreignLines = []string{
	"route 10.1.50.0/24 via 172.16.16.50 dev eth0 proto static",
	"route 10.1.51.0/24 via 172.16.16.51 dev eth0 proto bird",
	"route 10.1.52.0/24 dev eth0 proto kernel scope link src 172.16.16.2",
	"route 10.1.53.0/24 via 172.16.16.53 dev eth0",
	"route 10.1.2.0/24 via 172.16.16.54 dev eth0 proto static metric 100",
	"route 10.1.3.0/24 via 172.16.16.55 dev eth0 metric 100",
	"route 192.168.9.0/24 via 172.16.16.56 dev eth0",
	"link vx0 up mtu 1450 02:00:00:00:00:77 vxlan id 77 local 172.16.16.2 dev eth0 dstport 8472 nolearning udpcsum",
	"addr vx0 10.77.0.1/24",
	"route 10.77.0.0/24 dev vx0 proto kernel scope link src 10.77.0.1",
	"neigh 10.77.0.2 dev vx0 lladdr 02:00:00:00:77:02 PERMANENT",
	"fdb 02:00:00:00:77:02 dev vx0 dst 172.16.17.77 self permanent",
	"neigh 172.16.16.200 dev eth0 lladdr 02:00:00:00:77:03 PERMANENT",
}

// What is not ours stays, through every kind of change of ours.
func TestRunLeavesForeignThingsAlone(t *testing.T) {
	h := newHost(t)
	sh(h, foreignThings)
	r := start(t, h)
	check := func(what string, s State) {
		t.Helper()
		r.set(s)
		await(t, h, what, s, foreignLines...)
		if got, want := h.Run("ip", "route", "show", "table", "100"), "192.168.10.0/24 via 172.16.16.57 dev eth0 proto 102"; strings.TrimSpace(got) != want {
			t.Errorf("table 100 has %q, want %q", got, want)
		}
	}
	check("a state beside foreign things", vxlanState(t, h, 5))
	check("fewer peers", vxlanState(t, h, 2))
	other := vxlanState(t, h, 3)
	other.Device.VXLAN.Port = 4789
	check("another port", other)
	check("nothing", State{})
}

// A second start with nothing to do writes nothing.
func TestRunWritesNothingWhenEqual(t *testing.T) {
	h := newHost(t)
	sh(h, foreignThings)
	s := vxlanState(t, h, 20)
	r := start(t, h)
	r.set(s)
	r.awaitSynced(t)
	m := watchHost(t, h)
	m.awaitQuiet(t)
	r.stop(t)
	await(t, h, "the state after Run", s, foreignLines...)

	before := m.count()
	r = start(t, h)
	r.set(s)
	r.awaitSynced(t)
	r.set(s)
	lab.Eventually(t, within, "a second comparison", func() error {
		if times, _ := r.synced(); times < 2 {
			return fmt.Errorf("%d so far", times)
		}
		return nil
	})
	r.stop(t)
	if n := m.count() - before; n != 0 {
		t.Errorf("%d changes, the last %s", n, m.last())
	}
}

// Whatever a hand does to ours while Run is at work is undone, and then Run is
// at rest.
func TestRunHeals(t *testing.T) {
	h := newHost(t)
	s := vxlanState(t, h, 3)
	s.Routes = append(s.Routes, &Route{Dst: pfx("10.1.101.0/24"), Via: ip("172.16.16.101"), Dev: "eth0"})
	r := start(t, h)
	r.set(s)
	r.awaitSynced(t)
	m := watchHost(t, h)
	m.awaitQuiet(t)
	for _, test := range []struct{ name, script string }{
		{"VXLAN route deleted", "ip route del 10.1.2.0/24"},
		{"direct route deleted", "ip route del 10.1.100.0/24"},
		{"route replaced by hand", "ip route replace 10.1.2.0/24 via 10.1.3.0 dev flannel.1 onlink"},
		{"route replaced by hand with one on another interface", "ip route replace 10.1.2.0/24 via 172.16.16.9"},
		{"direct route replaced by hand with itself", "ip route replace 10.1.100.0/24 via 172.16.16.100"},
		{"route replaced with our mark", "ip route replace 10.1.2.0/24 via 10.1.4.0 dev flannel.1 onlink proto 102"},
		{"second route in a slot", "ip route append 10.1.2.0/24 via 10.1.4.0 dev flannel.1 onlink"},
		{"first route in a slot", "ip route prepend 10.1.2.0/24 via 172.16.16.9"},
		{"route made a blackhole", "ip route del 10.1.2.0/24; ip route add blackhole 10.1.2.0/24 proto 102"},
		{"foreign-looking route on our device", "ip route add 10.1.60.0/24 dev flannel.1 proto static"},
		{"stale route added", "ip route add 10.1.60.0/24 via 172.16.16.60 proto 102"},
		{"better route with a metric", "ip route add 10.1.60.0/24 via 172.16.16.60 proto 102 metric 10"},
		{"neighbour deleted", "ip neigh del 10.1.2.0 dev flannel.1"},
		{"neighbour changed", "ip neigh replace 10.1.2.0 lladdr 02:00:00:00:01:99 dev flannel.1 nud permanent"},
		{"neighbour no longer permanent", "ip neigh replace 10.1.2.0 lladdr 02:00:00:00:01:02 dev flannel.1 nud stale"},
		{"neighbour added", "ip neigh add 10.1.60.0 lladdr 02:00:00:00:01:60 dev flannel.1 nud permanent"},
		{"FDB entry deleted", "bridge fdb del 02:00:00:00:01:02 dev flannel.1"},
		{"FDB entry changed", "bridge fdb replace 02:00:00:00:01:02 dev flannel.1 dst 172.16.17.99"},
		{"FDB entry with another port", "bridge fdb replace 02:00:00:00:01:02 dev flannel.1 dst 172.16.17.2 port 99"},
		{"FDB entry for another VNI", "bridge fdb replace 02:00:00:00:01:02 dev flannel.1 dst 172.16.17.2 vni 9"},
		{"FDB entry added with another port and VNI", "bridge fdb add 02:00:00:00:01:60 dev flannel.1 dst 172.16.17.60 port 99 vni 9"},
		{"FDB entry of next hops added", "ip nexthop add id 1 via 172.16.17.60 fdb; ip nexthop add id 2 group 1 fdb; bridge fdb add 02:00:00:00:01:60 dev flannel.1 nhid 2"},
		{"FDB entry added", "bridge fdb add 02:00:00:00:01:60 dev flannel.1 dst 172.16.17.60"},
		{"flood entry added", "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.16.17.60"},
		{"flood entry with two destinations added", `
			bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.16.17.60
			bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.16.17.60 port 99`},
		{"all flushed", `
			ip route show proto 102 | while read dst rest; do ip route del $dst; done
			ip neigh flush dev flannel.1 nud permanent
			bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1; done`},
		{"device deleted", "ip link del flannel.1"},
		{"device replaced by hand", "ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dstport 4789"},
		{"device down", "ip link set flannel.1 down"},
		{"device down and up", "ip link set flannel.1 down; ip link set flannel.1 up"},
		{"device renamed", "ip link set flannel.1 down; ip link set flannel.1 name flannel.5; ip link set flannel.5 up"},
		{"address removed", "ip addr del 10.1.1.0/32 dev flannel.1"},
		{"address removed and others added", "ip addr add 10.1.9.9/24 dev flannel.1; ip addr del 10.1.1.0/32 dev flannel.1"},
		{"second address with no route of its own", "ip addr add 10.1.1.9/32 dev flannel.1"},
		{"second address", "ip addr add 10.1.1.1/24 dev flannel.1"},
		{"same address with a peer", "ip addr add 10.1.1.0 peer 10.9.9.9 dev flannel.1"},
		{"MAC changed", "ip link set flannel.1 address 02:00:00:00:00:99"},
		{"MTU changed", "ip link set flannel.1 mtu 1300"},
		{"MTU too small for IPv4", "ip link set flannel.1 mtu 68"},
		{"eth0 down and up", "ip link set eth0 down; ip link set eth0 up; ip route add default via 172.16.16.1"},
		{"next hops flushed", "ip route add 10.1.61.0/24 via 172.16.16.61 proto 102; ip nexthop flush proto 102"},
		{"next hop changed", "ip route add 10.1.61.0/24 via 172.16.16.61 proto 102; ip nexthop replace $(ip nexthop show proto 102 dev eth0 | head -1 | cut -d' ' -f1,2) via 172.16.16.222 dev eth0 proto 102"},
		{"next hop taken over", "ip route add 10.1.61.0/24 via 172.16.16.61 proto 102; ip nexthop replace $(ip nexthop show proto 102 dev eth0 | head -1 | cut -d' ' -f1,2) via 172.16.16.222 dev eth0 proto static"},
		{"next hop nobody uses", "ip nexthop add id 1711280000 via 172.16.16.61 dev eth0 proto 102"},
		{"next hop of another kind", "ip nexthop add id 1711280000 blackhole proto 102"},
		{"FDB entry by next hops in place of ours", `
			ip nexthop add id 5 via 172.16.17.60 fdb; ip nexthop add id 6 group 5 fdb
			bridge fdb del 02:00:00:00:01:02 dev flannel.1; bridge fdb add 02:00:00:00:01:02 dev flannel.1 nhid 6; ip nexthop del id 5`},
		{"learning turned on", "ip link set flannel.1 type vxlan id 1 learning"},
		{"another source address", "ip link set flannel.1 type vxlan id 1 local 172.16.16.77"},
		{"made a bridge's port", "ip link add br9 type bridge; ip link set flannel.1 master br9; ip link del br9; ip link add br9 type bridge; ip link set flannel.1 master br9; sleep 0.2; ip link del br9"},
		{"all at once", `
			ip link set flannel.1 down
			ip link set flannel.1 address 02:00:00:00:00:98 mtu 1200
			ip addr flush dev flannel.1
			ip link set eth0 down
			ip route show proto 102 | while read dst rest; do ip route del $dst; done
			ip link set eth0 up
			ip route add default via 172.16.16.1`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if testOwner.plain && strings.Contains(test.name, "next hop") {
				return
			}
			before := m.count()
			// Run may be quicker than the next command, which then fails.
			_, _ = h.Exec("sh", "-c", test.script)
			lab.Eventually(t, within, "notice of "+test.name, func() error {
				if m.count() == before {
					return errors.New("no change was told of")
				}
				return nil
			})
			awaitTables(t, h, healing, "healing", shown(s))
			r.awaitSynced(t)
			m.awaitQuiet(t)
			await(t, h, "staying as it was healed", s)
		})
		if t.Failed() {
			return // what follows begins with what this left
		}
	}
}

// While the external interface is down the routes over it are reported as
// failed and the rest is kept; once it is up they are back.
func TestRunExternalInterfaceDown(t *testing.T) {
	h := newHost(t)
	s := vxlanState(t, h, 2)
	r := start(t, h)
	r.set(s)
	r.awaitSynced(t)
	sh(h, "ip link set eth0 down")
	awaitFailed(t, r, "10.1.100.0/24")
	sh(h, "ip route del 10.1.2.0/24; ip link set flannel.1 mtu 1300")
	part := s
	part.Routes = s.Routes[:2]
	want := shown(part)
	for _, r := range ownRoutes {
		want = strings.Replace(want, "route "+r+"\n", "", 1)
	}
	awaitTables(t, h, healing, "the rest", want)
	sh(h, "ip link set eth0 up; ip route add default via 172.16.16.1")
	await(t, h, "all again", s)
	r.awaitSynced(t)
}

// An interface that was taken away and made anew has another index, and the
// kernel has removed the device that was on it.
func TestRunExternalInterfaceMadeAnew(t *testing.T) {
	h := newHost(t)
	s := vxlanState(t, h, 2)
	r := start(t, h)
	r.set(s)
	r.awaitSynced(t)
	sh(h, "ip link del eth0")
	lab.Eventually(t, within, "failure for want of eth0", func() error {
		if _, failed := r.synced(); len(failed) != 2 {
			return fmt.Errorf("synced with %v", failed)
		}
		return nil
	})
	sh(h, fmt.Sprintf("ip link add eth0 type bridge; ip addr add %v/%d dev eth0; ip link set eth0 up", h.Addr(), lan.Bits()))
	lab.Eventually(t, healing, "all again", func() error {
		routes := h.Run("ip", "route", "show", "proto", fmt.Sprint(testOwner.Protocol))
		if _, failed := r.synced(); len(failed) > 0 || strings.Count(routes, "\n") != 2 {
			return fmt.Errorf("synced with %v, routes\n%s", failed, routes)
		}
		return nil
	})
}

// A route of nobody's that leads through a gateway to what is on this host was
// left by a daemon that knew another host there.
func TestRunLocal(t *testing.T) {
	h := newHost(t)
	sh(h, "ip route add 10.1.1.0/24 via 172.16.16.99; ip route add 10.1.2.0/24 via 172.16.16.99; ip route add 10.1.3.0/24 dev eth0")
	r := start(t, h)
	r.set(State{Local: []netip.Prefix{pfx("10.1.1.0/24"), pfx("10.1.3.0/24")}})
	r.awaitSynced(t)
	routes := h.Run("ip", "route")
	for dst, want := range map[string]bool{"10.1.1.0/24": false, "10.1.2.0/24": true, "10.1.3.0/24": true} {
		if got := strings.Contains(routes, dst); got != want {
			t.Errorf("route to %s there: %t, want %t:\n%s", dst, got, want, routes)
		}
	}
}

// awaitFailed waits until the last comparison has failed for one entry, the one
// of the given name.
func awaitFailed(t *testing.T, r *runner, name string) {
	t.Helper()
	lab.Eventually(t, within, "failure of "+name, func() error {
		if _, failed := r.synced(); len(failed) != 1 || !strings.Contains(failed[0].Error(), name) {
			return fmt.Errorf("synced with %v", failed)
		}
		return nil
	})
}

// A new input takes the place of the one before, with all that follows from it;
// of several the latest counts.
func TestRunFollowsInput(t *testing.T) {
	h := newHost(t)
	r := start(t, h)
	for _, step := range []struct {
		name   string
		change func(*State)
	}{
		{"first", func(*State) {}},
		{"a peer leaves", func(s *State) {
			s.Routes, s.Neighbours, s.FDB = s.Routes[1:], s.Neighbours[1:], s.FDB[1:]
		}},
		{"it comes back with another MAC", func(s *State) {
			s.Neighbours[0].MAC[5], s.FDB[0].MAC[5] = 0x99, 0x99
		}},
		{"its address changes", func(s *State) { s.FDB[0].Dst = ip("172.16.17.99") }},
		{"it moves onto the link", func(s *State) {
			s.Routes[0] = &Route{Dst: s.Routes[0].Dst, Via: ip("172.16.16.9"), Dev: "eth0"}
			s.Neighbours, s.FDB = s.Neighbours[1:], s.FDB[1:]
		}},
		{"two peers swap their MACs", func(s *State) {
			a, b := &s.Neighbours[0].MAC, &s.Neighbours[1].MAC
			*a, *b = *b, *a
			s.FDB[0].Dst, s.FDB[1].Dst = s.FDB[1].Dst, s.FDB[0].Dst
		}},
		{"own subnet changes", func(s *State) { s.Device.Addr = ip("10.1.77.0") }},
		{"VNI changes", func(s *State) {
			s.Device.Name, s.Device.VXLAN.VNI = "flannel.2", 2
			for i := range s.Routes {
				s.Routes[i].Dev = strings.Replace(s.Routes[i].Dev, "flannel.1", "flannel.2", 1)
			}
		}},
		{"no device", func(s *State) { *s = State{Routes: s.Routes[len(s.Routes)-1:]} }},
		{"nothing", func(s *State) { *s = State{} }},
		{"many peers", func(s *State) { *s = vxlanState(t, h, 90) }},
		{"one peer", func(s *State) { *s = vxlanState(t, h, 1) }},
	} {
		s := vxlanState(t, h, 4)
		step.change(&s)
		r.set(s)
		await(t, h, step.name, s)
	}
	r.awaitSynced(t)

	// Ever so many at once: the last one stays.
	var last State
	for i := range 200 {
		last = vxlanState(t, h, 1+i*7%90)
		r.set(last)
	}
	await(t, h, "the last of many", last)
	watchHost(t, h).awaitQuiet(t)
	await(t, h, "the last of many, for good", last)
}

// A foreign route where ours ought to be is left alone and reported; the rest
// is programmed; when the foreign one goes, ours takes its place.
func TestRunConflict(t *testing.T) {
	h := newHost(t)
	sh(h, "ip route add 10.1.3.0/24 via 172.16.16.33 proto static")
	s := vxlanState(t, h, 3)
	r := start(t, h)
	r.set(s)
	awaitFailed(t, r, "10.1.3.0/24")
	part := s
	part.Routes = slices.Delete(slices.Clone(s.Routes), 1, 2)
	await(t, h, "all but the route", part, "route 10.1.3.0/24 via 172.16.16.33 dev eth0 proto static")
	sh(h, "ip route del 10.1.2.0/24")
	await(t, h, "healing beside a conflict", part, "route 10.1.3.0/24 via 172.16.16.33 dev eth0 proto static")
	watchHost(t, h).awaitQuiet(t)
	sh(h, "ip route del 10.1.3.0/24")
	await(t, h, "the whole state", s)
	r.awaitSynced(t)

	// Somebody adds theirs beside ours: both stay. When the peer then moves,
	// ours must not point to where it was.
	sh(h, "ip route append 10.1.3.0/24 via 172.16.16.33 proto static")
	await(t, h, "both", s, "route 10.1.3.0/24 via 172.16.16.33 dev eth0 proto static")
	s.Routes[1] = &Route{Dst: s.Routes[1].Dst, Via: ip("172.16.16.3"), Dev: "eth0"}
	r.set(s)
	awaitFailed(t, r, "10.1.3.0/24")
	part.Routes = slices.Delete(slices.Clone(s.Routes), 1, 2)
	await(t, h, "theirs alone", part, "route 10.1.3.0/24 via 172.16.16.33 dev eth0 proto static")
	sh(h, "ip route del 10.1.3.0/24")
	await(t, h, "ours alone", s)
	r.awaitSynced(t)

	// Somebody puts theirs in front of ours: it is the one that is used.
	sh(h, "ip route prepend 10.1.3.0/24 via 172.16.16.33 proto static")
	awaitFailed(t, r, "10.1.3.0/24")
	await(t, h, "theirs, and not ours behind it", part, "route 10.1.3.0/24 via 172.16.16.33 dev eth0 proto static")
	sh(h, "ip route del 10.1.3.0/24")
	await(t, h, "ours again", s)
	r.awaitSynced(t)

	// The host is itself on a link that is a part of a peer's subnet, whatever
	// the metric of its route there.
	sh(h, "ip link set lo up; ip addr add 10.1.4.129/26 dev lo; ip route add 10.1.4.128/26 dev eth0 proto kernel scope link metric 100")
	awaitFailed(t, r, "the host is itself on the link 10.1.4.128/26")
	part.Routes = slices.Delete(slices.Clone(s.Routes), 2, 3)
	await(t, h, "all but the route", part, "route 10.1.4.128/26 dev eth0 proto kernel scope link metric 100")
	sh(h, "ip route del 10.1.4.128/26")
	await(t, h, "all again", s)
	r.awaitSynced(t)
}

// With net.ipv4.nexthop_compat_mode off the kernel shows of a route no more than
// the number of its next hop: that is enough to know ours, and not to take a
// route through a gateway for a link.
func TestRunCompatModeOff(t *testing.T) {
	h := newHost(t)
	h.Sysctl("net/ipv4/nexthop_compat_mode", "0")
	sh(h, "ip nexthop add id 50 via 172.16.16.50 dev eth0; ip route add 10.1.3.7/32 nhid 50 proto static")
	s := vxlanState(t, h, 3)
	r := start(t, h)
	r.set(s)
	r.awaitSynced(t)
	m := watchHost(t, h)
	m.awaitQuiet(t)
	before := m.count()
	r.stop(t)
	r = start(t, h)
	r.set(s)
	r.awaitSynced(t)
	if n := m.count() - before; n != 0 {
		t.Errorf("%d changes, the last %s", n, m.last())
	}
	sh(h, "ip route del 10.1.2.0/24")
	lab.Eventually(t, healing, "the deleted route", func() error {
		if routes := h.Run("ip", "route"); strings.Count(routes, "proto 102") != 4 {
			return errors.New(routes)
		}
		return nil
	})
}

// Inputs that come all the time do not put off what there is room for again.
func TestRunRetriesUnderInputs(t *testing.T) {
	h := newHost(t)
	sh(h, "ip link add flannel.1 type vxlan id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning maxaddress 2")
	var mu sync.Mutex
	s := vxlanState(t, h, 4)
	r := start(t, h)
	stop, ended := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-ended }()
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			mu.Lock()
			next := s
			next.Routes = append(slices.Clone(s.Routes), &Route{Dst: pfx("10.1.200.0/24"), Via: netip.AddrFrom4([4]byte{172, 16, 16, byte(200 + i%2)}), Dev: "eth0"})
			mu.Unlock()
			r.set(next)
			select {
			case <-stop:
				return
			case <-time.After(25 * time.Millisecond):
			}
		}
	}()
	wanting := func(what string, n int) {
		t.Helper()
		lab.Eventually(t, healing, what, func() error {
			if _, failed := r.synced(); len(failed) != n {
				return fmt.Errorf("synced with %v", failed)
			}
			return nil
		})
	}
	wanting("failure of what there is no room for", 2)
	for n := 1; n >= 0; n-- {
		mu.Lock()
		s.Routes, s.Neighbours, s.FDB = s.Routes[1:], s.Neighbours[1:], s.FDB[1:]
		mu.Unlock()
		wanting("one in the room that another has left", n)
	}
}

// The interface is renamed: what works is not given up for what cannot be made.
func TestRunInterfaceRenamed(t *testing.T) {
	h := newHost(t)
	s := vxlanState(t, h, 3)
	s.Routes = s.Routes[:3]
	r := start(t, h)
	r.set(s)
	r.awaitSynced(t)
	index := linkIndex(t, h, "flannel.1")
	sh(h, "ip link set eth0 down; ip link set eth0 name lan7; ip link set lan7 up")
	time.Sleep(healing) // for what must not happen
	if got := linkIndex(t, h, "flannel.1"); got != index {
		t.Errorf("the device was made anew")
	}
	if routes := h.Run("ip", "route", "show", "dev", "flannel.1"); strings.Count(routes, "proto 102") != 3 {
		t.Errorf("routes are\n%s", routes)
	}
}

// What the kernel refuses keeps nothing else from being done, and is tried
// again: here an FDB that is full.
func TestRunRefused(t *testing.T) {
	h := newHost(t)
	sh(h, "ip link add flannel.1 type vxlan id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning maxaddress 2")
	s := vxlanState(t, h, 4)
	r := start(t, h)
	r.set(s)
	lab.Eventually(t, within, "failure of what there is no room for", func() error {
		if _, failed := r.synced(); len(failed) != 2 || !errors.Is(errors.Join(failed...), unix.ENOSPC) {
			return fmt.Errorf("synced with %v", failed)
		}
		return nil
	})
	part := s
	part.FDB = s.FDB[:2]
	await(t, h, "what there is room for", part)
	// A peer that goes makes room for another, after a while.
	s.Routes, s.Neighbours, s.FDB = s.Routes[1:], s.Neighbours[1:], s.FDB[1:]
	r.set(s)
	part = s
	part.FDB = s.FDB[:2]
	await(t, h, "one of the others in the room", part)
	s.Routes, s.Neighbours, s.FDB = s.Routes[1:], s.Neighbours[1:], s.FDB[1:]
	r.set(s)
	await(t, h, "all", s)
	r.awaitSynced(t)
}

// What the plan is told of the host follows the host, without our own entries.
func TestRunTellsThePlanOfTheHost(t *testing.T) {
	h := newHost(t)
	direct := Route{Dst: pfx("10.1.2.0/24"), Via: ip("172.16.16.3"), Dev: "eth0"}
	r := startPlan(t, h, func(s State, host Host) (State, []error) {
		if host.OnLink(direct.Via, "eth0") {
			s.Routes = append(slices.Clone(s.Routes), &direct)
		}
		return s, nil
	})
	base := vxlanState(t, h, 0)
	with := vxlanState(t, h, 0)
	with.Routes = append(with.Routes, &direct)
	r.set(base)
	await(t, h, "direct", with)
	sh(h, "ip route add 172.16.16.3/32 via 172.16.16.1 proto static")
	const detour = "route 172.16.16.3 via 172.16.16.1 dev eth0 proto static"
	await(t, h, "through a gateway", base, detour)
	sh(h, "ip route del 172.16.16.3/32; ip route add 172.16.16.0/25 tos 0x10 via 172.16.16.1 proto static")
	const tos = "route 172.16.16.0/25 tos 0x10 via 172.16.16.1 dev eth0 proto static"
	await(t, h, "direct in spite of a route for other traffic", with, tos)
	sh(h, "ip route flush 172.16.16.0/25 tos 0x10; ip route add blackhole 172.16.16.3/32")
	await(t, h, "blackhole", base, "route blackhole 172.16.16.3")
	sh(h, "ip route del 172.16.16.3/32")
	await(t, h, "direct again", with)
	// A route of ours says nothing of the host.
	detoured := base
	detoured.Routes = append(slices.Clone(base.Routes), &Route{Dst: pfx("172.16.16.3/32"), Via: ip("172.16.16.1"), Dev: "eth0"})
	r.set(detoured)
	detoured.Routes = append(slices.Clone(detoured.Routes), &direct)
	awaitTables(t, h, within, "direct in spite of our own route", strings.ReplaceAll(shown(detoured), "172.16.16.3/32 ", "172.16.16.3 "))
	r.awaitSynced(t)
	watchHost(t, h).awaitQuiet(t)
	awaitTables(t, h, within, "direct for good", strings.ReplaceAll(shown(detoured), "172.16.16.3/32 ", "172.16.16.3 "))
	r.set(base)
	await(t, h, "direct once more", with)
	sh(h, "ip link add vx0 type vxlan id 77 dev eth0 dstport 8472 nolearning; ip link set vx0 address 02:00:00:00:00:77 up; ip route add 172.16.16.3/32 dev vx0")
	await(t, h, "on another interface", base, "link vx0 up mtu 1450 02:00:00:00:00:77 vxlan id 77 dev eth0 dstport 8472 nolearning udpcsum", "route 172.16.16.3 dev vx0 scope link")
}

// A device that cannot be made to begin with ends Run, with the reason.
func TestRunDeviceCannotBeMade(t *testing.T) {
	h := newHost(t)
	sh(h, "ip link add vx0 type vxlan id 1 local 172.16.16.2 dev eth0 dstport 8472 nolearning")
	before := tables(t, h)
	r := start(t, h)
	r.set(vxlanState(t, h, 2))
	select {
	case err := <-r.done:
		if err == nil || !strings.Contains(err.Error(), "another VXLAN device on this host has VNI 1 and port 8472") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(within):
		t.Fatal("Run goes on")
	}
	if times, _ := r.synced(); times != 0 {
		t.Errorf("synced was called %d times", times)
	}
	if strings.Contains(tables(t, h), "flannel") || !strings.HasPrefix(tables(t, h), strings.SplitN(before, "\n", 2)[0]) {
		t.Errorf("the tables are\n%s\nand were\n%s", tables(t, h), before)
	}
}

// The same later on, when traffic flows, is no reason to give up.
func TestRunDeviceCannotBeMadeLater(t *testing.T) {
	h := newHost(t)
	r := start(t, h)
	s := vxlanState(t, h, 2)
	r.set(s)
	r.awaitSynced(t)
	// Held by a name that is not ours, until it is given back.
	sh(h, "ip link set flannel.1 down; ip link set flannel.1 name vx0")
	lab.Eventually(t, within, "failure of the device", func() error {
		if _, failed := r.synced(); len(failed) == 0 || !strings.Contains(failed[0].Error(), "making the VXLAN device flannel.1") {
			return fmt.Errorf("synced with %v", failed)
		}
		return nil
	})
	sh(h, "ip link del vx0")
	await(t, h, "the state", s)
	r.awaitSynced(t)
}

// The end of the context ends Run at once, without an error, before the first
// input as after it; the state stays, and no goroutine.
func TestRunEnds(t *testing.T) {
	h := newHost(t)
	before := runtime.NumGoroutine()
	gone := func() {
		t.Helper()
		lab.Eventually(t, within, "all goroutines gone", func() error {
			if n := runtime.NumGoroutine(); n > before {
				stacks := make([]byte, 1<<16)
				return fmt.Errorf("%d, %d before:\n%s", n, before, stacks[:runtime.Stack(stacks, true)])
			}
			return nil
		})
	}
	r := start(t, h)
	r.stop(t)
	gone()

	s := vxlanState(t, h, 3)
	r = start(t, h)
	r.set(s)
	r.awaitSynced(t)
	r.stop(t)
	gone()
	await(t, h, "the state after Run", s)
	sh(h, "ip route del 10.1.2.0/24")
	r = start(t, h)
	r.set(s)
	await(t, h, "the state in a second Run", s)
	r.stop(t)

	sh(h, "ip link set flannel.1 down; ip link set flannel.1 name vx0")
	r = start(t, h)
	r.set(s)
	if err := <-r.done; err == nil {
		t.Error("Run without its device has no error")
	}
	gone()
}

// On a kernel without next-hop objects all is the same, but for the time that
// thousands of routes take.
func TestWithoutNextHops(t *testing.T) {
	testOwner.plain = true
	defer func() { testOwner.plain = false }()
	for name, test := range map[string]func(*testing.T){
		"FromNothing":            TestRunFromNothing,
		"FromLeftovers":          TestRunFromLeftovers,
		"LeavesForeignThings":    TestRunLeavesForeignThingsAlone,
		"WritesNothingWhenEqual": TestRunWritesNothingWhenEqual,
		"Heals":                  TestRunHeals,
		"ExternalInterfaceDown":  TestRunExternalInterfaceDown,
		"FollowsInput":           TestRunFollowsInput,
		"Conflict":               TestRunConflict,
		"Notes":                  TestNotes,
	} {
		t.Run(name, test)
	}
}

// What is noted of the kernel after each write is what a fresh reading shows.
func TestNotes(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to repeat: -seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 1))
	h := newHost(t)
	sh(h, foreignThings)
	err := h.Do(func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer handle.Close()
		socket, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer socket.Close()
		tab := table{owner: testOwner, handle: handle, socket: socket}
		mine, err := tab.readLinks()
		if err != nil {
			return err
		}
		device, _, err := tab.ensureDevice(vxlanState(t, h, 0).Device, mine, 0)
		if err != nil {
			return err
		}
		read := func() (is have, err error) {
			if is, _, err = tab.readRoutes(); err == nil {
				err = tab.readEntries(&is, device)
			}
			return is, err
		}
		is, err := read()
		if err != nil {
			return err
		}
		for step := range 200 {
			want := randomState(random)
			_, err := tab.apply(diff(want, &is), &is, device, func(c *change, err error) {
				if c.op != conflict {
					t.Errorf("step %d: %v", step, err)
				}
			})
			if err != nil {
				return err
			}
			fresh, err := read()
			if err != nil {
				return err
			}
			if d := cmp.Diff(noted(&fresh), noted(&is)); d != "" {
				return fmt.Errorf("step %d, wanted\n%v\nnotes (-read +noted):\n%s", step, want, d)
			}
			if left := diff(want, &fresh); slices.ContainsFunc(left, func(c change) bool { return c.op != conflict }) {
				return fmt.Errorf("step %d: there is more to do: %v", step, left)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// randomState has entries from small ranges, so that they meet those of others.
func randomState(r *rand.Rand) (s State) {
	for i := range 6 {
		if r.IntN(3) == 0 {
			continue
		}
		a := netip.AddrFrom4([4]byte{10, 1, byte(48 + i), 0})
		route := Route{Dst: netip.PrefixFrom(a, 24), Via: netip.AddrFrom4([4]byte{10, 1, byte(48 + r.IntN(6)), 0}), Dev: "flannel.1", OnLink: true}
		switch r.IntN(4) {
		case 0:
			route = Route{Dst: route.Dst, Via: netip.AddrFrom4([4]byte{172, 16, 16, byte(50 + r.IntN(6))}), Dev: "eth0"}
		case 1:
			route = Route{Dst: route.Dst, Dev: "flannel.1"}
		}
		s.Routes = append(s.Routes, &route)
	}
	for i := range 5 {
		if r.IntN(3) > 0 {
			s.Neighbours = append(s.Neighbours, &Neighbour{netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), MAC{2, 0, 0, 0, 1, byte(r.IntN(5))}})
		}
		if r.IntN(3) > 0 {
			s.FDB = append(s.FDB, &FDBEntry{MAC{2, 0, 0, 0, 2, byte(i)}, netip.AddrFrom4([4]byte{172, 16, 17, byte(r.IntN(5))})})
		}
	}
	return s
}

// noted shows what h holds, in no order that means anything but within a slot.
func noted(h *have) (lines []string) {
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	id := func(is *hop) uint32 {
		if is == nil {
			return 0
		}
		return is.id
	}
	for dst := range h.routes {
		for i, r := range inSlot(h, dst) {
			add("route %v, number %d: %s odd %v, next hop %d", r.Route, i, claims[r.claim], r.odd, id(r.hop))
		}
	}
	add("%d surplus", len(h.surplus))
	for n, is := range h.hops.ours {
		add("next hop %d %v, used %d times", n, is.way, is.users)
	}
	for ip, n := range h.neighs {
		add("neighbour %v %v", ip.addr(), n)
	}
	for mac, f := range h.fdb {
		add("FDB %v %v", mac.mac(), f)
	}
	slices.Sort(lines)
	return lines
}
