//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
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

// patience is for what takes a moment on a machine with nothing else to do.
const patience = time.Minute

// A supervised host is one with a supervisord that starts flanneld there.
type supervised struct {
	*lab.Host
	t       *testing.T
	root    string
	program string // flanneld's, by supervisord's name
	log     string // flanneld's
}

// supervise makes a root with flanneld and the files given, and starts Debian's
// supervisord in it.
func supervise(t *testing.T, h *lab.Host, program, log string, files map[string]string) *supervised {
	t.Helper()
	s := &supervised{h, t, newMachineRoot(t), program, log}
	for name, text := range files {
		s.write(name, text)
	}
	h.StartProgram(lab.Program{Name: "supervisord", Args: []string{"chroot", s.root, "supervisord", "--nodaemon", "--configuration=/etc/supervisor/supervisord.conf"}})
	return s
}

func (s *supervised) path(name string) string { return filepath.Join(s.root, name) }

// write writes a file, which others may execute if it is a program.
func (s *supervised) write(name, text string) {
	s.t.Helper()
	err := os.MkdirAll(filepath.Dir(s.path(name)), 0o755)
	if err == nil {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") || strings.HasPrefix(text, "\x7fELF") {
			mode = 0o755
		}
		err = os.WriteFile(s.path(name), []byte(text), mode)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// read is what a file says, empty while it is not there.
func (s *supervised) read(name string) string {
	b, err := os.ReadFile(s.path(name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	return string(b)
}

// says waits until flanneld's log has a text so many times.
func (s *supervised) says(text string, times int) {
	s.t.Helper()
	lab.Eventually(s.t, patience, fmt.Sprintf("%q in the log on %s", text, s.Name), func() error {
		if n := strings.Count(s.read(s.log), text); n != times {
			return fmt.Errorf("it is there %d times and not %d:\n%s", n, times, s.read(s.log))
		}
		return nil
	})
}

// ctl is supervisorctl, whose status is not 0 for much that is not wrong.
func (s *supervised) ctl(args ...string) string {
	out, _ := s.Exec(append([]string{"chroot", s.root, "supervisorctl"}, args...)...)
	return out
}

// supervisorLog is supervisord's own.
const supervisorLog = "/var/log/supervisor/supervisord.log"

// is waits until supervisorctl status says so, and returns the process's number,
// which is there if it runs.
func (s *supervised) is(state string) (pid string) {
	s.t.Helper()
	said := map[string]string{"RUNNING": "success: " + s.program + " entered RUNNING", "STOPPED": "stopped: " + s.program}[state]
	lab.Eventually(s.t, patience, fmt.Sprintf("%s on %s is %s", s.program, s.Name, state), func() error {
		// Asking takes a busy machine's time, so that its log is looked at first.
		last := ""
		for line := range strings.Lines(s.read(supervisorLog)) {
			if strings.Contains(line, ": "+s.program+" ") || strings.Contains(line, "'"+s.program+"'") {
				last = line
			}
		}
		if !strings.Contains(last, said) {
			return errors.New(last)
		}
		out := s.ctl("status", s.program)
		if !strings.Contains(out, " "+state+" ") {
			return errors.New(out)
		}
		if m := regexp.MustCompile(`pid (\d+)`).FindStringSubmatch(out); m != nil {
			pid = m[1]
		}
		return nil
	})
	return pid
}

// daemons are the flannelds that run on the host.
func (s *supervised) daemons() (pids []string) {
	s.t.Helper()
	for _, pid := range strings.Fields(s.Run("ip", "netns", "pids", s.Name)) {
		name, _ := os.ReadFile("/proc/" + pid + "/comm") // it may have ended
		if strings.TrimSpace(string(name)) == "flanneld" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stops stops flanneld by supervisorctl, and checks that it is gone, by itself.
func (s *supervised) stops() {
	s.t.Helper()
	if out := s.ctl("stop", s.program); !strings.Contains(out, "stopped") {
		s.t.Errorf("supervisorctl stop says: %s", out)
	}
	s.is("STOPPED")
	// Below a script that has ended first, it is no longer supervisord's to wait for.
	lab.Eventually(s.t, 5*time.Second, "flanneld on "+s.Name+" is gone", func() error {
		if pids := s.daemons(); len(pids) > 0 {
			return fmt.Errorf("there is %v", pids)
		}
		return nil
	})
	// Which is what supervisord does after stopwaitsecs.
	if log := s.read(supervisorLog); strings.Contains(log, "SIGKILL") {
		s.t.Errorf("it was killed:\n%s", log)
	}
}

// leaseOf is the key of a host's lease, empty if it has none.
func leaseOf(c *cluster.Cluster, addr netip.Addr) string {
	for key, l := range c.Leases() {
		if strings.Contains(l.Value, `"`+addr.String()+`"`) {
			return key
		}
	}
	return ""
}

func distFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// replaced replaces what has to be there.
func replaced(t *testing.T, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("there is no %q in\n%s", old, text)
	}
	return strings.ReplaceAll(text, old, new)
}

// The program and the script of the field: the script does not exec flanneld, which
// has its files beside it.
const (
	fieldIni = `[program:flanneld-7-21]
command=/opt/flannel/flanneld.sh
numprocs=1
directory=/opt/flannel
autostart=true
autorestart=true
startsecs=30
startretries=3
exitcodes=0,2
stopsignal=QUIT
stopwaitsecs=10
user=root
redirect_stderr=true
stdout_logfile=/data/logs/flanneld/flanneld.stdout.log
stdout_logfile_maxbytes=64MB
stdout_logfile_backups=4
stdout_capture_maxbytes=1MB
stdout_events_enabled=false
killasgroup=true
stopasgroup=true
`
	fieldScript = `#!/bin/sh
./flanneld \
  --public-ip=10.4.7.21 \
  --etcd-endpoints=https://10.4.7.12:2379,https://10.4.7.21:2379,https://10.4.7.22:2379 \
  --etcd-keyfile=./cert/client-key.pem \
  --etcd-certfile=./cert/client.pem \
  --etcd-cafile=./cert/ca.pem \
  --iface=eth0 \
  --subnet-file=./subnet.env \
  --healthz-port=2401
`
	handWritten = `FLANNEL_NETWORK=172.7.0.0/16
FLANNEL_SUBNET=172.7.%d.1/24
FLANNEL_MTU=1500
FLANNEL_IPMASQ=false
`
)

// Real supervisords start flanneld on two hosts, with an etcd of three members that
// wants certificates: on the first with the program and script of the field, on the
// second with those of dist/, both with a subnet file that was written by hand.
// They are stopped and started, and the containers do not notice; the lease that is
// another's is a new one after supervisord has started flanneld again.
func TestSupervisor(t *testing.T) {
	l := lab.ForTest(t)
	seg := l.Segment("a", netip.MustParsePrefix("10.4.7.0/24"))
	ca, err := lab.NewCA("ca")
	l.Must(err)
	var hosts []*lab.Host
	for _, n := range []byte{12, 21, 22} {
		hosts = append(hosts, l.Host(fmt.Sprintf("h%d", n), seg, netip.AddrFrom4([4]byte{10, 4, 7, n})))
	}
	c := cluster.On(l, lab.StartEtcdTLS(ca, hosts...)...)
	c.SetConfig(`{"Network": "172.7.0.0/16", "Backend": {"Type": "host-gw"}}`)

	binary, err := os.ReadFile(lab.Binary("flanneld"))
	l.Must(err)
	certs := func(dir string, files map[string]string) map[string]string {
		t.Helper()
		cert, err := ca.Issue("client", time.Now().Add(time.Hour))
		l.Must(err)
		files[dir+"/ca.pem"], files[dir+"/client.pem"], files[dir+"/client-key.pem"] = string(ca.PEM), string(cert.Cert), string(cert.Key)
		return files
	}

	field := supervise(t, hosts[1], "flanneld-7-21", "/data/logs/flanneld/flanneld.stdout.log", certs("/opt/flannel/cert", map[string]string{
		"/etc/supervisor/conf.d/flanneld.conf": fieldIni,
		"/opt/flannel/flanneld.sh":             fieldScript,
		"/opt/flannel/flanneld":                string(binary),
		"/opt/flannel/subnet.env":              fmt.Sprintf(handWritten, 21),
		"/data/logs/flanneld/.keep":            "",
	}))

	// dist/'s, with dockerd's program in it, and where there is a dockerd that only
	// says how it was started; and not 30 s until it counts as running.
	ini := distFile(t, "supervisor/flanneld.ini")
	ini = replaced(t, ini, "\nstartsecs=30\n", "\nstartsecs=3\n")
	before, docker, ok := strings.Cut(ini, "\n;[program:dockerd]")
	if !ok {
		t.Fatal("there is no program of dockerd")
	}
	docker, after, _ := strings.Cut(docker, "\n;\n")
	ini = before + "\n[program:dockerd]" + strings.ReplaceAll(docker, "\n;", "\n") + "\n;\n" + after
	dist := supervise(t, hosts[2], "flanneld", "/var/log/supervisor/flanneld.log", certs("/etc/etcd", map[string]string{
		"/etc/supervisor/conf.d/flanneld.conf": ini,
		"/usr/bin/flanneld-start.sh":           distFile(t, "supervisor/flanneld-start.sh"),
		"/usr/bin/flanneld":                    string(binary),
		"/usr/bin/mk-docker-opts.sh":           distFile(t, "mk-docker-opts.sh"),
		"/usr/local/bin/dockerd":               "#!/bin/sh\necho \"$@\" >/dockerd.args\nexec sleep 1000000\n",
		"/run/flannel/subnet.env":              fmt.Sprintf(handWritten, 22),
		"/etc/sysconfig/flanneld":              "# not what the other file says\nFLANNEL_ETCD_ENDPOINTS=http://127.0.0.1:1\nFLANNEL_ETCD_PREFIX=" + c.Prefix + "/\n",
		"/etc/default/flanneld": strings.Join([]string{"", "# Settings", "FLANNELD_HEALTHZ_PORT='2401'",
			"FLANNEL_ETCD_ENDPOINTS=https://10.4.7.12:2379,https://10.4.7.21:2379,https://10.4.7.22:2379",
			`FLANNEL_OPTIONS="-iface=eth0 -etcd-cafile=/etc/etcd/ca.pem -etcd-certfile=/etc/etcd/client.pem -etcd-keyfile=/etc/etcd/client-key.pem"`}, "\n"), // no end of line
	}))

	ready := func(s *supervised, subnet string, times int) {
		t.Helper()
		s.says("Ready: "+subnet+" through host-gw, MTU 1500", times)
	}
	ready(field, "172.7.21.0/24", 1)
	ready(dist, "172.7.22.0/24", 1)
	c21 := field.Container("c", netip.MustParsePrefix("172.7.21.1/24"), 1500)
	c22 := dist.Container("c", netip.MustParsePrefix("172.7.22.1/24"), 1500)
	lab.EventuallyPing(t, patience, c21, c22.Addr(), lab.Echo{})
	lossless := pingAllTheWhile(t, c21, c22.Addr())

	pid := dist.is("RUNNING")
	if pids := dist.daemons(); len(pids) != 1 || pids[0] != pid {
		t.Errorf("what supervisord started is %s, and flanneld is %v", pid, pids)
	}
	healthy(t, dist.Host)
	lab.Eventually(t, patience, "dockerd's options", func() error {
		if args := dist.read("/dockerd.args"); args != "--bip=172.7.22.1/24 --ip-masq=true --mtu=1500\n" {
			return fmt.Errorf("they are %q", args)
		}
		return nil
	})

	dist.stops()
	dist.says("Stopped; a lease stays", 1) // in good order, and that is in the log
	dist.ctl("start", "flanneld")
	ready(dist, "172.7.22.0/24", 2)
	dist.is("RUNNING")
	dist.ctl("restart", "flanneld")
	ready(dist, "172.7.22.0/24", 3)
	dist.says("Stopped; a lease stays", 2)

	// The field's is there for 30 s by now, or soon.
	field.is("RUNNING")
	healthy(t, field.Host)
	field.stops()
	// This waits for startsecs, which the test need not.
	field.Start("supervisorctl", "chroot", field.root, "supervisorctl", "start", field.program)
	ready(field, "172.7.21.0/24", 2)
	lossless()

	pid = dist.is("RUNNING")
	// Somebody else has the second host's subnet.
	c.PutLease("172.7.22.0-24", `{"PublicIP":"10.4.7.99","BackendType":"host-gw"}`, time.Hour)
	lab.Eventually(t, patience, "another lease of the second host", func() error {
		if key := leaseOf(c, dist.Addr()); key == "" || key == "172.7.22.0-24" {
			return fmt.Errorf("it has %q", key)
		}
		return nil
	})
	if newPid := dist.is("RUNNING"); newPid == pid {
		t.Error("it is the same process")
	}
	dist.says("Stopping: ", 1)
	if log := dist.read(supervisorLog); !strings.Contains(log, "exited: flanneld (exit status 1; not expected)") {
		t.Errorf("supervisord says\n%s", log)
	}
	ready(dist, strings.ReplaceAll(leaseOf(c, dist.Addr()), "-", "/"), 1)
}

// The start script makes of the files of settings what systemd would, under every
// shell; what it cannot read is wrong usage, and is not shown.
func TestStartScript(t *testing.T) {
	const start = "/usr/bin/flanneld-start.sh"
	root := newRoot(t)
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		name = filepath.Join(root, name)
		if text == "" {
			os.Remove(name)
			return
		}
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil {
			err = os.WriteFile(name, []byte(text), mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(start, distFile(t, "supervisor/flanneld-start.sh"), 0o755)
	write("/usr/bin/flanneld", "#!/bin/sh\nprintf '<%s>\\n' \"$@\" \"${FLANNELD_ETCD_PASSWORD-none}\"\n", 0o755)
	defaults := []string{"-etcd-endpoints=http://127.0.0.1:4001,http://127.0.0.1:2379", "-etcd-prefix=/coreos.com/network"}

	for _, test := range []struct {
		name, sysconfig, defaults string
		want                      []string // what flanneld gets, and the password
		wrong                     string
	}{
		{name: "no settings", want: append(slices.Clone(defaults), "none")},
		{name: "the sample", sysconfig: distFile(t, "flanneld.env"), want: append(slices.Clone(defaults), "none")},
		{name: "as they are written", sysconfig: "FLANNEL_ETCD_PREFIX=/a\nFLANNEL_ETCD_ENDPOINTS='http://a,http://b'  \n",
			defaults: "; another\n  # and another\n\nFLANNEL_ETCD_PREFIX=\"/b\"\nFLANNEL_OPTIONS=-iface=eth0  -iface-regex=^10[.]* -log_dir /et[c]\nFLANNELD_ETCD_PASSWORD=\"a $b `c` \\d = e\"\nPATH=/nowhere\nn=x",
			want:     []string{"-etcd-endpoints=http://a,http://b", "-etcd-prefix=/b", "-iface=eth0", "-iface-regex=^10[.]*", "-log_dir", "/et[c]", "a $b `c` \\d = e"}},
		{name: "lines that go on", sysconfig: "FLANNEL_OPTIONS=\"-iface=eth0 \\\n  -ip-masq=true \\\n-v=1\"\nFLANNEL_ETCD_PREFIX=/a\n# a comment \\\nthat goes on\n",
			defaults: "FLANNELD_ETCD_PASSWORD=x\\",
			want:     []string{defaults[0], "-etcd-prefix=/a", "-iface=eth0", "-ip-masq=true", "-v=1", "x\\"}},
		{name: "for a shell", sysconfig: "export FLANNEL_ETCD_PREFIX=/a\n  export FLANNELD_ETCD_PASSWORD='a b'\nexport PATH=/nowhere\n", want: []string{defaults[0], "-etcd-prefix=/a", "a b"}},
		{name: "wrong after lines that go on", sysconfig: "FLANNEL_OPTIONS=-v=1 \\\n-iface=eth0\nopen-sesame\n", wrong: "flanneld-start.sh: reading the settings in /etc/sysconfig/flanneld: line 3 is not NAME=VALUE\n"},
		{name: "no name", sysconfig: "FLANNEL_OPTIONS=\nopen-sesame\n", wrong: "flanneld-start.sh: reading the settings in /etc/sysconfig/flanneld: line 2 is not NAME=VALUE\n"},
		{name: "a wrong name", defaults: "open-sesame=1\n", wrong: "flanneld-start.sh: reading the settings in /etc/default/flanneld: line 1 does not begin with a name and =\n"},
	} {
		write("/etc/sysconfig/flanneld", test.sysconfig, 0o644)
		write("/etc/default/flanneld", test.defaults, 0o644)
		for _, shell := range [][]string{nil, {"dash"}, {"bash"}, {"bash", "--posix"}, {"busybox", "sh"}} {
			cmd := exec.Command("chroot", slices.Concat([]string{root}, shell, []string{start})...)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
			out, err := cmd.CombinedOutput()
			want, status := "<"+strings.Join(test.want, ">\n<")+">\n", 0
			if test.wrong != "" {
				want, status = test.wrong, 2
			}
			if string(out) != want || cmd.ProcessState.ExitCode() != status {
				t.Errorf("%s, %s: %v after\n%swant status %d after\n%s", test.name, shell, err, out, status, want)
			}
		}
	}
}

// healthy checks that /healthz says so.
func healthy(t *testing.T, h *lab.Host) {
	t.Helper()
	lab.Eventually(t, patience, "/healthz on "+h.Name, func() error {
		resp, err := h.HTTP().Get(fmt.Sprintf("http://%v:2401/healthz", h.Addr()))
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}
