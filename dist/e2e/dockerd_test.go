//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// dockerTime is how long anything of dockerd may take that is done in a fraction
// of it on a machine that has nothing else to do.
const dockerTime = 40 * time.Second

// dockerHost is a host with a Debian of its own, in which a flanneld and a
// dockerd run and share the iptables program.
type dockerHost struct {
	*cluster.Node
	// Options are what dockerd is started with beside those of mk-docker-opts.sh.
	Options []string
	Dockerd *lab.Process

	t          *testing.T
	lab        *lab.Lab
	root       string
	cgroup     string // that the containers' cgroups are below
	containers map[string]*dockerContainer
}

// dockerContainer is a container that dockerd runs; the node is its namespace.
type dockerContainer struct {
	*lab.Node
	On  *dockerHost
	pid int
}

// newDockerHost adds a host on a segment, on which nothing runs yet.
func newDockerHost(t *testing.T, c *cluster.Cluster, name string, s *lab.Segment) *dockerHost {
	t.Helper()
	h := &dockerHost{
		Node: c.Node(name, s), t: t, lab: c.Lab, root: newMachineRoot(t), containers: map[string]*dockerContainer{},
		cgroup: newCgroupName(),
	}
	h.Under = []string{"chroot", h.root}
	t.Cleanup(h.end)
	return h
}

// end takes away what would outlive the lab or be in its way. Containers are
// killed rather than stopped: that also works when dockerd does not.
func (h *dockerHost) end() {
	if h.t.Failed() {
		h.dump()
	}
	if h.Dockerd != nil {
		h.Dockerd.Kill() // first, or it starts containers again
	}
	// The hierarchies of cgroups of version 1, of both, or of version 2.
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		roots, err := filepath.Glob(pattern)
		h.lab.Must(err)
		sweepCgroups(roots...)
		for _, root := range roots {
			dirs = append(dirs, filepath.Join(root, h.cgroup))
		}
	}
	if err := endCgroups(dirs...); err != nil {
		h.t.Errorf("ending the containers of %v: %v", h, err)
	}
}

// dump prints what the lab's own dump lacks or comes too late for.
func (h *dockerHost) dump() {
	for _, argv := range [][]string{
		{"chroot", h.root, "iptables-save", "-c"},
		{"chroot", h.root, "docker", "-H", h.socket(), "ps", "-a"},
		{"tail", "-n", "60", "dockerd.log"},
	} {
		out, err := h.Exec(argv...)
		if err != nil {
			out = err.Error()
		}
		h.t.Logf("--- %s: %s\n%s", h.Name, strings.Join(argv, " "), out)
	}
}

// UseLegacy makes both programs use iptables-legacy, as an operator does it.
func (h *dockerHost) UseLegacy() {
	h.t.Helper()
	h.Run("chroot", h.root, "update-alternatives", "--set", "iptables", "/usr/sbin/iptables-legacy")
}

// IPTables runs iptables as the host has it.
func (h *dockerHost) IPTables(args ...string) string {
	h.t.Helper()
	return h.Run(append([]string{"chroot", h.root, "iptables", "-w"}, args...)...)
}

// WriteDockerOptions makes the file for dockerd's start out of flanneld's subnet
// file, as the unit does when flanneld is ready.
func (h *dockerHost) WriteDockerOptions() {
	h.t.Helper()
	h.Run("sh", h.script("mk-docker-opts.sh"), "-f", h.SubnetFile(), "-k", "DOCKER_NETWORK_OPTIONS", "-d", h.optionsFile())
}

func (h *dockerHost) optionsFile() string { return filepath.Join(h.Dir, "docker") }

// script is the path of a script of dist/.
func (h *dockerHost) script(name string) string {
	path, err := filepath.Abs(filepath.Join("..", name))
	h.lab.Must(err)
	return path
}

// StartDockerd starts dockerd with what is in the options file, if there is one.
func (h *dockerHost) StartDockerd() {
	h.t.Helper()
	h.Dockerd = h.StartProgram(lab.Program{Name: "dockerd", Args: append([]string{"chroot", h.root, "sh", "-c",
		// What systemd does with EnvironmentFile=- and $DOCKER_NETWORK_OPTIONS.
		`if [ -e "$0" ]; then . "$0"; fi; exec dockerd "$@" $DOCKER_NETWORK_OPTIONS`, h.optionsFile(),
		"--data-root=" + filepath.Join(h.Dir, "data"), "-H", h.socket(),
		// The hierarchies of cgroups are the machine's: no lab is around them.
		"--cgroup-parent=/" + h.cgroup, "--exec-opt=native.cgroupdriver=cgroupfs",
		"--log-level=warn", // what is said at level info fills pages at each start
	}, h.Options...)})
}

func (h *dockerHost) socket() string { return "unix://" + filepath.Join(h.Dir, "docker.sock") }

// AwaitDockerd waits until dockerd serves.
func (h *dockerHost) AwaitDockerd() {
	h.t.Helper()
	lab.Eventually(h.t, dockerTime, "dockerd serves on "+h.String(), func() error {
		if !h.Dockerd.Running() {
			h.t.Fatalf("%v ended before it served; its log is\n%s", h.Dockerd, h.Dockerd.Log())
		}
		_, err := h.Docker("version")
		return err
	})
}

// StopDockerd stops dockerd as systemd would.
func (h *dockerHost) StopDockerd() error {
	status, err := h.Dockerd.Stop(syscall.SIGTERM, dockerTime)
	if err == nil && status != 0 {
		err = fmt.Errorf("%v stopped with exit status %d", h.Dockerd, status)
	}
	return err
}

// Docker runs the client.
func (h *dockerHost) Docker(args ...string) (string, error) {
	return h.Exec(append([]string{"chroot", h.root, "docker", "-H", h.socket()}, args...)...)
}

// ImportImage gives dockerd its one image, in which there is busybox only.
func (h *dockerHost) ImportImage() error {
	_, err := h.Exec("chroot", h.root, "sh", "-c", `tar -C /usr/bin -c busybox | docker -H "$0" import - box`, h.socket())
	return err
}

// Create runs a container that is an askable server; options are of docker run.
func (h *dockerHost) Create(name string, options ...string) error {
	_, err := h.Docker(slices.Concat(
		// Process 1 of a container takes no notice of the usual signal.
		[]string{"run", "-d", "--name", name, "--restart=always", "--stop-signal=KILL"}, options,
		[]string{"box"}, serve,
	)...)
	return err
}

// Container is a container as it is now, once it serves. After a restart it may
// be in another namespace and have another address.
func (h *dockerHost) Container(name string) *dockerContainer {
	h.t.Helper()
	c := &dockerContainer{On: h}
	lab.Eventually(h.t, dockerTime, fmt.Sprintf("container %s on %v runs", name, h), func() error {
		out, err := h.Docker("inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", name)
		if err != nil {
			return err
		}
		pid, ip, _ := strings.Cut(out, " ")
		var numberErr error
		c.pid, numberErr = strconv.Atoi(pid)
		addr, addrErr := netip.ParseAddr(ip)
		if err := errors.Join(numberErr, addrErr); err != nil || c.pid == 0 {
			return fmt.Errorf("docker inspect says %q", out)
		}
		if old := h.containers[name]; old != nil {
			if old.pid == c.pid {
				c = old
				return nil
			}
			h.lab.Release(old.Node)
			delete(h.containers, name)
		}
		// An error is a container that was restarted just now.
		if c.Node, err = h.lab.Adopt(h.Name+"-"+name, c.pid, addr); err != nil {
			return err
		}
		h.containers[name] = c
		return nil
	})
	lab.Eventually(h.t, dockerTime, fmt.Sprintf("container %s on %v serves", name, h), func() error {
		for _, port := range []uint16{serverPort, webPort} {
			if _, err := ask(h.Host.Node, netip.AddrPortFrom(c.Addr(), port)); err != nil {
				return err
			}
		}
		return nil
	})
	return c
}

// String is the container as messages name it.
func (c *dockerContainer) String() string { return fmt.Sprintf("container %s (%v)", c.Name, c.Addr()) }
