package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// childVar makes the test binary a program of its own that uses the lab; its
// value is the argument that marks the program's sleeping process.
const childVar = "LAB_TEST_CHILD"

func TestMain(m *testing.M) {
	if mark := os.Getenv(childVar); mark != "" {
		Enter()
		child(mark)
	}
	Main(m, BuildEtcd())
}

var (
	lan    = netip.MustParsePrefix("172.16.16.0/24")
	wan    = netip.MustParsePrefix("172.16.17.0/24")
	sub1   = netip.MustParsePrefix("10.1.74.1/24")
	sub2   = netip.MustParsePrefix("10.1.75.1/24")
	within = 10 * time.Second // for what takes milliseconds
)

func TestHostsOnOneSegment(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h1, h2 := l.Host("h1", s), l.Host("h2", s, netip.MustParseAddr("172.16.16.81"))
	if h1.Addr() != netip.MustParseAddr("172.16.16.2") || h2.Addr() != netip.MustParseAddr("172.16.16.81") {
		t.Errorf("addresses are %v and %v", h1.Addr(), h2.Addr())
	}
	// No Eventually here: a host that was made has to work at once.
	stats, err := h1.Ping(h2.Addr(), Echo{Count: 20, DF: true, Size: 1500})
	l.Must(err)
	if stats.Received != 20 || stats.Min <= 0 || stats.Min > stats.Mean || stats.Mean > stats.Max || stats.Max > within {
		t.Errorf("statistics make no sense: %+v", stats)
	}
	if _, err := h1.Ping(h2.Addr(), Echo{DF: true, Size: 1501}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ping above the MTU: %v, want %v", err, unix.EMSGSIZE)
	}
	if _, err := h1.Ping(h2.Addr(), Echo{Size: 4000}); err != nil {
		t.Errorf("ping in fragments: %v", err)
	}
	_, err = h1.Ping(netip.MustParseAddr("192.0.2.1"), Echo{})
	if e := new(ICMPError); !errors.As(err, &e) || e.From != s.Gateway() || e.Type != ipv4.ICMPTypeDestinationUnreachable || e.Code != 0 {
		t.Errorf("ping to nowhere: %v, want net unreachable from the router", err)
	}
	if _, err := h1.Ping(netip.MustParseAddr("172.16.16.200"), Echo{Timeout: 50 * time.Millisecond}); err == nil {
		t.Errorf("an address that nobody has answers")
	}
}

func TestHostsOnTwoSegments(t *testing.T) {
	l := ForTest(t)
	s1, s2 := l.Segment("lan", lan), l.Segment("wan", wan)
	h1, h2, h3 := l.Host("h1", s1), l.Host("h2", s2), l.Host("h3", s1)
	_, err := h1.Ping(h2.Addr(), Echo{})
	l.Must(err)
	if _, err := h1.Ping(h2.Addr(), Echo{TTL: 1}); err == nil || !strings.Contains(err.Error(), "time exceeded") {
		t.Errorf("ping with a TTL of 1: %v, want time exceeded from the router", err)
	}
	second := h3.Attach(s2)
	if !wan.Contains(second) {
		t.Errorf("eth1 has address %v", second)
	}
	_, err = h2.Ping(second, Echo{TTL: 1})
	l.Must(err)

	// The path MTU of the far segment comes back as an error of the router's.
	l.Router.Run("ip", "link", "set", "wan", "mtu", "1300")
	_, err = h1.Ping(h2.Addr(), Echo{DF: true, Size: 1301})
	if e := new(ICMPError); !errors.As(err, &e) || e.Code != 4 || e.MTU != 1300 {
		t.Errorf("ping above the path MTU: %v, want MTU 1300", err)
	}
}

// A host is as the kernel makes it, however the machine is set up.
func TestHostDefaults(t *testing.T) {
	l := ForTest(t)
	h := l.Host("h1", l.Segment("lan", lan))
	for key, want := range map[string]string{
		"ipv4/ip_forward":             "0",
		"ipv4/conf/eth0/rp_filter":    "0",
		"ipv4/conf/all/rp_filter":     "0",
		"ipv6/conf/eth0/disable_ipv6": "1",
	} {
		if got := h.Run("cat", "/proc/sys/net/"+key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	if err := Tools("ip"); err != nil {
		t.Skip(err)
	}
	want := "default via 172.16.16.1 dev eth0 \n172.16.16.0/24 dev eth0 proto kernel scope link src 172.16.16.2"
	if diff := cmp.Diff(want, h.Run("ip", "route")); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	// The names in /run/netns are those that `ip netns` works with.
	if got := l.Router.Run("ip", "netns", "exec", "h1", "ip", "route"); got != h.Run("ip", "route") {
		t.Errorf("ip netns exec gets to another place, with routes\n%s", got)
	}
}

// twoDockers are two hosts with a container each and static routes.
func twoDockers(t *testing.T) (l *Lab, h1, h2 *Host, c1, c2 *Container) {
	l = ForTest(t)
	s := l.Segment("lan", lan)
	h1, h2 = l.Host("h1", s), l.Host("h2", s)
	c1, c2 = h1.Container("c1", sub1, 1450), h2.Container("c1", sub2, 1450)
	h1.Sysctl("net.ipv4.ip_forward", "1")
	h2.Sysctl("net.ipv4.ip_forward", "1")
	route := func(h, to *Host, dst netip.Prefix) {
		l.Must(h.nl.RouteAdd(&netlink.Route{Dst: ipNet(dst.Masked()), Gw: to.Addr().AsSlice()}))
	}
	route(h1, h2, sub2)
	route(h2, h1, sub1)
	return l, h1, h2, c1, c2
}

func TestContainers(t *testing.T) {
	l, h1, _, c1, c2 := twoDockers(t)
	_, err := c1.Ping(sub1.Addr(), Echo{})
	l.Must(err)
	_, err = c1.Ping(c2.Addr(), Echo{DF: true, Size: 1450})
	l.Must(err)
	if _, err := c1.Ping(c2.Addr(), Echo{DF: true, Size: 1451}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ping above the container's MTU: %v, want %v", err, unix.EMSGSIZE)
	}
	seen, err := SourceSeen(c1, c2, c2.Addr())
	l.Must(err)
	if seen != c1.Addr() {
		t.Errorf("%v is seen as %v", c1.Addr(), seen)
	}

	// The host gets another subnet.
	p := c1.Start("sleep", "sleep", "1000")
	h1.RemoveContainers()
	if p.Running() {
		t.Errorf("%v has outlived its container", p)
	}
	if left := linksNamed(t, h1.nl, "veth-", dockerBridge); len(left) > 0 {
		t.Errorf("links are left: %v", left)
	}
	other := netip.MustParsePrefix("10.1.99.1/24")
	c1 = h1.Container("c1", other, 1400)
	if c1.Addr() != netip.MustParseAddr("10.1.99.2") {
		t.Errorf("new container has %v", c1.Addr())
	}
	_, err = c1.Ping(other.Addr(), Echo{DF: true, Size: 1400})
	l.Must(err)
}

func TestTraffic(t *testing.T) {
	l, h1, h2, c1, c2 := twoDockers(t)
	for _, bytes := range []int64{0, 1, 3_000_001} {
		seen, err := Transfer(c1, c2, c2.Addr(), bytes)
		if err != nil || seen != c1.Addr() {
			t.Errorf("transfer of %d bytes: seen as %v, want %v; %v", bytes, seen, c1.Addr(), err)
		}
	}
	for _, streams := range []int{1, 4} {
		rate, err := Throughput(h1, h2, h2.Addr(), 200*time.Millisecond, streams)
		l.Must(err)
		t.Logf("%d streams: %.2f Gbit/s", streams, rate/1e9)
		if rate < 1e8 || rate > 1e12 {
			t.Errorf("%v bit/s make no sense", rate)
		}
	}
	h2.Sysctl("net.ipv4.ip_forward", "0")
	start := time.Now()
	EventuallyPing(t, within, c2, h2.Addr(), Echo{}) // the host itself still answers
	if _, err := c1.Ping(c2.Addr(), Echo{Timeout: 100 * time.Millisecond}); err == nil {
		t.Errorf("a host forwards with ip_forward off")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("failing took %v", d)
	}
}

// A stream flows, stands still while the network does, and arrives whole in the
// end; one whose connection is broken has an error.
func TestStream(t *testing.T) {
	l, _, h2, c1, c2 := twoDockers(t)
	s, err := NewStream(c1, c2, c2.Addr())
	l.Must(err)
	flows := func(count func() int64, more int64) {
		t.Helper()
		before := count()
		Eventually(t, within, "bytes", func() error {
			if n := count() - before; n < more {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	}
	flows(s.Arrived, 100_000)
	h2.Sysctl("net.ipv4.ip_forward", "0")
	flows(s.Sent, 2*streamPiece)
	h2.Sysctl("net.ipv4.ip_forward", "1")
	flows(s.Arrived, 100_000)
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	s, err = NewStream(c1, c2, c2.Addr())
	l.Must(err)
	flows(s.Arrived, 1)
	s.receiver.SetLinger(0) // closes with a reset
	s.receiver.Close()
	if err := s.Close(); err == nil {
		t.Error("a broken stream has no error")
	}
}

func TestEtcd(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h1, h2 := l.Host("h1", s), l.Host("h2", s)
	e := h1.Etcd()
	keys := e.Endpoint() + "/v2/keys/coreos.com/network/config"
	get := func() string {
		t.Helper()
		resp, err := h2.HTTP().Get(keys)
		l.Must(err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		l.Must(err)
		return string(b)
	}
	resp, err := h2.HTTP().PostForm(keys+"/x", url.Values{"value": {"hello"}})
	l.Must(err)
	resp.Body.Close()
	if got := get(); !strings.Contains(got, "config/x") {
		t.Errorf("after a write: %s", got)
	}
	e.Restart()
	if got := get(); !strings.Contains(got, "config/x") {
		t.Errorf("after a restart: %s", got)
	}
	e.Pause()
	c := h2.HTTP()
	c.Timeout = 100 * time.Millisecond
	if _, err := c.Get(keys); err == nil {
		t.Errorf("a paused etcd answers")
	}
	e.Wipe()
	e.Restart()
	if got := get(); !strings.Contains(got, "Key not found") {
		t.Errorf("after a wipe: %s", got)
	}
}

func TestProcesses(t *testing.T) {
	l := ForTest(t)
	h := l.Host("h1", l.Segment("lan", lan))

	p := h.Start("talker", "sh", "-c", "echo out; echo err >&2; pwd; exit 3")
	if status, err := p.Wait(within); err != nil || status != 3 {
		t.Errorf("status is %d, %v, want 3", status, err)
	}
	if diff := cmp.Diff("out\nerr\n"+h.Dir+"\n", p.Log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if err := p.WaitLog("^never$", within); err == nil || !strings.Contains(err.Error(), "ended with status 3") {
		t.Errorf("waiting for what cannot come: %v", err)
	}

	p = h.StartProgram(Program{
		Name: "talker",
		Args: []string{"sh", "-c", "trap 'echo bye; exit 4' TERM; echo $GREETING; while :; do sleep 0.01; done"},
		Env:  []string{"GREETING=hello"},
	})
	l.Must(p.WaitLog("(?m)^hello$", within))
	if strings.Contains(p.Log(), "err") {
		t.Errorf("log has what an earlier process of that name said:\n%s", p.Log())
	}
	p.Pause()
	if err := p.still(); err != nil {
		t.Errorf("after Pause: %v", err)
	}
	p.Continue()
	if status, err := p.Stop(unix.SIGTERM, within); err != nil || status != 4 || !strings.HasSuffix(p.Log(), "bye\n") {
		t.Errorf("stopping: status %d, %v, log\n%s", status, err, p.Log())
	}

	p = h.Start("deaf", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done")
	l.Must(p.WaitLog("up", within))
	if _, err := p.Stop(unix.SIGTERM, 50*time.Millisecond); err == nil || p.Running() {
		t.Errorf("a process that ignores SIGTERM: running %v, %v", p.Running(), err)
	}
	if status, err := p.Wait(0); err != nil || status != 128+9 {
		t.Errorf("killed: status %d, %v, want 137", status, err)
	}

	// What a process leaves behind goes with the lab, as the end of this test
	// checks: closing fails if something stays in a namespace.
	p = h.Start("forker", "sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & echo done")
	if _, err := p.Wait(within); err != nil {
		t.Error(err)
	}

	if _, err := h.Exec("sh", "-c", "echo oops; exit 1"); err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("a command that fails: %v", err)
	}
	if _, err := h.Exec("no-such-command"); err == nil || !strings.Contains(err.Error(), "install") {
		t.Errorf("a command that is missing: %v", err)
	}
	if dump := l.Dump(); !strings.Contains(dump, "ended with status 4") || !strings.Contains(dump, "172.16.16.2/24") {
		t.Errorf("dump lacks something:\n%s", dump)
	}
}

func TestNotify(t *testing.T) {
	l := ForTest(t)
	h := l.Host("h1", l.Segment("lan", lan))
	before := time.Now()
	p := h.StartProgram(Program{
		Name: "daemon",
		// The test binary speaks sd_notify, so that no tool is needed.
		Args:   []string{"/proc/self/exe"},
		Env:    []string{childVar + "=notify", stageVar + "=inside"},
		Notify: true,
	})
	ready, err := p.NotifiedAt("READY=1", within)
	l.Must(err)
	if ready.Before(before) || ready.After(time.Now()) {
		t.Errorf("READY=1 came at %v, the process was started after %v", ready, before)
	}
	if _, err := p.Wait(within); err != nil {
		t.Error(err)
	}
	if again, err := p.NotifiedAt("READY=1", 0); err != nil || !again.Equal(ready) {
		t.Errorf("READY=1 came at %v, later at %v, %v", ready, again, err)
	}
	if diff := cmp.Diff([]string{"READY=1", "STATUS=doing well", "STOPPING=1"}, p.Notified()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if err := p.WaitNotify("RELOADING=1", within); err == nil {
		t.Errorf("a message is there that nobody sent")
	}
}

func TestAddrs(t *testing.T) {
	a := newAddrs(netip.MustParsePrefix("10.0.0.1/29"), netip.MustParseAddr("10.0.0.1"))
	var got []string
	for _, wanted := range [][]netip.Addr{{}, {netip.MustParseAddr("10.0.0.4")}, {}, {}, {}} {
		p, err := a.take(wanted...)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.String())
	}
	want := []string{"10.0.0.2/29", "10.0.0.4/29", "10.0.0.3/29", "10.0.0.5/29", "10.0.0.6/29"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	for _, wanted := range [][]netip.Addr{{}, {netip.MustParseAddr("10.0.0.4")}, {netip.MustParseAddr("10.0.0.9")}} {
		if p, err := a.take(wanted...); err == nil {
			t.Errorf("%v is given out", p)
		}
	}
}

func TestRun(t *testing.T) {
	ok := Run(t.Logf, func(l *Lab) error {
		l.Host("h1", l.Segment("lan", lan))
		return nil
	})
	if ok != nil {
		t.Error(ok)
	}
	err := Run(t.Logf, func(l *Lab) error {
		l.Host("h1", l.Segment("lan", lan), netip.MustParseAddr("10.0.0.1"))
		t.Error("an address outside the segment is accepted")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "10.0.0.1") {
		t.Errorf("an address outside the segment: %v", err)
	}
	if entries, err := os.ReadDir(netnsDir); err != nil || len(entries) > 0 {
		t.Errorf("namespaces are left: %v, %v", entries, err)
	}
}

func TestDoKeepsTheThread(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h1, h2 := l.Host("h1", s), l.Host("h2", s)
	here := func() string {
		t.Helper()
		id, err := os.Readlink("/proc/thread-self/ns/net")
		l.Must(err)
		return id
	}
	runtime.LockOSThread() // to look at one thread throughout
	defer runtime.UnlockOSThread()
	outside := here()
	var one, two string
	l.Must(h1.Do(func() error {
		one = here()
		err := h2.Do(func() error { two = here(); return nil })
		if here() != one {
			t.Errorf("back from h2 in %s, want %s", here(), one)
		}
		return err
	}))
	func() {
		defer func() { recover() }()
		h1.Do(func() error { panic("in a namespace") })
	}()
	if here() != outside || one == outside || two == outside || one == two {
		t.Errorf("outside %s, h1 %s, h2 %s, and then %s", outside, one, two, here())
	}
}

// child is the program that the tests below kill, and TestNotify's daemon.
func child(mark string) {
	if mark == "notify" {
		conn, err := dialNotify(os.Getenv("NOTIFY_SOCKET"))
		if err == nil {
			for _, msg := range []string{"READY=1\nSTATUS=doing well", "STOPPING=1\n"} {
				_, err = conn.Write([]byte(msg))
			}
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	err := Run(func(format string, args ...any) { fmt.Printf(format+"\n", args...) }, func(l *Lab) error {
		s := l.Segment("lan", lan)
		l.Host("h1", s).Start("sleep", "sleep", mark)
		h2 := l.Host("h2", s)
		h2.Run("sh", "-c", "setsid sleep "+mark+" >/dev/null 2>&1 &") // an orphan, for init
		l.Must(os.WriteFile(filepath.Join(h2.Dir, "file"), nil, 0o644))
		l.Must(os.WriteFile(filepath.Join(os.TempDir(), "lab-"+mark), nil, 0o644))
		if strings.HasPrefix(mark, "7") {
			os.Exit(7)
		}
		fmt.Println("up")
		select {}
	})
	fmt.Println(err)
	os.Exit(1)
}

func dialNotify(path string) (io.Writer, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

// Whatever ends a program in the lab, nothing of it is left.
func TestNothingIsLeft(t *testing.T) {
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	for _, test := range []struct {
		name   string
		how    func(outer, inside int) error
		status int
		mark   string // the first digit tells the child what to do
	}{
		{"outer killed", func(outer, _ int) error { return unix.Kill(outer, unix.SIGKILL) }, 128 + 9, "1000001"},
		{"inside killed", func(_, inside int) error { return unix.Kill(inside, unix.SIGKILL) }, 128 + 9, "1000002"},
		{"interrupted", func(outer, _ int) error { return unix.Kill(outer, unix.SIGINT) }, 128 + 2, "1000003"},
		{"terminated", func(outer, _ int) error { return unix.Kill(outer, unix.SIGTERM) }, 128 + 15, "1000004"},
		{"exit", nil, 7, "7000005"},
	} {
		t.Run(test.name, func(t *testing.T) {
			tmp := t.TempDir()
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), childVar+"="+test.mark, "TMPDIR="+tmp)
			cmd.Stderr = os.Stderr
			// A group of its own, as if started from a shell.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			if test.how != nil {
				line, err := bufio.NewReader(out).ReadString('\n')
				if err != nil || line != "up\n" {
					t.Fatalf("the child says %q, %v", line, err)
				}
				var sleeps []int
				Eventually(t, within, "the start of the child's processes", func() error {
					if sleeps = pidsOf(t, test.mark); len(sleeps) != 2 {
						return fmt.Errorf("there are %v, want two", sleeps)
					}
					return nil
				})
				// A link between its namespaces and ours: it goes when they do.
				for i, pid := range sleeps {
					link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("witness%d", i)}, PeerName: "witness", PeerNamespace: netlink.NsPid(pid)}
					if err := here.LinkAdd(link); err != nil {
						t.Fatalf("adding a link to the child's namespace: %v", err)
					}
				}
				inside := parentOf(t, sleeps[0]) // Start's sleep came first
				if err := test.how(cmd.Process.Pid, inside); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			cmd.Wait()
			if got := exitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)); got != test.status {
				t.Errorf("status is %d, want %d", got, test.status)
			}
			Eventually(t, within, "the end of the child's processes", func() error {
				if left := pidsOf(t, test.mark); len(left) > 0 {
					return fmt.Errorf("still there: %v", left)
				}
				return nil
			})
			Eventually(t, within, "the end of the child's namespaces", func() error {
				if left := linksNamed(t, here, "witness"); len(left) > 0 {
					return fmt.Errorf("still there: %v", left)
				}
				return nil
			})
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("the end took %v", d)
			}
			if files, err := os.ReadDir(tmp); err != nil || len(files) > 0 {
				t.Errorf("files are left: %v, %v", files, err)
			}
		})
	}
}

// linksNamed are the names of the links that begin with one of the prefixes.
func linksNamed(t *testing.T, nl *netlink.Handle, prefixes ...string) (names []string) {
	t.Helper()
	links, err := nl.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		for _, prefix := range prefixes {
			if strings.HasPrefix(link.Attrs().Name, prefix) {
				names = append(names, link.Attrs().Name)
			}
		}
	}
	return names
}

// pidsOf finds the sleeping processes with an argument, those in pid
// namespaces below ours included, oldest first.
func pidsOf(t *testing.T, mark string) (pids []int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		var pid int
		if b, err := os.ReadFile(path); err == nil && string(b) == "sleep\x00"+mark+"\x00" {
			fmt.Sscanf(path, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var parent int
	if _, err := fmt.Sscanf(string(b[strings.LastIndex(string(b), ")")+1:]), " %s %d", new(string), &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}
