//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

const subnetFile = "/run/flannel/subnet.env"

const vxlanConfig = `{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`

// A site is a cluster with one machine, on which flanneld is installed as README
// says, and one other host.
type site struct {
	*machine
	cluster *cluster.Cluster
	peer    *cluster.Node  // the other host
	far     *lab.Container // on it

	subnetFile string // of the machine
}

// newSite boots the machine. Nothing of flanneld's runs on it yet; on the other
// host it does if there is a network config.
func newSite(t *testing.T, config string) *site {
	t.Helper()
	l := lab.ForTest(t)
	s := l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
	return newSiteOn(t, cluster.New(l, s), s, config)
}

// newSiteOn is newSite for a cluster whose etcd is there already.
func newSiteOn(t *testing.T, c *cluster.Cluster, s *lab.Segment, config string) *site {
	t.Helper()
	a := &site{newMachine(t, c.Host("vm", s)), c, c.Node("peer", s), nil, subnetFile}
	a.install("../flanneld.service", "/etc/systemd/system/flanneld.service", 0o644)
	a.install("../docker-flannel.conf", "/etc/systemd/system/docker.service.d/flannel.conf", 0o644)
	a.install("../flanneld.env", "/etc/default/flanneld", 0o644)
	a.set("")
	if config != "" {
		c.SetConfig(config)
		a.join()
	}
	a.boot()
	return a
}

// join starts flanneld on the other host.
func (a *site) join() {
	a.t.Helper()
	a.peer.Start()
	a.peer.AwaitReady()
	a.far = a.peer.AddContainer("far")
}

// set writes the settings of the machine's flanneld, with these further flags.
func (a *site) set(options string) {
	a.t.Helper()
	a.write("/etc/sysconfig/flanneld", fmt.Sprintf("FLANNEL_ETCD_ENDPOINTS=%s\nFLANNEL_OPTIONS=\"-iface=eth0 %s\"\n", a.cluster.Etcd.Endpoint(), options))
}

// start is what an operator types; flanneld has to work when it returns.
func (a *site) start() {
	a.t.Helper()
	a.run("systemctl", "start", "flanneld")
}

// env is what the subnet file says.
func (a *site) env() (gateway netip.Prefix, mtu int) {
	a.t.Helper()
	text := a.read(a.subnetFile)
	m := regexp.MustCompile(`\AFLANNEL_NETWORK=10\.1\.0\.0/16\nFLANNEL_SUBNET=(.*)\nFLANNEL_MTU=(.*)\nFLANNEL_IPMASQ=(?:true|false)\n\z`).FindStringSubmatch(text)
	if m == nil {
		a.t.Fatalf("the subnet file has\n%s", text)
	}
	mtu, err := strconv.Atoi(m[2])
	a.must(err)
	gateway, err = netip.ParsePrefix(m[1])
	a.must(err)
	return gateway, mtu
}

// near adds a container to the machine, behind a docker0 as the subnet file asks
// for.
func (a *site) near() *lab.Container {
	a.t.Helper()
	gateway, mtu := a.env()
	return a.Container("near", gateway, mtu)
}

// fits checks that the file for dockerd says what the subnet file says.
func (a *site) fits() {
	a.t.Helper()
	gateway, mtu := a.env()
	masq := !strings.Contains(a.read(a.subnetFile), "FLANNEL_IPMASQ=true") // one of the two does it
	want := fmt.Sprintf(`DOCKER_NETWORK_OPTIONS=" --bip=%v --ip-masq=%t --mtu=%d"`, gateway, masq, mtu)
	if got := a.read("/run/flannel/docker"); !strings.Contains(got, want+"\n") {
		a.t.Errorf("/run/flannel/docker has\n%s\nand not\n%s", got, want)
	}
}

// reach checks that containers reach each other, by their own addresses.
func (a *site) reach(t *testing.T, near *lab.Container) {
	t.Helper()
	for _, way := range [][2]*lab.Container{{near, a.far}, {a.far, near}} {
		seen, err := lab.Transfer(way[0], way[1], way[1].Addr(), 100<<10)
		if err != nil || seen != way[0].Addr() {
			t.Errorf("from %s: %v, and it seems to come from %v", way[0].Name, err, seen)
		}
	}
}

// When systemctl start returns, all is there that the next service needs, and the
// real dockerd starts on the subnet.
func TestSystemdStart(t *testing.T) {
	a := newSite(t, "")
	const peers = 200
	for i := range peers {
		a.cluster.PutLease(fmt.Sprintf("10.1.%d.0-24", 50+i), fmt.Sprintf(`{"PublicIP":"172.31.0.%d","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:%02x"}}`, i+1, i), time.Hour)
	}
	a.cluster.SetConfig(vxlanConfig)
	a.join()
	_, err := a.exec("systemctl", "start", "flanneld")
	env, envErr := os.ReadFile(a.path(subnetFile))
	opts, optsErr := os.ReadFile(a.path("/run/flannel/docker"))
	routes := strings.Count(a.Run("ip", "-4", "route"), "dev flannel.1")
	if err != nil || envErr != nil || optsErr != nil || routes < peers {
		t.Fatalf("when systemctl start returns (%v) there are %d routes for %d peers, the subnet file has %q (%v), dockerd's options are %q (%v)",
			err, routes, peers+1, env, envErr, opts, optsErr)
	}
	a.fits()
	gateway, _ := a.env()
	if got, want := a.property("flanneld", "StatusText"), gateway.Masked().String()+" through vxlan"; got != want {
		t.Errorf("systemctl status says %q and not %q", got, want)
	}

	if got := a.property("flanneld", "WatchdogUSec"); got != "1min" {
		t.Errorf("the watchdog waits for %s", got)
	}

	a.run("systemctl", "start", "docker")
	dockerFits(t, a.machine)
	lab.EventuallyPing(t, 20*time.Second, a.Host, a.far.Addr(), lab.Echo{From: gateway.Addr()}) // docker0's own address
	if got := a.journal("-u", "docker", "-t", "dockerd", "-n", "1"); got == "" {
		t.Error("the journal has nothing of dockerd under that name")
	}
}

// dockerFits checks that the real dockerd runs on the subnet of the subnet file.
func dockerFits(t *testing.T, m *machine) {
	t.Helper()
	subnet := regexp.MustCompile(`FLANNEL_SUBNET=(.*)`).FindStringSubmatch(m.read(subnetFile))
	args := strings.ReplaceAll(m.read("/proc/"+m.property("docker", "MainPID")+"/cmdline"), "\x00", " ")
	if subnet == nil || !strings.Contains(args, "dockerd ") || !strings.Contains(args, fmt.Sprintf(" --bip=%s --ip-masq=true --mtu=1450 ", subnet[1])) {
		t.Fatalf("dockerd was started as %q; the subnet is %q", args, subnet)
	}
	if addr := m.run("ip", "-4", "addr", "show", "dev", "docker0"); !strings.Contains(addr, " inet "+subnet[1]+" ") {
		t.Errorf("docker0 is not %s:\n%s", subnet[1], addr)
	}
}

// While etcd is away flanneld says what it waits for, and dockerd waits for
// flanneld; when etcd is back both come up by themselves, in that order.
func TestSystemdWaiting(t *testing.T) {
	a := newSite(t, "")
	a.cluster.Etcd.Stop()
	a.run("systemctl", "enable", "flanneld")
	a.run("systemctl", "start", "--no-block", "flanneld", "docker")
	a.await("flanneld", "StatusText", "Waiting for the network config")
	a.await("flanneld", "ActiveState", "activating")
	a.said("flanneld", "Waiting for the store")
	jobs := a.run("systemctl", "list-jobs", "--no-legend")
	if !regexp.MustCompile(`docker\.service +start waiting`).MatchString(jobs) || !regexp.MustCompile(`flanneld\.service +start running`).MatchString(jobs) {
		t.Errorf("the jobs are\n%s", jobs)
	}
	if a.exists("/run/flannel/docker") {
		t.Error("there are options for dockerd")
	}
	a.cluster.Etcd.Restart()
	a.said("flanneld", "no network config yet")
	a.cluster.SetConfig(vxlanConfig)
	a.await("docker", "ActiveState", "active")
	a.fits()
	ready, started := a.monotonic("flanneld", "ActiveEnterTimestampMonotonic"), a.monotonic("docker", "ExecMainStartTimestampMonotonic")
	if ready == 0 || started < ready {
		t.Errorf("dockerd was started %v after the boot, and flanneld was ready after %v", started, ready)
	}
}

// dockerd comes up however often flanneld has failed before, and does not run
// without a subnet.
func TestSystemdDockerIsPatient(t *testing.T) {
	a := newSite(t, vxlanConfig)
	a.write("/etc/sysconfig/flanneld", "FLANNEL_OPTIONS=-iface=eth7\n")
	a.dropIn("flanneld", "RestartSec=100ms\nStartLimitInterval=0")
	a.dropIn("docker", "RestartSec=100ms")
	a.run("systemctl", "start", "--no-block", "flanneld", "docker")
	a.await("docker", "NRestarts", "[6-9]|[1-9][0-9]+") // many more than the unit's own StartLimitBurst=3
	if state := a.property("docker", "ActiveState"); state == "active" || state == "failed" {
		t.Errorf("docker is %s", state)
	}
	a.said("flanneld", "--iface=eth7: no such interface")
	a.set("")
	a.await("docker", "ActiveState", "active")
	a.fits()
}

// Traffic goes on, and the subnet stays, whatever flanneld goes through.
func TestSystemdTraffic(t *testing.T) {
	a := newSite(t, vxlanConfig)
	a.run("systemctl", "enable", "--now", "flanneld")
	near := a.near()
	a.reach(t, near)
	kernel := func() string {
		return a.Run("sh", "-ec", "ip -4 route; ip -4 neigh show nud permanent; bridge fdb show dev flannel.1; ip -d link show flannel.1; iptables -S; iptables -t nat -S")
	}
	before := []string{kernel(), a.read(subnetFile), a.read("/run/flannel/docker")}
	same := func(t *testing.T) {
		t.Helper()
		for i, now := range []string{kernel(), a.read(subnetFile), a.read("/run/flannel/docker")} {
			if now != before[i] {
				t.Errorf("there is\n%s\nand was\n%s", now, before[i])
			}
		}
	}
	stream, err := lab.NewStream(near, a.far, a.far.Addr())
	a.must(err)
	for _, test := range []struct {
		name string
		do   func()
	}{
		{"stop", func() {
			a.run("systemctl", "stop", "flanneld")
			a.await("flanneld", "ActiveState", "inactive")
			a.await("flanneld", "Result", "success")
		}},
		{"start", func() { a.run("systemctl", "start", "flanneld") }},
		{"restart", func() { a.run("systemctl", "restart", "flanneld") }},
		{"killed", func() {
			a.run("systemctl", "kill", "--signal=KILL", "flanneld")
			a.await("flanneld", "NRestarts", "1")
			a.await("flanneld", "ActiveState", "active")
		}},
		{"hung", func() {
			// A minute, as in the unit, is a long time for a test.
			a.dropIn("flanneld", "WatchdogSec=6s\nRestartSec=100ms")
			a.run("systemctl", "restart", "flanneld")
			a.run("systemctl", "kill", "--signal=STOP", "--kill-who=main", "flanneld")
			a.await("flanneld", "NRestarts", "1")
			a.await("flanneld", "ActiveState", "active")
			a.said("flanneld", `Watchdog timeout \(limit 6s\)!`)
			a.said("flanneld", "SIGABRT: abort") // the stacks
		}},
	} {
		a.sub(test.name, func(t *testing.T) {
			test.do()
			same(t)
			arrived := stream.Arrived()
			lab.Eventually(t, 20*time.Second, "waiting for more of the stream", func() error {
				if stream.Arrived() == arrived {
					return fmt.Errorf("nothing has arrived")
				}
				return nil
			})
		})
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
	a.reach(t, near)
	// Fed, it stays up: as many watchdogs long as a wrong one would take.
	pid := a.property("flanneld", "MainPID")
	fed := a.monotonic("flanneld", "WatchdogTimestampMonotonic")
	lab.Eventually(t, time.Minute, "waiting for the watchdog to be fed for long", func() error {
		if now := a.monotonic("flanneld", "WatchdogTimestampMonotonic"); now < fed+8*time.Second {
			return fmt.Errorf("it was fed last %v after the first time", now-fed)
		}
		return nil
	})
	if now := a.property("flanneld", "MainPID"); now != pid {
		t.Errorf("flanneld was started again by its watchdog: pid %s was %s", now, pid)
	}
}

// A host that lost its subnet to another gets a new one by being started again,
// and so does its dockerd; which otherwise goes on, however often flanneld is
// restarted.
func TestSystemdLostLease(t *testing.T) {
	a := newSite(t, vxlanConfig)
	a.start()
	a.run("systemctl", "start", "docker")
	dockerFits(t, a.machine)
	dockerd := a.property("docker", "MainPID")
	for _, options := range []string{"", "-ip-masq"} {
		a.set(options)
		a.run("systemctl", "restart", "flanneld")
		a.fits()
		a.dockerGoesOn(dockerd)
	}
	a.set("")
	old := a.rob()
	a.await("flanneld", "NRestarts", "1")
	a.await("flanneld", "ActiveState", "active")
	a.said("flanneld", "Main process exited, code=exited, status=1/FAILURE")
	a.said("flanneld", "172.30.0.99")
	if now, _ := a.env(); now == old {
		t.Errorf("the subnet is %v, as before", now)
	}
	a.fits()
	a.dockerIsAnother(dockerd)
	dockerFits(t, a.machine)
	gateway, _ := a.env()
	lab.EventuallyPing(t, 20*time.Second, a.Host, a.far.Addr(), lab.Echo{From: gateway.Addr()}) // docker0's own address
}

// A new subnet is no trouble where there is no dockerd to start again, and none
// where one is about to start: it does, on the new subnet.
func TestSystemdNewSubnet(t *testing.T) {
	a := newSite(t, vxlanConfig)
	a.start()
	// moved starts flanneld after its subnet has gone to another host.
	moved := func(start ...string) {
		t.Helper()
		a.run("systemctl", "stop", "flanneld")
		old := a.rob()
		a.run(append([]string{"systemctl", "start"}, start...)...)
		a.await("flanneld", "ActiveState", "active")
		if now, _ := a.env(); now == old {
			t.Errorf("the subnet is %v, as before", now)
		}
		a.fits()
	}
	idle := func() {
		t.Helper()
		if state, jobs := a.property("docker", "ActiveState"), a.dockerJobs(); state != "inactive" || jobs != "" {
			t.Errorf("docker is %s, and to do is %q", state, jobs)
		}
		if result := a.property("flanneld", "Result"); result != "success" {
			t.Errorf("flanneld has ended with %s", result)
		}
	}
	a.sub("not running", func(t *testing.T) {
		moved("flanneld")
		idle()
	})
	a.sub("to be started", func(t *testing.T) {
		moved("--no-block", "docker") // which waits for flanneld
		a.await("docker", "ActiveState", "active")
		dockerFits(t, a.machine)
		a.run("systemctl", "stop", "docker.socket", "docker")
	})
	a.sub("starting", func(t *testing.T) {
		// It neither fails nor hangs when it is told to start over in the middle of it.
		a.dropIn("docker", "ExecStartPre=/bin/sh -c 'until [ -e /run/go ]; do sleep 0.1; done'")
		a.run("systemctl", "start", "--no-block", "docker")
		a.await("docker", "SubState", "start-pre")
		moved("flanneld")
		a.write("/run/go", "")
		a.await("docker", "ActiveState", "active")
		dockerFits(t, a.machine)
		a.run("systemctl", "stop", "docker.socket", "docker")
	})
	a.sub("not installed", func(t *testing.T) {
		a.run("sh", "-c", "rm -r /usr/lib/systemd/system/docker.* /etc/systemd/system/docker.* /etc/init.d/docker; systemctl daemon-reload")
		if state := a.property("docker", "LoadState"); state != "not-found" {
			t.Fatalf("docker.service is %s", state)
		}
		moved("flanneld")
		idle()
	})
}

// rob gives the machine's subnet to another host.
func (a *site) rob() (lost netip.Prefix) {
	a.t.Helper()
	lost, _ = a.env()
	a.cluster.PutLease(strings.ReplaceAll(lost.Masked().String(), "/", "-"), `{"PublicIP":"172.30.0.99","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:99"}}`, time.Hour)
	return lost
}

// dockerJobs is what systemd is about to do to dockerd.
func (m *machine) dockerJobs() string {
	m.t.Helper()
	return m.run("systemctl", "list-jobs", "--no-legend", "docker.service")
}

// dockerGoesOn checks that dockerd is this process, and that nothing is about to
// be done to it.
func (m *machine) dockerGoesOn(pid string) {
	m.t.Helper()
	if jobs := m.dockerJobs(); jobs != "" {
		m.t.Errorf("for docker there are the jobs %s", jobs)
	}
	if now := m.property("docker", "MainPID"); now != pid {
		m.t.Errorf("dockerd was started again: pid %s was %s", now, pid)
	}
}

// dockerIsAnother waits until dockerd is another process than this one.
func (m *machine) dockerIsAnother(pid string) {
	m.t.Helper()
	lab.Eventually(m.t, reactionTime, "waiting for another dockerd", func() error {
		if now, state := m.property("docker", "MainPID"), m.property("docker", "ActiveState"); now == pid || now == "0" || state != "active" {
			return fmt.Errorf("it is %s, pid %s", state, now)
		}
		return nil
	})
}

// Wrong usage is said once, and not tried again.
func TestSystemdUsage(t *testing.T) {
	a := newSite(t, vxlanConfig)
	a.set("-no-such-flag")
	if out, err := a.exec("systemctl", "start", "flanneld"); err == nil {
		t.Errorf("systemctl start says %q", out)
	}
	for name, want := range map[string]string{"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "2", "NRestarts": "0"} {
		if got := a.property("flanneld", name); got != want {
			t.Errorf("%s is %s and not %s", name, got, want)
		}
	}
	a.said("flanneld", "flanneld: .*no-such-flag")
}
