//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// The units of dist are faultless to systemd, and flanneld's exposes little.
func TestUnits(t *testing.T) {
	a := newSite(t, "")
	if out := a.run("systemd-analyze", "verify", "flanneld.service", "docker.service"); out != "" {
		t.Errorf("systemd-analyze verify says\n%s", out)
	}
	// Out of 10; half of what is left are network and root, which it cannot do
	// without.
	const bound = 2.5
	out := a.run("systemd-analyze", "security", "--no-pager", "flanneld.service")
	m := regexp.MustCompile(`Overall exposure level for flanneld\.service: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze security says\n%s", out)
	}
	if exposure, err := strconv.ParseFloat(m[1], 64); err != nil || exposure > bound {
		t.Errorf("the exposure is %s, above %v:\n%s", m[1], bound, out)
	}
}

// In the sandbox of flanneld.service each backend works, with either kind of
// iptables, and with the files that operators name: their certificates may be
// below /root, with a key that is for root's eyes only.
func TestUnitSandbox(t *testing.T) {
	l := lab.ForTest(t)
	s := l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
	ca, err := lab.NewCA("etcd")
	l.Must(err)
	client, err := ca.Issue("client", time.Now().Add(time.Hour))
	l.Must(err)
	files := map[string][]byte{"ca.pem": ca.PEM, "client.pem": client.Cert, "client-key.pem": client.Key}
	a := newSiteOn(t, cluster.On(l, l.Host("etcd", s).EtcdTLS(ca)), s, "")
	for name, text := range files {
		a.write("/root/"+name, string(text))
		a.must(os.Chmod(a.path("/root/"+name), 0o600))
		a.must(os.WriteFile(filepath.Join(a.peer.Dir, name), text, 0o600))
	}
	a.peer.Under = []string{"env", "FLANNELD_ETCD_CAFILE=ca.pem", "FLANNELD_ETCD_CERTFILE=client.pem", "FLANNELD_ETCD_KEYFILE=client-key.pem"}
	for _, test := range []struct{ backend, iptables, options, subnetFile string }{
		{`"vxlan"`, "nft", "-ip-masq", ""},
		{`"host-gw"`, "nft", "-log_dir=/var/log/k8s/flanneld", ""},
		{`"vxlan","DirectRouting":true`, "legacy", "-ip-masq", ""},
		{`"udp"`, "legacy", "", "/etc/flannel/subnet.env"},
	} {
		a.sub(strings.NewReplacer(`"`, "", ",", " ", ":", " ").Replace(test.backend)+" "+test.iptables, func(t *testing.T) {
			a.cluster.SetConfig(`{"Network":"10.1.0.0/16","Backend":{"Type":` + test.backend + `}}`)
			a.peer.RemoveContainers()
			a.join()
			defer a.peer.Stop()
			for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
				a.run("ln", "-sf", "/usr/sbin/"+strings.Replace(name, "iptables", "iptables-"+test.iptables, 1), "/etc/alternatives/"+name)
			}
			a.run("rm", "-f", "/run/xtables.lock")
			a.set(test.options + " -etcd-cafile=/root/ca.pem -etcd-certfile=/root/client.pem -etcd-keyfile=/root/client-key.pem")
			if test.subnetFile != "" {
				a.subnetElsewhere(test.subnetFile)
			}
			a.Sysctl("net.ipv4.ip_forward", "0")
			a.start()
			defer a.run("systemctl", "stop", "flanneld")
			a.fits()

			a.RemoveContainers()
			a.reach(t, a.near())
			if test.iptables == "legacy" {
				// Made by flanneld's iptables, and only then by the one below.
				lab.Eventually(t, reactionTime, "waiting for the lock of iptables-legacy", func() error { _, err := os.Stat(a.path("/run/xtables.lock")); return err })
			}
			lab.Eventually(t, reactionTime, "waiting for the rules", func() error {
				if got := a.run("iptables-" + test.iptables + "-save"); !strings.Contains(got, "-A FORWARD -j FLANNEL-FWD") {
					return fmt.Errorf("there are\n%s", got)
				}
				return nil
			})
			if got := a.run("flanneld", "status"); !strings.Contains(got, "all answer") || !strings.Contains(got, "all is well") {
				t.Errorf("flanneld status, beside the unit, says\n%s", got)
			}
			status := a.read("/proc/" + a.property("flanneld", "MainPID") + "/status")
			// CAP_NET_ADMIN is bit 12, CAP_NET_RAW bit 13 (linux/capability.h).
			for _, want := range []string{"CapEff:\t0000000000003000\n", "CapBnd:\t0000000000003000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
				if !strings.Contains(status, want) {
					t.Errorf("the process has not %q but\n%s", want, status)
				}
			}
			journal := a.journal("_SYSTEMD_INVOCATION_ID="+a.property("flanneld", "InvocationID"), "-o", "cat")
			for line := range strings.Lines(journal) {
				if regexp.MustCompile(`^[WEF]\d{4} |(?i)denied|not permitted|read-only`).MatchString(line) {
					t.Errorf("the journal has %s", line)
				}
			}
		})
	}
	if text := a.read("/var/log/k8s/flanneld/flanneld.INFO"); !strings.Contains(text, "Ready: ") {
		t.Errorf("the log file has\n%s", text)
	}
}

// subnetElsewhere moves the subnet file to another directory, by the setting and
// the drop-in that README names; without the drop-in flanneld says what is missing.
func (a *site) subnetElsewhere(name string) {
	a.t.Helper()
	dir := filepath.Dir(name)
	a.run("mkdir", dir)
	a.run("rm", "-rf", filepath.Dir(subnetFile)) // what is left of another run
	a.write("/etc/default/flanneld", "FLANNELD_SUBNET_FILE="+name+"\n")
	a.dropIn("flanneld", "RestartSec=1h") // one failure says it
	a.run("systemctl", "start", "--no-block", "flanneld")
	a.said("flanneld", regexp.QuoteMeta("writing the subnet file "+name+", without which dockerd must not start: ")+".*"+
		regexp.QuoteMeta("read-only file system (is it the sandbox of the unit? add ReadWritePaths="+dir+" to it)"))
	a.await("flanneld", "SubState", "auto-restart")
	if a.exists("/run/flannel/docker") {
		a.t.Error("there are options for dockerd")
	}
	a.run("systemctl", "stop", "flanneld")
	a.dropIn("flanneld", "ReadWritePaths="+dir)
	a.subnetFile = name
}

// The units that operators have been using work as they stand.
func TestFieldUnits(t *testing.T) {
	l := lab.ForTest(t)
	// Their etcd is at two addresses.
	s := l.Segment("a", netip.MustParsePrefix("10.99.132.0/24"))
	h := l.Host("etcd", s, netip.MustParseAddr("10.99.132.21"))
	h.Run("ip", "addr", "add", "10.0.0.1/32", "dev", "lo")
	c := cluster.On(l, h.Etcd("--listen-client-urls", "http://0.0.0.0:2379"))
	m := newMachine(t, l.Host("vm", s))
	m.Run("ip", "route", "add", "10.0.0.1/32", "via", h.Addr().String())
	m.boot()

	for _, test := range []struct {
		dir, kind      string
		prefix, config string
		before, after  func(t *testing.T)
	}{
		{dir: "iface", kind: "notify", prefix: "/kubernetes/network",
			config: `{"Network":"172.17.0.1/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}`,
			after: func(t *testing.T) {
				if text := m.read(subnetFile); !strings.Contains(text, "FLANNEL_IPMASQ=true\n") {
					t.Errorf("the subnet file has\n%s", text)
				}
			}},
		{dir: "iface", kind: "simple", prefix: "/kubernetes/network",
			config: `{"Network": "172.17.0.1/16","SubnetMin": "172.17.0.0", "SubnetMax": "172.17.254.0","Backend":{"Type":"vxlan"}}`},
		{dir: "dockeropts", kind: "notify", prefix: "/atomic.io/network",
			config: `{"Network":"10.253.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}`,
			after:  func(t *testing.T) { dockerFits(t, m) }},
		{dir: "docker0", kind: "notify", prefix: cluster.Prefix,
			config: `{"Network":"172.17.0.0/16","SubnetLen":24,"SubnetMin":"172.17.0.0","SubnetMax":"172.17.254.0","Backend":{"Type":"udp","Port":7890}}`,
			before: func(t *testing.T) {
				m.run("ip", "link", "add", "docker0", "type", "bridge")
				m.run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
			},
			after: func(t *testing.T) {
				if out, err := m.exec("ip", "link", "show", "docker0"); err == nil {
					t.Errorf("docker0 is still there: %s", out)
				}
			}},
		{dir: "plain", kind: "notify", prefix: "/dudu_flannel/network",
			config: `{"Network": "172.7.0.0/16", "Backend": {"Type": "vxlan","Directrouting": true}}`},
		{dir: "logdir", kind: "notify", prefix: "/dudu_flannel/network",
			config: `{"Network": "192.168.0.1/16","SubnetLen": 24,"Backend": {"Type": "host-gw"}}`,
			after: func(t *testing.T) {
				m.run("systemctl", "stop", "flanneld") // which writes what it still has
				if text := m.read("/var/log/k8s/flanneld/flanneld.INFO"); !strings.Contains(text, "Ready: ") {
					t.Errorf("the log file has\n%s", text)
				}
			}},
	} {
		m.sub(test.dir+" "+test.kind, func(t *testing.T) {
			dir := filepath.Join("testdata/units", test.dir)
			unit, err := os.ReadFile(filepath.Join(dir, "flanneld.service"))
			m.must(err)
			m.write("/etc/systemd/system/flanneld.service", strings.Replace(string(unit), "Type=notify", "Type="+test.kind, 1))
			service := "flanneld"
			for from, to := range map[string]string{"sysconfig": "/etc/sysconfig/flanneld", "docker.service": "/etc/systemd/system/docker.service"} {
				if _, err := os.Stat(filepath.Join(dir, from)); err == nil {
					m.install(filepath.Join(dir, from), to, 0o644)
					if from == "docker.service" {
						service = "docker"
					}
				}
			}
			c.Prefix = test.prefix
			c.SetConfig(test.config)
			if test.before != nil {
				test.before(t)
			}
			m.run("systemctl", "daemon-reload")
			m.run("systemctl", "enable", "flanneld")
			m.run("systemctl", "start", service)
			if test.kind == "simple" {
				lab.Eventually(t, bootTime, "waiting for the subnet file", func() error { _, err := os.Stat(m.path(subnetFile)); return err })
			}
			if state := m.property("flanneld", "ActiveState"); state != "active" {
				t.Errorf("flanneld is %s", state)
			}
			if !m.exists(subnetFile) {
				t.Error("there is no subnet file")
			}
			if test.after != nil {
				test.after(t)
			}
			m.run("systemctl", "stop", service, "flanneld")
			m.run("systemctl", "disable", "flanneld")
			m.run("sh", "-c", "rm -rf /run/flannel; ip link delete docker0 2>/dev/null || true")
		})
	}
}

// Where the unit of an older daemon has made dockerd restart with each flanneld,
// the steps of README put ours in its place, and dockerd keeps its own options.
func TestUpgrade(t *testing.T) {
	l := lab.ForTest(t)
	s := l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
	c := cluster.New(l, s)
	c.SetConfig(vxlanConfig)
	m := newMachine(t, l.Host("vm", s))
	// A package has brought the unit, and what docker's needs beside it.
	m.install("testdata/units/dockeropts/flanneld.service", "/usr/lib/systemd/system/flanneld.service", 0o644)
	m.write("/usr/lib/systemd/system/docker.service.d/flannel.conf", "[Service]\nEnvironmentFile=-/run/flannel/docker\nExecStart=\nExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_NETWORK_OPTIONS\n")
	m.write("/etc/sysconfig/flanneld", fmt.Sprintf("FLANNEL_ETCD_ENDPOINTS=%q\nFLANNEL_ETCD_PREFIX=%q\nFLANNEL_OPTIONS=\"-iface=eth0\"\n", c.Etcd.Endpoint(), c.Prefix))
	m.write("/etc/sysconfig/docker-network", "DOCKER_NETWORK_OPTIONS=\"--log-level=warn\"\n")
	m.boot()
	m.run("systemctl", "enable", "flanneld")
	m.run("systemctl", "start", "docker")
	dockerFits(t, m)
	dockerd := m.property("docker", "MainPID")
	m.run("systemctl", "restart", "flanneld")
	m.dockerIsAnother(dockerd) // or there would be nothing to put right

	const unit = "/usr/local/lib/systemd/system/flanneld.service" // where make install puts it
	m.install("../flanneld.service", unit, 0o644)
	m.install("../docker-flannel.conf", "/etc/systemd/system/docker.service.d/flannel.conf", 0o644)
	for _, args := range [][]string{{"daemon-reload"}, {"reenable", "flanneld"}, {"restart", "flanneld"}, {"restart", "docker"}} {
		m.run(append([]string{"systemctl"}, args...)...)
	}
	if got := m.property("flanneld", "FragmentPath"); got != unit {
		t.Errorf("flanneld's unit is %s", got)
	}
	if got := m.property("docker", "Requires"); strings.Contains(got, "flanneld") {
		t.Errorf("dockerd still requires %s", got)
	}
	fits := func() {
		t.Helper()
		dockerFits(t, m)
		if args := m.read("/proc/" + m.property("docker", "MainPID") + "/cmdline"); !strings.Contains(args, "--log-level=warn\x00") {
			t.Errorf("dockerd has lost its own options, and was started as %q", args)
		}
	}
	fits()
	dockerd = m.property("docker", "MainPID")
	m.run("systemctl", "restart", "flanneld")
	m.dockerGoesOn(dockerd)
	fits()
}
