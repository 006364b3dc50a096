//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// bootTime is how long a machine may take to boot. It needs half a second on an
// idle machine; the rest is for busy ones.
const bootTime = time.Minute

// reactionTime is how long systemd and the daemons may take for what they do by
// themselves; on an idle machine most of it takes no time.
const reactionTime = time.Minute

// A machine is Debian with systemd and all, booted in the network namespace of a
// host of the lab by systemd-nspawn. It goes with the test.
type machine struct {
	*lab.Host
	t      *testing.T
	root   string // where its files are before it is booted
	leader string // the process that is its first
}

// newMachine makes a machine that is not booted yet, so that files can be put
// into it: flanneld and its scripts are there, as every unit expects them. No
// service that is installed starts by itself.
func newMachine(t *testing.T, h *lab.Host) *machine {
	t.Helper()
	m := &machine{Host: h, t: t, root: newRoot(t)}
	wants, err := filepath.Glob(m.path("/etc/systemd/system/*.wants"))
	m.must(err)
	for _, dir := range wants {
		m.must(os.RemoveAll(dir))
	}
	m.install(lab.Binary("flanneld"), "/usr/bin/flanneld", 0o755)
	m.install("../mk-docker-opts.sh", "/usr/bin/mk-docker-opts.sh", 0o755)
	m.install("../remove-docker0.sh", "/usr/bin/remove-docker0.sh", 0o755)
	// docker.service calls kill by its path, and the tree does without procps.
	m.must(os.Symlink("busybox", m.path("/usr/bin/kill")))
	return m
}

// boot returns when all that is to be started at boot is. The machine may do
// what a real one may, in its own network above all, where systemd-nspawn would
// leave the kernel's settings read-only.
func (m *machine) boot() {
	t := m.t
	t.Helper()
	// What is left in the groups is killed with them.
	groups := newCgroups(t)
	enter := `for group; do echo $$ >"$group/cgroup.procs"; done; exec systemd-nspawn $NSPAWN`
	nspawn := []string{"--quiet", "--boot", "--directory=" + m.root, "--network-namespace-path=/run/netns/" + m.Name,
		"--capability=all", "--bind=/dev/net/tun", "--register=no", "--keep-unit", "--console=pipe", "--link-journal=no",
		"--notify-ready=yes"}
	p := m.StartProgram(lab.Program{Name: "machine", Notify: true, Args: append([]string{"sh", "-ec", enter, "sh"}, groups...),
		Env: []string{"NSPAWN=" + strings.Join(nspawn, " "), "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network"}})
	t.Cleanup(func() {
		if t.Failed() && m.leader != "" {
			t.Logf("the journal of %s:\n%s", m.Name, m.journal("-b", "-n", "200"))
		}
		p.Kill()
	})
	m.must(p.WaitReady(bootTime))
	for _, line := range p.Notified() {
		if pid, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
			m.leader = pid
		}
	}
	if m.leader == "" {
		t.Fatalf("systemd-nspawn does not say which process is the machine's first, but %q", p.Notified())
	}
	m.run("systemctl", "is-system-running", "--wait")
}

// newCgroups makes a cgroup for one machine in each hierarchy that systemd wants
// to be in: with cgroup v2, v1, or both. They go, with all that systemd makes
// below, when the test ends; nothing but that takes them away.
func newCgroups(t *testing.T) (dirs []string) {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	// systemd-nspawn takes for granted that it is in the same group everywhere.
	name := newCgroupName()
	for lines := bufio.NewScanner(strings.NewReader(string(own))); lines.Scan(); {
		// cgroups(7): hierarchy, controllers, path.
		fields := strings.SplitN(lines.Text(), ":", 3)
		var roots []string
		switch {
		case fields[0] == "0":
			roots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}
		case fields[1] == "name=systemd":
			roots = []string{"/sys/fs/cgroup/systemd"}
		}
		for _, root := range roots {
			parent := filepath.Join(root, fields[2])
			if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
				continue // this is where the other kind of machine has it
			}
			sweepCgroups(parent)
			dir := filepath.Join(parent, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatalf("making a cgroup for a machine: %v", err)
			}
			t.Cleanup(func() {
				// A machine outlives the systemd-nspawn that has booted it.
				if err := endCgroups(dir); err != nil {
					t.Error(err)
				}
			})
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		t.Fatalf("no cgroup hierarchy of systemd's is below /sys/fs/cgroup, and this process is in\n%s", own)
	}
	return dirs
}

// sub runs a part of the test, which is what fails while it runs.
func (m *machine) sub(name string, part func(t *testing.T)) {
	whole := m.t
	defer func() { m.t = whole }()
	whole.Run(name, func(t *testing.T) {
		m.t = t
		part(t)
	})
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", m.Name, err)
	}
}

// path is where the test finds a file of the machine.
func (m *machine) path(name string) string {
	if m.leader == "" {
		return filepath.Join(m.root, name)
	}
	return filepath.Join("/proc", m.leader, "root", name)
}

// install copies a file into the machine.
func (m *machine) install(from, to string, mode os.FileMode) {
	m.t.Helper()
	text, err := os.ReadFile(from)
	m.must(err)
	m.write(to, string(text))
	m.must(os.Chmod(m.path(to), mode))
}

// write writes a file of the machine, and makes its directory.
func (m *machine) write(name, text string) {
	m.t.Helper()
	m.must(os.MkdirAll(filepath.Dir(m.path(name)), 0o755))
	m.must(os.WriteFile(m.path(name), []byte(text), 0o644))
}

// read reads a file of the machine.
func (m *machine) read(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(m.path(name))
	m.must(err)
	return string(text)
}

func (m *machine) exists(name string) bool {
	_, err := os.Lstat(m.path(name))
	return err == nil
}

// exec runs a command in the machine, as one who is logged in there does.
func (m *machine) exec(argv ...string) (string, error) {
	return m.Exec(append([]string{"nsenter", "--target=" + m.leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"}, argv...)...)
}

// run is exec for commands that have to work.
func (m *machine) run(argv ...string) string {
	m.t.Helper()
	out, err := m.exec(argv...)
	m.must(err)
	return out
}

// journal is what journalctl prints with these arguments.
func (m *machine) journal(args ...string) string {
	out, err := m.exec(append([]string{"journalctl", "--no-pager", "--quiet"}, args...)...)
	if err != nil {
		return err.Error()
	}
	return out
}

// property is one of those that systemctl show prints.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--property="+name, "--value", unit)
}

// await waits until a property of a unit matches a regular expression.
func (m *machine) await(unit, name, pattern string) {
	m.t.Helper()
	re := regexp.MustCompile("^(?:" + pattern + ")$")
	lab.Eventually(m.t, reactionTime, fmt.Sprintf("waiting for %s of %s", name, unit), func() error {
		if got := m.property(unit, name); !re.MatchString(got) {
			return fmt.Errorf("it is %q and not %q", got, pattern)
		}
		return nil
	})
}

// said waits until the journal of a unit matches a regular expression.
func (m *machine) said(unit, pattern string) {
	m.t.Helper()
	re := regexp.MustCompile(pattern)
	lab.Eventually(m.t, reactionTime, fmt.Sprintf("waiting for %q in the journal of %s", pattern, unit), func() error {
		if text := m.journal("-u", unit); !re.MatchString(text) {
			return fmt.Errorf("it has\n%s", text)
		}
		return nil
	})
}

// monotonic is a property that is a time since the machine of all machines was
// booted; 0 if it has not come.
func (m *machine) monotonic(unit, name string) time.Duration {
	m.t.Helper()
	µs, err := strconv.ParseInt(m.property(unit, name), 10, 64)
	m.must(err)
	return time.Duration(µs) * time.Microsecond
}

// dropIn gives a service a further setting, as systemctl edit does.
func (m *machine) dropIn(unit, setting string) {
	m.t.Helper()
	m.write("/etc/systemd/system/"+unit+".service.d/test.conf", "[Service]\n"+setting+"\n")
	m.run("systemctl", "daemon-reload")
}
