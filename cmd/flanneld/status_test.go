package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/network/status"
	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// ask runs a command of flanneld on a host and returns what it prints, and its exit
// status.
func ask(h *cluster.Node, args ...string) (text string, exit int, err error) {
	p := h.StartProgram(lab.Program{Name: "flanneld-" + args[0], Args: append([]string{lab.Binary("flanneld")}, args...)})
	exit, err = p.Wait(30 * time.Second)
	return p.Log(), exit, err
}

// statusOf is what flanneld status says on a host.
func statusOf(h *cluster.Node, args ...string) (r status.Report, exit int, err error) {
	text, exit, err := ask(h, append([]string{"status", "--output=json"}, args...)...)
	if err == nil {
		err = json.Unmarshal([]byte(text), &r)
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, text)
	}
	if err == nil && r.Well != (exit == 0) {
		err = fmt.Errorf("exit status %d with %s", exit, text)
	}
	return r, exit, err
}

// alone are the flags by which status finds out what it can without a daemon.
func alone(c *cluster.Cluster, h *cluster.Node) []string {
	return []string{"--etcd-endpoints=" + strings.Join(c.Endpoints(), ","), "--subnet-file=" + h.SubnetFile(), "--iface=eth0"}
}

// peerOf is a peer in a report, by its host.
func peerOf(r status.Report, h *cluster.Node) status.Peer {
	i := slices.IndexFunc(r.Peers, func(p status.Peer) bool { return p.PublicIP == h.Addr() })
	if i < 0 {
		return status.Peer{}
	}
	return r.Peers[i]
}

// brief is a peer in a line.
func brief(p status.Peer) string {
	answers := "not asked"
	if p.Probe != nil {
		answers = fmt.Sprintf("answers: %v", p.Probe.Answers)
	}
	return fmt.Sprintf("%s %s %s %s, %s", p.Reached, p.Route, p.Neighbour, p.FDB, answers)
}

// awaitStatus waits until status says what it ought to.
func awaitStatus(t *testing.T, h *cluster.Node, what string, is func(r status.Report) bool, args ...string) {
	t.Helper()
	lab.Eventually(t, 10*time.Second, what+" in the status of "+h.Name, func() error {
		r, _, err := statusOf(h, args...)
		if err != nil {
			return err
		}
		if !is(r) {
			text, _ := json.MarshalIndent(r, "", " ")
			return fmt.Errorf("%s", text)
		}
		return nil
	})
}

// getHTTP asks a daemon over TCP.
func getHTTP(h *cluster.Node, path, accept string) (code int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://%v:2401%s", h.Addr(), path), nil)
	if err != nil {
		return 0, "", err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := h.HTTP().Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// awaitHealth waits for a status of /healthz, with something in its text and, once
// that is there, in its JSON.
func awaitHealth(t *testing.T, h *cluster.Node, code int, text string) {
	t.Helper()
	for _, accept := range []string{"", "application/json"} {
		lab.Eventually(t, 10*time.Second, "healthz of "+h.Name, func() error {
			got, body, err := getHTTP(h, "/healthz", accept)
			if err == nil && accept != "" {
				var is struct {
					Healthy         bool
					Problems, Notes []string
				}
				if err = json.Unmarshal([]byte(body), &is); err == nil && is.Healthy != (code == http.StatusOK) {
					err = fmt.Errorf("%s with status %d", body, got)
				}
				if body = strings.Join(slices.Concat(is.Problems, is.Notes), "\n"); text == "ok" && is.Healthy {
					body = "ok"
				}
			}
			if err != nil || got != code || !strings.Contains(body, text) {
				return fmt.Errorf("%d %q, %v; want %d and %q", got, body, err, code, text)
			}
			return nil
		})
	}
}

// All is well with each backend, and status says how each peer is reached; on a
// host whose daemon is stopped it says the same of the kernel.
func TestStatusWell(t *testing.T) {
	for _, nw := range []struct{ config, device, peer string }{
		{`{"Type": "vxlan"}`, "flannel.1", "vxlan ok ok ok, answers: true"},
		{`{"Type": "vxlan", "VNI": 7, "DirectRouting": true}`, "flannel.7", "direct ok - -, answers: true"},
		{`{"Type": "host-gw"}`, "", "direct ok - -, answers: true"},
		{`{"Type": "udp"}`, "flannel0", "udp ok - -, answers: true"},
	} {
		t.Run(nw.config, func(t *testing.T) {
			if strings.Contains(nw.config, "udp") {
				if err := lab.TUN(); err != nil {
					t.Skip(err)
				}
			}
			c, s := newCluster(t)
			c.SetConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "Backend": %s}`, nw.config))
			h1, _ := join(c, s, 1, "--healthz-port=2401")
			h2, _ := join(c, s, 2)
			well := func(r status.Report) bool {
				device := ""
				if r.Device != nil {
					device = r.Device.Name
				}
				return r.Well && device == nw.device && brief(peerOf(r, h2)) == nw.peer && r.Lease.Subnet == h1.Env().Subnet() && *r.Lease.RemainingSeconds > 80000
			}
			awaitStatus(t, h1, "all is well", well)
			awaitHealth(t, h1, http.StatusOK, "ok")

			r, exit, err := statusOf(h1, "--no-probe")
			if err != nil || exit != 0 || peerOf(r, h2).Probe != nil || r.Summary.Silent != nil {
				t.Errorf("without a probe: exit status %d, %+v, %v", exit, r, err)
			}
			text, _, err := ask(h1, "status")
			if want := []string{"flanneld   lab, process ", "10.1.2.0/24", "1 peer: 1 right, 0 wrong, all answer", "all is well"}; err != nil || !containsAll(text, want) || strings.Contains(text, "\x1b") {
				t.Errorf("%v: status prints\n%swant %q", err, text, want)
			}

			h1.Stop()
			r, exit, err = statusOf(h1, append(alone(c, h1), "--no-probe")...)
			if want := []string{"flanneld does not run on this host"}; err != nil || exit != 1 || r.Daemon != nil || !slices.Equal(r.Problems, want) || r.Lease.Subnet != h1.Env().Subnet() {
				t.Errorf("without a daemon: exit status %d, %+v, %v", exit, r, err)
			}
			if got, want := brief(peerOf(r, h2)), strings.Replace(nw.peer, "answers: true", "not asked", 1); got != want {
				t.Errorf("without a daemon: %s, want %s", got, want)
			}
		})
	}
}

func containsAll(text string, all []string) bool {
	return !slices.ContainsFunc(all, func(s string) bool { return !strings.Contains(text, s) })
}

// Each thing that can be wrong on a host or with a peer is seen in /healthz, if it is
// this host's, and in status, and is gone from both when it is put right.
func TestStatusTrouble(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h1, _ := join(c, s, 1, "--healthz-port=2401")
	h2, _ := join(c, s, 2)
	well := func() {
		t.Helper()
		awaitStatus(t, h1, "all is well", func(r status.Report) bool { return r.Well })
		awaitHealth(t, h1, http.StatusOK, "ok")
	}
	peer := func(want string) func(r status.Report) bool {
		return func(r status.Report) bool { return !r.Well && brief(peerOf(r, h2)) == want }
	}
	problem := func(text string) func(r status.Report) bool {
		return func(r status.Report) bool {
			return !r.Well && slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, text) })
		}
	}
	well()

	t.Run("a route in the way", func(t *testing.T) {
		h1.Run("ip", "route", "replace", "blackhole", "10.1.2.0/24", "proto", "static")
		awaitStatus(t, h1, "a route", func(r status.Report) bool {
			const why = "setting the route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink: the host has a route of its own to it, which stays"
			return peer("vxlan in the way ok ok, not asked")(r) && slices.Equal(peerOf(r, h2).Problems, []string{why}) && len(r.Problems) == 0
		}, "--no-probe")
		awaitHealth(t, h1, http.StatusServiceUnavailable, "data plane: setting the route 10.1.2.0/24")
		if text, _, err := ask(h1, "status", "--no-probe"); err != nil || strings.Count(text, "setting the route 10.1.2.0/24") != 1 {
			t.Errorf("it is to be said once: %v\n%s", err, text)
		}
		h1.Run("ip", "route", "del", "blackhole", "10.1.2.0/24", "proto", "static")
		well()
	})
	t.Run("a route deleted", func(t *testing.T) {
		h1.Run("ip", "route", "del", "10.1.2.0/24")
		c.Must(h1.Daemon.WaitLog(`Put right in the kernel: 1 route\n`, 10*time.Second))
		well()
	})
	t.Run("a device in the way", func(t *testing.T) {
		h1.Run("sh", "-ec", "ip link set flannel.1 down; ip link set flannel.1 name old; ip link add flannel.1 type bridge")
		awaitStatus(t, h1, "a device", problem("device flannel.1: "), "--no-probe")
		awaitHealth(t, h1, http.StatusServiceUnavailable, "data plane: ")
		h1.Run("sh", "-ec", "ip link del old; ip link del flannel.1")
		well()
	})
	t.Run("the interface down", func(t *testing.T) {
		h1.Run("ip", "link", "set", "eth0", "down")
		awaitHealth(t, h1, http.StatusServiceUnavailable, "interface: eth0 is down")
		awaitStatus(t, h1, "the interface", problem("interface: eth0 is down"), "--no-probe")
		h1.Run("sh", "-ec", "ip link set eth0 up; ip route add default via 172.30.0.1; ip addr del "+h1.Addr().String()+"/24 dev eth0")
		awaitStatus(t, h1, "its address", problem("interface: eth0 no longer has the address "+h1.Addr().String()), "--no-probe")
		h1.Run("sh", "-ec", "ip addr add "+h1.Addr().String()+"/24 dev eth0; ip route replace default via 172.30.0.1")
		well()
	})
	t.Run("forwarding off", func(t *testing.T) {
		h1.Sysctl("net.ipv4.ip_forward", "0")
		awaitHealth(t, h1, http.StatusServiceUnavailable, "forwarding: net.ipv4.ip_forward is off")
		awaitStatus(t, h1, "forwarding", problem("forwarding: net.ipv4.ip_forward is off"), "--no-probe")
		h1.Sysctl("net.ipv4.ip_forward", "1")
		well()
	})
	t.Run("a silent peer", func(t *testing.T) {
		h2.Run("ip", "link", "set", "eth0", "down")
		awaitStatus(t, h1, "a peer", peer("vxlan ok ok ok, answers: false"))
		awaitHealth(t, h1, http.StatusOK, "ok") // this host's network works
		h2.Run("sh", "-ec", "ip link set eth0 up; ip route add default via 172.30.0.1")
		well()
	})
	t.Run("a peer of another backend", func(t *testing.T) {
		c.PutLease("10.1.9.0-24", `{"PublicIP":"172.30.0.99"}`, time.Hour)
		awaitStatus(t, h1, "its backend", func(r status.Report) bool {
			i := slices.IndexFunc(r.Peers, func(p status.Peer) bool { return p.Subnet.String() == "10.1.9.0/24" })
			return i >= 0 && r.Peers[i].Reached == "" && slices.Equal(r.Peers[i].Problems, []string{"its backend is udp, this host's is vxlan"}) && r.Summary.Wrong == 1
		})
		awaitHealth(t, h1, http.StatusOK, "ok")
		c.DeleteLease("10.1.9.0-24")
		well()
	})
	t.Run("entries gone while the daemon hangs", func(t *testing.T) {
		h1.Daemon.Pause()
		h1.Run("sh", "-ec", "ip route add 10.1.77.0/24 via 172.30.0.1 proto 102; ip neigh del 10.1.2.0 dev flannel.1; ip link set flannel.1 mtu 1300; bridge fdb del "+h2.VtepMAC()+" dev flannel.1")
		r, _, err := statusOf(h1, append(alone(c, h1), "--no-probe")...)
		if err != nil || !peer("vxlan ok missing missing, not asked")(r) || !problem("its MTU is 1300 and not 1450")(r) || !problem("does not answer within")(r) || !problem("data plane: the route 10.1.77.0/24 via 172.30.0.1 dev eth0 ought not to be there")(r) {
			t.Errorf("%+v, %v", r, err)
		}
		h1.Daemon.Continue()
		well()
	})
	t.Run("etcd away", func(t *testing.T) {
		c.Etcd.Stop()
		awaitStatus(t, h1, "etcd", problem("etcd: no endpoint answers"), "--no-probe")
		awaitHealth(t, h1, http.StatusOK, "etcd: away for ")
		c.Etcd.Start()
		well()
	})
	t.Run("the daemon killed", func(t *testing.T) {
		h1.Daemon.Kill()
		r, exit, err := statusOf(h1, append(alone(c, h1), "--no-probe")...)
		if err != nil || exit != 1 || !problem("flanneld does not run on this host")(r) || brief(peerOf(r, h2)) != "vxlan ok ok ok, not asked" {
			t.Errorf("exit status %d, %+v, %v", exit, r, err)
		}
		h1.Start("--healthz-port=2401")
		h1.AwaitReady()
		well()
	})
}

// What is said before the daemon is ready, and by /readyz.
func TestStatusNotReady(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	h.Start("--healthz-port=2401")
	awaitHealth(t, h, http.StatusServiceUnavailable, "not ready yet: waiting for the network config")
	if code, body, err := getHTTP(h, "/readyz", ""); err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, "waiting for the network config") {
		t.Errorf("/readyz: %d %q, %v", code, body, err)
	}
	awaitStatus(t, h, "the config", func(r status.Report) bool {
		return !r.Well && r.Lease == nil && slices.Equal(r.Problems, []string{"not ready yet: waiting for the network config: /coreos.com/network/config is not in the store"})
	})
	c.SetConfig(`{"Network": "10.1.0.0"}`)
	awaitHealth(t, h, http.StatusServiceUnavailable, `waiting for the network config: Network is "10.1.0.0": must be an IPv4 prefix`)
	c.SetConfig(vxlanConfig)
	h.AwaitReady()
	if code, body, err := getHTTP(h, "/readyz", ""); err != nil || code != http.StatusOK || body != "ok\n" {
		t.Errorf("/readyz: %d %q, %v", code, body, err)
	}
	awaitStatus(t, h, "all is well", func(r status.Report) bool { return r.Well })
}

// A host that has taken what an operator has reserved for it is well, although its
// lease from before is still there.
func TestStatusFormerLease(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h, _ := join(c, s, 1)
	c.PutLease("10.1.50.0-24", fmt.Sprintf(`{"PublicIP":"%v"}`, h.Addr()), 0)
	h.Stop()
	h.Start()
	h.AwaitReady()
	awaitStatus(t, h, "the reservation", func(r status.Report) bool {
		return r.Well && r.Lease.Subnet.String() == "10.1.50.0/24" && r.Lease.Reserved && r.Lease.RemainingSeconds == nil && len(r.Peers) == 0 &&
			slices.ContainsFunc(r.Notes, func(n string) bool { return strings.HasPrefix(n, "lease: 10.1.1.0/24 bears this host's address too") })
	})
}

// A daemon whose socket another process has is named by its process, and takes the
// socket when that is gone.
func TestStatusSocketTaken(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h := c.Node("h1", s)
	other := h.Host.Start("other", lab.Binary("flanneld"), "--etcd-endpoints="+c.Etcd.Endpoint(), "--subnet-file="+h.Dir+"/other.env", "--iface=eth0", "--etcd-prefix=/none")
	c.Must(other.WaitLog("There is no network config yet", 10*time.Second))
	h.Start()
	h.AwaitReady()
	c.Must(h.Daemon.WaitLog("Going on without a socket .*: the process "+fmt.Sprint(other.Pid)+" has the socket", 10*time.Second))
	other.Kill()
	awaitStatus(t, h, "the daemon without a socket", func(r status.Report) bool {
		return !r.Well && slices.ContainsFunc(r.Problems, func(p string) bool {
			return strings.Contains(p, fmt.Sprintf("flanneld runs on this host as process %d, and cannot be asked", h.Daemon.Pid))
		})
	}, alone(c, h)...)
	c.Must(h.Daemon.WaitLog("Got the socket", 20*time.Second))
	awaitStatus(t, h, "all is well", func(r status.Report) bool { return r.Well })
}

// All leases, from the daemon and from etcd itself.
func TestLeases(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h, _ := join(c, s, 1)
	c.PutLease("10.1.9.0-24", `{"PublicIP":"172.30.0.99","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:09"}}`, 2*time.Hour)
	c.PutLease("10.1.74.0-24", `{"PublicIP":"172.30.0.74","BackendType":"vxlan"}`, 0)
	c.PutLease("10.1.75.0-24", `garbage`, time.Hour)
	c.PutLease("10.9.1.0-24", `{"PublicIP":"172.30.0.98"}`, time.Hour)
	for name, args := range map[string][]string{"daemon": nil, "etcd": {"--etcd-endpoints=" + c.Etcd.Endpoint()}} {
		text, exit, err := ask(h, append([]string{"leases", "--output=json"}, args...)...)
		var n status.Network
		if err == nil {
			err = json.Unmarshal([]byte(text), &n)
		}
		if err != nil || exit != 0 {
			t.Fatalf("%s: exit status %d, %v: %s", name, exit, err, text)
		}
		var all []string
		for _, l := range n.Leases {
			left := "reserved"
			if !l.Reserved {
				left = (time.Duration(*l.RemainingSeconds) * time.Second).Round(time.Hour).String()
			}
			all = append(all, fmt.Sprintf("%v %v %s %s %v", l.Subnet, l.PublicIP, l.Backend, left, l.Outside))
		}
		want := []string{
			fmt.Sprintf("10.1.1.0/24 %v vxlan 24h0m0s false", h.Addr()),
			"10.1.9.0/24 172.30.0.99 vxlan 2h0m0s false",
			"10.1.74.0/24 172.30.0.74 vxlan reserved false",
			"10.9.1.0/24 172.30.0.98 udp 1h0m0s true",
		}
		if !slices.Equal(all, want) || len(n.Unreadable) != 1 || n.Subnets != 255 || n.Leased != 4 || n.Free != 251 {
			t.Errorf("%s: %s\nwant\n%s", name, text, strings.Join(want, "\n"))
		}
	}
	text, exit, err := ask(h, "leases")
	if want := []string{"10.1.74.0/24", "reserved", "4 taken, 251 free: 1.6 % full", "10.1.75.0-24 cannot be read", "none of the network's subnets"}; err != nil || exit != 0 || !containsAll(text, want) {
		t.Errorf("exit status %d, %v:\n%swant %q", exit, err, text, want)
	}
	text, exit, err = ask(h, "leases", "--etcd-prefix=/other", "--etcd-endpoints="+c.Etcd.Endpoint())
	if err != nil || exit != 0 || text != "0 leases\nthe network config cannot be used: /other/config is not in the store\n" {
		t.Errorf("of another network: exit status %d, %v: %s", exit, err, text)
	}
	h.Stop()
	text, exit, err = ask(h, "leases", "--etcd-endpoints=http://"+h.Addr().String()+":1")
	if err != nil || exit != 1 || strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "flanneld leases: reading /coreos.com/network/config in etcd: ") {
		t.Errorf("without etcd: exit status %d, %v: %s", exit, err, text)
	}
}

// Who may not send ICMP echoes sees all else, and is told.
func TestStatusUnprivileged(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h, _ := join(c, s, 1)
	other, _ := join(c, s, 2)
	h.Sysctl("net.ipv4.ping_group_range", "1 0")
	p := h.Host.Start("status", "setpriv", "--bounding-set=-all", "--inh-caps=-all", lab.Binary("flanneld"), "status")
	exit, err := p.Wait(10 * time.Second)
	want := []string{"1 peer: 1 right, 0 wrong\n", other.Addr().String(), "note: the peers were not asked whether they answer: only root", "all is well"}
	if err != nil || exit != 0 || !containsAll(p.Log(), want) {
		t.Errorf("exit status %d, %v:\n%swant %q", exit, err, p.Log(), want)
	}
}
