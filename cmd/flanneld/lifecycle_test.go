package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

const vxlanConfig = `{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`

// READY comes when the subnet file is there and the peers are programmed, and
// not before; the other states are told too.
func TestNotify(t *testing.T) {
	c, s := newCluster(t)
	// So many that programming them takes some time.
	const peers = 2000
	for i := range peers {
		c.PutLease(fmt.Sprintf("10.1.%d.%d-28", 64+i/16, i%16*16), fmt.Sprintf(`{"PublicIP":"172.31.%d.%d","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:%02x:%02x"}}`, i/200, i%200+1, i/200, i%200), time.Hour)
	}
	h := c.Node("h1", s)
	h.Start()
	c.Must(h.Daemon.WaitNotify("STATUS=Waiting for the network config", time.Minute))
	if slices.Contains(h.Daemon.Notified(), "READY=1") {
		t.Error("READY=1 without a config")
	}
	c.SetConfig(`{"Network": "10.1.0.0/16", "SubnetLen": 28, "Backend": {"Type": "vxlan"}}`)
	h.AwaitReady()
	if n := strings.Count(h.Routes(), "flannel.1"); n != peers {
		t.Errorf("at READY=1 there are %d routes for %d peers", n, peers)
	}
	if h.Env().MTU != 1450 {
		t.Error("at READY=1 the subnet file is not there")
	}
	h.Stop()
	if all := h.Daemon.Notified(); all[len(all)-1] != "STOPPING=1" {
		t.Errorf("told %q", all)
	}
}

// Each of the signals that service managers use stops it cleanly, whatever it
// is doing, and leaves everything in place.
func TestSignals(t *testing.T) {
	c, s := newCluster(t)
	waiting := c.Node("waiting", s)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT} {
		waiting.Start() // without a config it waits
		c.Must(waiting.Daemon.WaitLog("no network config yet", time.Minute))
		if status, err := waiting.Daemon.Stop(sig, 5*time.Second); status != 0 || err != nil {
			t.Errorf("%v while waiting: exit status %d, %v", sig, status, err)
		}
	}
	c.SetConfig(vxlanConfig)
	h1, c1 := join(c, s, 1)
	h2, c2 := join(c, s, 2)
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
	before := func() string {
		return strings.Join([]string{h1.Routes(), h1.Neighbours(), h1.FDB("flannel.1"), h1.Run("ip", "-d", "link", "show", "flannel.1"), h1.Run("iptables", "-S"), h1.Run("iptables", "-t", "nat", "-S")}, "\n")
	}
	want := before()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		if status, err := h1.Daemon.Stop(sig, 5*time.Second); err != nil || status != 0 && sig != syscall.SIGKILL {
			t.Errorf("%v: exit status %d, %v", sig, status, err)
		}
		if got := before(); got != want {
			t.Errorf("%v: the kernel has\n%s\nwant\n%s", sig, got, want)
		}
		if _, err := c1.Ping(c2.Addr(), lab.Echo{}); err != nil {
			t.Errorf("after %v: %v", sig, err)
		}
		h1.Start()
		h1.AwaitReady()
		if h1.Env().Subnet().String() != "10.1.1.0/24" {
			t.Errorf("after %v the subnet is %v", sig, h1.Env().Subnet())
		}
		if got := before(); got != want {
			t.Errorf("after %v and a start the kernel has\n%s\nwant\n%s", sig, got, want)
		}
	}
	if !strings.Contains(h2.Daemon.Log(), "Ready") || strings.Count(h2.Daemon.Log(), "\n") > 20 {
		t.Errorf("the other host's log is long:\n%s", h2.Daemon.Log())
	}
}

// What the first signal does not end, as it waits for somebody else, the second does.
func TestSecondSignal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd := int(w.Fd())
	err = syscall.SetNonblock(fd, true)
	for err == nil {
		_, err = syscall.Write(fd, make([]byte, 4096))
	}
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	p := exec.Command(lab.Binary("flanneld"), "--version")
	p.Stdout = w // which nobody reads
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	defer p.Process.Kill()
	lab.Eventually(t, startBound, "a program that waits", func() error {
		calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", p.Process.Pid))
		for _, call := range calls {
			if text, _ := os.ReadFile(call); strings.HasPrefix(string(text), fmt.Sprintf("%d 0x1 ", syscall.SYS_WRITE)) {
				return nil
			}
		}
		return errors.New("it does not write")
	})
	lab.Eventually(t, mending, "the second signal", func() error {
		select {
		case err := <-ended:
			if err == nil || err.Error() != "signal: terminated" {
				t.Errorf("it ended with %v", err)
			}
			return nil
		default:
			_ = p.Process.Signal(syscall.SIGTERM)
			return errors.New("it goes on")
		}
	})
}

// A watchdog ends a daemon that hangs by SIGABRT, and a panic ends as that does.
// Its status is to be another than that of bad usage, after which a service
// manager starts it no more; and where it hung is to be seen, in the log and not in
// a core, which has the password in it.
func TestAborted(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	h.Start()
	c.Must(h.Daemon.WaitLog("no network config yet", time.Minute))
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", h.Daemon.Pid))
	c.Must(err)
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("it may leave a core:\n%s", limits)
	}
	status, err := h.Daemon.Stop(syscall.SIGABRT, time.Minute)
	c.Must(err)
	if status != 128+int(syscall.SIGABRT) {
		t.Errorf("exit status %d", status)
	}
	if !strings.Contains(h.Daemon.Log(), "network.(*node).acquire") && !strings.Contains(h.Daemon.Log(), "network.node.acquire") {
		t.Errorf("the log does not show where it was:\n%s", h.Daemon.Log())
	}
}

// What takes a lease's place without being one is in the way of that subnet and
// of nothing else.
func TestDirectoryForLease(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	c.PutLease("10.1.1.0-24/strange", "x", 0)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	h.Start()
	h.AwaitReady()
	if h.Env().Subnet().String() == "10.1.1.0/24" || !strings.Contains(h.Daemon.Log(), `"10.1.1.0-24", which cannot be read`) {
		t.Errorf("the subnet is %v; the log:\n%s", h.Env().Subnet(), h.Daemon.Log())
	}
}

// With --log_dir the log goes there as well as to stderr.
func TestLogDir(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h := c.Node("h1", s)
	dir := filepath.Join(h.Dir, "log", "flanneld")
	h.Start("-log_dir=" + dir)
	h.AwaitReady()
	h.Stop()
	text, err := os.ReadFile(filepath.Join(dir, "flanneld.INFO"))
	if err != nil || !strings.Contains(string(text), "Ready: ") || !strings.Contains(h.Daemon.Log(), "Ready: ") {
		t.Errorf("%v; the file has\n%s\nstderr has\n%s", err, text, h.Daemon.Log())
	}
}

// Without the subnet file dockerd must not start, so neither does flanneld.
func TestSubnetFile(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h := c.Node("h1", s)
	// Its directory is made if it is missing, and it is readable by all.
	file := filepath.Join(h.Dir, "new", "dir", "subnet.env")
	h.Start("--subnet-file="+file, "--ip-masq")
	h.AwaitReady()
	info, err := os.Stat(file)
	c.Must(err)
	if info.Mode() != 0o644 {
		t.Errorf("its mode is %v", info.Mode())
	}
	text, err := os.ReadFile(file)
	c.Must(err)
	if !strings.HasSuffix(string(text), "FLANNEL_IPMASQ=true\n") {
		t.Errorf("it says %s", text)
	}
	h.Stop()
	left, err := os.ReadDir(filepath.Dir(file))
	c.Must(err)
	for _, e := range left {
		if !slices.Contains([]string{"subnet.env", "subnet.env.lease"}, e.Name()) {
			t.Errorf("%s was left behind", e.Name())
		}
	}

	c.Must(writeFile(filepath.Join(h.Dir, "file"), ""))
	c.Must(os.Mkdir(filepath.Join(h.Dir, "directory"), 0o755))
	for _, name := range []string{"file/subnet.env", "directory"} {
		h.Start("--subnet-file=" + filepath.Join(h.Dir, name))
		status, err := h.Daemon.Wait(10 * time.Second)
		if err != nil || status != 1 || !strings.Contains(h.Daemon.Log(), "Stopping: writing the subnet file "+filepath.Join(h.Dir, name)+", without which dockerd must not start: ") {
			t.Errorf("%s: exit status %d, %v", name, status, err)
		}
		if slices.Contains(h.Daemon.Notified(), "READY=1") {
			t.Errorf("%s: READY=1 all the same", name)
		}
	}
	if _, err := os.Stat(h.SubnetFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another file was written: %v", err)
	}
}

// An interface or address that cannot be used is an error that says what there
// is instead.
func TestInterfaces(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	h := c.Node("h1", s)
	h.Run("ip", "link", "add", "bare", "type", "bridge")
	there := fmt.Sprintf("eth0 (%v)", h.Addr())
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--iface=", "--iface=eth7"}, "eth7"},
		{[]string{"--iface=bare"}, "bare"},
		{[]string{"--iface=10.9.9.9"}, "10.9.9.9"},
		{[]string{"--iface-regex=^wlan"}, "^wlan"},
	} {
		args := test.args
		h.Daemon = h.StartProgram(lab.Program{Name: "flanneld", Args: append([]string{
			lab.Binary("flanneld"), "--etcd-endpoints=" + c.Etcd.Endpoint(), "--subnet-file=" + h.SubnetFile()}, args...)})
		status, err := h.Daemon.Wait(10 * time.Second)
		log := h.Daemon.Log()
		if err != nil || status != 1 || !strings.Contains(log, test.want) || !strings.Contains(log, there) {
			t.Errorf("%v: exit status %d, %v, log\n%s", args, status, err, log)
		}
	}
	h.Start("--iface=lo", "--iface=") // after the lab's own --iface=eth0, which is first
	h.AwaitReady()
	h.Stop()
	h.Daemon = h.StartProgram(lab.Program{Name: "flanneld", Args: []string{lab.Binary("flanneld"), "--iface=lo", "--subnet-file=" + h.SubnetFile()}})
	if status, err := h.Daemon.Wait(10 * time.Second); err != nil || status != 1 || !strings.Contains(h.Daemon.Log(), "other hosts cannot reach this one at 127.0.0.1, the address of lo") {
		t.Errorf("--iface=lo: exit status %d, %v", status, err)
	}
	h.Start("--public-ip=203.0.113.7")
	status, err := h.Daemon.Wait(10 * time.Second)
	if err != nil || status != 1 || !strings.Contains(h.Daemon.Log(), "host-gw cannot use the public IP 203.0.113.7") {
		t.Errorf("host-gw behind a NAT: exit status %d, %v", status, err)
	}
}

// /healthz is served, and a port that is taken is an error at the start.
func TestHealthz(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	h.Start("--healthz-port=2401")
	get := func() (string, error) {
		resp, err := h.HTTP().Get(fmt.Sprintf("http://%v:2401/healthz", h.Addr()))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, text), err
	}
	await := func(want string) {
		t.Helper()
		lab.Eventually(t, 10*time.Second, "healthz", func() error {
			if got, err := get(); err != nil || got != want {
				return fmt.Errorf("%q, %v; want %q", got, err, want)
			}
			return nil
		})
	}
	await(fmt.Sprintf("%d not ready yet: waiting for the network config: /coreos.com/network/config is not in the store\n", http.StatusServiceUnavailable))
	c.SetConfig(vxlanConfig)
	h.AwaitReady()
	await("200 ok\n")
	second := h.Start
	first := h.Daemon
	second("--healthz-port=2401")
	if status, err := h.Daemon.Wait(10 * time.Second); err != nil || status != 1 || !strings.Contains(h.Daemon.Log(), "serving /healthz on 0.0.0.0:2401: ") {
		t.Errorf("with the port taken: exit status %d, %v", status, err)
	}
	h.Daemon = first
	h.Stop()
}
