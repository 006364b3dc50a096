package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
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

	"github.com/google/go-cmp/cmp"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// checked is what flanneld check prints on a host, and its exit status. It is told
// the same as the host's daemon would be, with these flags after that.
func checked(t *testing.T, c *cluster.Cluster, h *cluster.Node, args ...string) (text string, status int) {
	t.Helper()
	endpoints := h.Endpoints
	if len(endpoints) == 0 {
		endpoints = c.Endpoints()
	}
	text, err := h.Exec(slices.Concat(h.Under, []string{
		lab.Binary("flanneld"), "check", "--etcd-endpoints=" + strings.Join(endpoints, ","), "--subnet-file=" + h.SubnetFile()}, args)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return text, exit.ExitCode()
	}
	c.Must(err)
	return text, 0
}

// finds checks a host and wants these lines, of which those that are not well are to
// be all; each is as printed, with one blank where there are several. An exit status
// of 1 is wanted where one of them is a failure.
func finds(t *testing.T, c *cluster.Cluster, h *cluster.Node, args []string, want ...string) {
	t.Helper()
	text, status := checked(t, c, h, args...)
	var got []string
	for line := range strings.Lines(text) {
		line = strings.Join(strings.Fields(line), " ")
		level, _, _ := strings.Cut(line, " ")
		if level == "warning" || level == "failure" || level == "ok" && slices.Contains(want, line) {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s\nall of it is\n%s", diff, text)
	}
	wantStatus := 0
	if slices.ContainsFunc(want, func(line string) bool { return strings.HasPrefix(line, "failure ") }) {
		wantStatus = 1
	}
	if status != wantStatus {
		t.Errorf("exit status %d, want %d, after\n%s", status, wantStatus, text)
	}
}

// hostState is all of a host, and of etcd, that a command might change.
func hostState(t *testing.T, c *cluster.Cluster, h *cluster.Node) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{
		{"ip", "-d", "link"}, {"ip", "addr"}, {"ip", "route", "show", "table", "all"}, {"ip", "rule"}, {"ip", "nexthop"}, {"bridge", "fdb"},
		{"iptables-nft-save"}, {"sh", "-c", "cat /proc/net/ip_tables_names; cat /proc/modules; ls /sys/module; sysctl -a 2>/dev/null | grep -e forward -e rp_filter"},
		{"ls", "-laR", "--full-time", h.Dir}, {"ls", "-la", "--full-time", "/run", "/run/flannel"}, {"ip", "netns"},
	} {
		text, _ := h.Exec(argv...) // some of these files are not there
		fmt.Fprintf(&b, "%s\n%s\n", strings.Join(argv, " "), text)
	}
	text := counters.ReplaceAllString(b.String(), "")
	resp, err := h.HTTP().Get(c.Etcd.Endpoint() + "/v2/keys/?recursive=true&sorted=true")
	c.Must(err)
	defer resp.Body.Close()
	var keys json.RawMessage
	c.Must(json.NewDecoder(resp.Body).Decode(&keys))
	return text + fmt.Sprintf("etcd is at index %s and has\n%s\n", resp.Header.Get("X-Etcd-Index"), ttls.ReplaceAllString(string(keys), ""))
}

var (
	counters = regexp.MustCompile(`(?m)^# (Generated|Completed).*$|\[\d+:\d+\]|\w+_timer +[\d.]+`)
	ttls     = regexp.MustCompile(`"ttl":\d+`)
)

// On a host that is fit nothing is found to be wrong, and all of it reads well; the
// host and etcd are afterwards as they were.
func TestCheckFit(t *testing.T) {
	for _, test := range []struct{ backend, says, offloads string }{
		{"vxlan", "vxlan, with an MTU of 1450 for containers", "skipped  udp offloads      only the udp backend has a use for them"},
		{"host-gw", "host-gw, with an MTU of 1500 for containers", "skipped  udp offloads      only the udp backend has a use for them"},
		{"udp", "udp, with an MTU of 1472 for containers", "ok       udp offloads      the kernel has all"},
	} {
		t.Run(test.backend, func(t *testing.T) {
			if err := lab.TUN(); err != nil && test.backend == "udp" {
				t.Skip(err)
			}
			c, s := newCluster(t)
			c.SetConfig(configOf(fmt.Sprintf(`{"Type": %q}`, test.backend)))
			h := c.Node("h1", s)
			before := hostState(t, c, h)
			text, status := checked(t, c, h, "--healthz-port=2401")
			after := hostState(t, c, h)
			if status != 0 {
				t.Errorf("exit status %d", status)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("it has changed something (-before +after):\n%s", diff)
			}
			for _, r := range [][2]string{
				{`answers, in \S+`, "answers, in TIME"}, {`it is \S+Z here`, "it is NOW here"}, {regexpQuote(h.Dir), "DIR"},
				{`\S+/iptables v\S+ \((\w+)\)`, "IPTABLES ($1)"},
			} {
				text = regexp.MustCompile(r[0]).ReplaceAllString(text, r[1])
			}
			want := `ok       flanneld          none runs here
ok       privileges        CAP_NET_ADMIN and CAP_NET_RAW
ok       interface         eth0 with the address ` + h.Addr().String() + ` and MTU 1500, chosen by the IPv4 default route
ok       public IP         peers are told ` + h.Addr().String() + `
ok       healthz port      0.0.0.0:2401 is free
ok       etcd              ` + c.Etcd.Endpoint() + ` answers, in TIME
ok       clock             it is NOW here, and within 5m0s of that on etcd's hosts
ok       network config    Network 10.1.0.0/16, SubnetLen 24, SubnetMin 10.1.1.0, SubnetMax 10.1.99.0, Backend ` + test.backend + `
ok       etcd rights       leases can be read and written
ok       lease             this host will get a free subnet; 99 of 99 subnets are free
ok       network           10.1.0.0/16 overlaps no other address or route of this host
ok       backend           ` + test.says + `
ok       VXLAN             the kernel has it
ok       TUN               the kernel has it
ok       next-hop objects  the kernel has them
` + test.offloads + `
ok       subnet file       DIR/subnet.env is not there yet, and can be written
ok       ip_forward        net.ipv4.ip_forward is off; flanneld turns it on when it starts
ok       iptables          IPTABLES (nf_tables); MASQUERADE with --random-fully
ok       iptables rules    none of flannel's is there yet

All is well: flanneld would work here.`
			if diff := cmp.Diff(want, text); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Each thing that is wrong with a host is found, and nothing else is; the exit status
// says whether the network would work.
func TestCheckHost(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	well := func(t *testing.T, h *cluster.Node) { t.Helper(); finds(t, c, h, nil) }
	n := 0
	node := func() *cluster.Node {
		n++
		return c.Node(fmt.Sprintf("h%d", n), s)
	}

	t.Run("no default route", func(t *testing.T) {
		h := node()
		well(t, h)
		h.Run("ip", "route", "del", "default")
		finds(t, c, h, nil, "failure interface there is no IPv4 default route to choose the interface by; name it with --iface; there are: lo (127.0.0.1), eth0 ("+
			h.Addr().String()+"); to do: choose one with --iface")
		finds(t, c, h, []string{"--iface=eth0"}, "ok interface eth0 with the address "+h.Addr().String()+" and MTU 1500, chosen by --iface=eth0")
	})

	t.Run("an interface that is down", func(t *testing.T) {
		h := node()
		h.Run("sh", "-c", "ip link add br0 type bridge; ip addr add 192.0.2.1/24 dev br0")
		finds(t, c, h, []string{"--iface=br0", "--public-ip=198.51.100.7"},
			`failure interface br0 with the address 192.0.2.1 and MTU 1500, chosen by --iface=br0, is down: there is no traffic between hosts until it is up; to do: run "ip link set br0 up"`,
			"ok public IP peers are told 198.51.100.7, which is no address of br0: what is sent there has to reach this host")
	})

	t.Run("the network's addresses are in use", func(t *testing.T) {
		h := node()
		h.Run("sh", "-c", "ip link add br0 type bridge; ip addr add 10.1.7.1/16 dev br0; ip link set br0 up; ip route add 10.1.5.0/25 via "+c.Etcd.Host().Addr().String())
		// These are in nobody's way: what leads further away, an older daemon's, and ours.
		h.Run("sh", "-c", fmt.Sprintf("ip route add 10.0.0.0/8 via %[1]v; ip route add 10.1.9.0/24 via %[1]v; ip route add 10.1.10.0/24 via %[1]v proto 102", c.Etcd.Host().Addr()))
		finds(t, c, h, nil, "warning network 10.1.0.0/16 overlaps what this host has already: the address 10.1.7.1/16 of br0, the route 10.1.5.0/25 via "+
			c.Etcd.Host().Addr().String()+"; to do: choose a Network that nothing else uses")
	})

	t.Run("dockerd has chosen that network", func(t *testing.T) {
		h := node()
		h.Run("sh", "-c", "ip link add docker0 type bridge; ip addr add 10.1.0.1/16 dev docker0")
		finds(t, c, h, nil, "warning network 10.1.0.0/16 overlaps what this host has already: the address 10.1.0.1/16 of docker0; to do: if dockerd chose its own address, "+
			"stop it and run remove-docker0.sh, then start it with the subnet of flanneld; otherwise choose a Network that nothing else uses")
	})

	t.Run("without iptables", func(t *testing.T) {
		h := node()
		h.Under = []string{"unshare", "--mount", "sh", "-c", "for d in /usr/sbin /sbin /usr/local/sbin; do mount -t tmpfs none $d 2>/dev/null; done; PATH=/nowhere exec \"$@\"", "sh"}
		finds(t, c, h, nil, "warning iptables no iptables program in PATH or in /usr/sbin, /sbin, /usr/local/sbin: install the package iptables; "+
			"to do: see to that, which may be later; until then the network works without masquerading and forward rules")
	})

	t.Run("iptables hangs", func(t *testing.T) {
		h := node()
		behindFrontDoor(t, h, "iptables-nft").set("exec sleep 60")
		began := time.Now()
		text, status := checked(t, c, h)
		if status != 0 || !strings.Contains(text, "iptables: it did not end within 1.2s: it hangs") || time.Since(began) > 6*time.Second {
			t.Errorf("exit status %d after %v and\n%s", status, time.Since(began), text)
		}
	})

	t.Run("the port of healthz is taken", func(t *testing.T) {
		h := node()
		l, err := h.Listen(netip.MustParseAddrPort("0.0.0.0:2401"))
		c.Must(err)
		defer l.Close()
		finds(t, c, h, []string{"--healthz-port=2401"},
			`failure healthz port listen tcp 0.0.0.0:2401: bind: address already in use; to do: choose another --healthz-port or --healthz-ip, or stop what has it ("ss -ltnp" shows it)`)
	})

	t.Run("no privileges", func(t *testing.T) {
		h := node()
		h.Under = []string{"setpriv", "--bounding-set=-net_admin,-net_raw,-sys_admin"}
		text, status := checked(t, c, h)
		if status != 1 || !regexp.MustCompile(`(?m)^failure  privileges +CAP_NET_ADMIN is missing, .*: operation not permitted; to do: run this as the user that flanneld runs as`).MatchString(text) {
			t.Errorf("exit status %d after\n%s", status, text)
		}
		h.Under = []string{"setpriv", "--bounding-set=-net_raw"}
		text, status = checked(t, c, h)
		if status != 0 || !regexp.MustCompile(`(?m)^warning  privileges +CAP_NET_RAW is missing`).MatchString(text) {
			t.Errorf("exit status %d after\n%s", status, text)
		}
	})

	t.Run("the subnet file cannot be written", func(t *testing.T) {
		h := node()
		shut := filepath.Join(h.Dir, "shut")
		c.Must(os.Mkdir(shut, 0o555))
		h.Under = []string{"setpriv", "--bounding-set=-dac_override"} // which lets root write anywhere
		finds(t, c, h, []string{"--subnet-file=" + shut + "/flannel/subnet.env"}, fmt.Sprintf(
			"failure subnet file %[1]s/flannel/subnet.env cannot be written: writing in %[1]s: permission denied; to do: choose another --subnet-file, or let flanneld write there: dockerd must not start without it", shut))
		if _, err := os.Stat(shut + "/flannel"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its directory was made, or: %v", err)
		}
	})

	t.Run("forwarding is off for good", func(t *testing.T) {
		h := node()
		h.Under = mounts("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys")
		finds(t, c, h, nil, `failure ip_forward net.ipv4.ip_forward is off, and flanneld cannot turn it on: read-only file system; `+
			`to do: run "sysctl -w net.ipv4.ip_forward=1" on the host: containers reach no other host while it is off`)
	})

	t.Run("a subnet file of another network", func(t *testing.T) {
		h := node()
		c.Must(writeFile(h.SubnetFile(), "FLANNEL_SUBNET=10.9.5.1/24\n"))
		finds(t, c, h, nil,
			"ok lease this host will get a free subnet; 255 of 255 subnets are free",
			"warning subnet file "+h.SubnetFile()+" has 10.9.5.0/24, which is none of the network's subnets: this host will get another; to do: dockerd has to be started again with the new subnet, after flanneld")
		c.Must(writeFile(h.SubnetFile(), "FLANNEL_SUBNET=10.1.5.1/24\n"))
		finds(t, c, h, nil,
			"ok lease this host will ask for 10.1.5.0/24, the subnet in its subnet file; 255 of 255 subnets are free",
			"ok subnet file "+h.SubnetFile()+" has 10.1.5.0/24, and can be written")
	})

	t.Run("an older daemon was here", func(t *testing.T) {
		h := node()
		for _, rule := range []string{"-t nat -A POSTROUTING -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN", "-A FORWARD -s 10.1.0.0/16 -j ACCEPT", "-A FORWARD -d 10.1.0.0/16 -j ACCEPT"} {
			h.Run(append([]string{"iptables-nft"}, strings.Fields(rule)...)...)
		}
		h.Run("sh", "-c", "ip link add flannel.1 type vxlan id 1 dstport 8472 local "+h.Addr().String()+" dev eth0; ip addr add 10.1.5.0/32 dev flannel.1; ip link set flannel.1 up")
		h.Run("ip", "route", "add", "10.1.6.0/24", "via", "10.1.6.0", "dev", "flannel.1", "onlink")
		finds(t, c, h, nil,
			"ok flanneld none runs here; from an earlier run there is flannel.1, to be taken over or removed",
			"ok iptables rules flanneld keeps or takes over what is there of its own, and of an older daemon's: 2 rules in FORWARD of filter, 1 rule in POSTROUTING of nat")
		h.Run("iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-s", "10.1.0.0/16", "-d", "10.1.0.0/16", "-j", "RETURN")
		finds(t, c, h, nil, "warning iptables rules this host uses iptables-nft, and iptables-legacy has rules of flannel too, which count as well: 1 rule in POSTROUTING of nat; to do: delete them with iptables-legacy, or reboot")
	})
}

// What keeps the daemon from running on a host, check finds, and the daemon says the
// same before it takes a lease; where check finds nothing the daemon gets ready.
func TestCheckAsDaemon(t *testing.T) {
	c, s := newCluster(t)
	const vxlan0, flannel1 = "ip link add vxlan0 up type vxlan dev eth0 ", "ip link add flannel.1 up type vxlan dev eth0 "
	const taken = "setting the state of the device flannel.1: address already in use: "
	for i, test := range []struct{ name, backend, script, want string }{
		{"a veth of the device's name", `{"Type": "vxlan"}`, "ip link add flannel.1 type veth peer name v", "making the VXLAN device flannel.1: there is a device of that name that is none; rename or remove it"},
		{"a bridge of the device's name", `{"Type": "vxlan", "VNI": 7}`, "ip link add flannel.7 type bridge", "making the VXLAN device flannel.7: there is a device of that name that is none"},
		{"another device of that VNI", `{"Type": "vxlan"}`, vxlan0 + "id 1 dstport 8472", "making the VXLAN device flannel.1: file exists: another VXLAN device on this host has VNI 1 and port 8472"},
		{"another device of that VNI, down", `{"Type": "vxlan"}`, vxlan0 + "id 1 dstport 8472; ip link set vxlan0 down", "file exists: another VXLAN device on this host has VNI 1 and port 8472"},
		{"a device that shares no port", `{"Type": "vxlan"}`, vxlan0 + "dstport 8472 external", taken + "the VXLAN device vxlan0, of another kind, has UDP port 8472; stop or remove that"},
		{"a small MTU", `{"Type": "vxlan"}`, "ip link set eth0 mtu 117", "eth0, which carries the packets, has an MTU of 117, and the backend vxlan needs 118 at least"},
		{"a small MTU, udp", `{"Type": "udp"}`, "ip link set eth0 mtu 95", "eth0, which carries the packets, has an MTU of 95, and the backend udp needs 96 at least"},
		{"a veth of the TUN's name", `{"Type": "udp"}`, "ip link add flannel0 type veth peer name v", "device flannel0 is there, but is a veth device and not TUN"},
		{"a TAP of the TUN's name", `{"Type": "udp"}`, "ip tuntap add dev flannel0 mode tap", "device flannel0 is there, but is a TAP device and not TUN"},

		{"the smallest MTU", `{"Type": "vxlan"}`, "ip link set eth0 mtu 118", ""},
		{"a device of another VNI on that port", `{"Type": "vxlan"}`, vxlan0 + "id 7 dstport 8472", ""},
		{"a device of that VNI on another port", `{"Type": "vxlan"}`, vxlan0 + "id 1 dstport 4789", ""},
		{"a device that would share no port, down", `{"Type": "vxlan"}`, vxlan0 + "id 1 dstport 8472 gbp; ip link set vxlan0 down", ""},
		{"a device of IPv6", `{"Type": "vxlan"}`, "ip link add vxlan0 up type vxlan id 1 dstport 8472 local 2001:db8::1", ""},
		{"a device that went to a container", `{"Type": "vxlan"}`, vxlan0 + "id 7 dstport 8472; unshare -n sleep 1000 </dev/null >/dev/null 2>&1 & sleep 0.3; ip link set vxlan0 netns $! && nsenter --net=/proc/$!/ns/net ip link set vxlan0 up", ""},
		{"an earlier run's device", `{"Type": "vxlan"}`, flannel1 + "id 1 dstport 8472 nolearning", ""},
		{"an earlier run's device of another shape", `{"Type": "vxlan"}`, flannel1 + "id 9 dstport 8472 gbp", ""},
		{"an earlier run's device of another VNI", `{"Type": "vxlan", "VNI": 7}`, flannel1 + "id 1 dstport 8472", ""},
		{"an earlier run's TUN", `{"Type": "udp"}`, "ip tuntap add dev flannel0 mode tun", ""},
		{"a multi-queue TUN", `{"Type": "udp"}`, "ip tuntap add dev flannel0 mode tun multi_queue", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := lab.TUN(); err != nil && strings.Contains(test.backend, "udp") {
				t.Skip(err)
			}
			c.SetConfig(configOf(test.backend))
			h := c.Node(fmt.Sprintf("h%d", i), s)
			h.Run("sh", "-ec", test.script)
			asDaemon(t, c, h, test.want)
		})
	}
	t.Run("the port is another program's", func(t *testing.T) {
		c.SetConfig(vxlanConfig)
		h := c.Node("h", s)
		var taken net.PacketConn
		c.Must(h.Do(func() (err error) {
			taken, err = net.ListenPacket("udp", ":8472") // which is IPv6's too
			return err
		}))
		defer taken.Close()
		comm, err := os.ReadFile("/proc/self/comm")
		c.Must(err)
		asDaemon(t, c, h, fmt.Sprintf("setting the state of the device flannel.1: address already in use: process %d (%s) has UDP port 8472; "+
			"stop or remove that, or choose another Port for the whole cluster", os.Getpid(), strings.TrimSpace(string(comm))))
	})
}

// asDaemon wants check to find this on a host, and a daemon to end with it before it
// has a lease; empty is for a host where both are well.
func asDaemon(t *testing.T, c *cluster.Cluster, h *cluster.Node, want string, args ...string) {
	t.Helper()
	text, status := checked(t, c, h, args...)
	before := len(c.Leases())
	h.Start(args...)
	if want == "" {
		h.AwaitReady()
		h.Stop()
		if status != 0 || strings.Contains(text, "failure") {
			t.Errorf("exit status %d after\n%s", status, text)
		}
		return
	}
	if status != 1 || !regexp.MustCompile(`(?m)^failure  backend +.*`+regexpQuote(want)).MatchString(text) {
		t.Errorf("exit status %d, and not %s, but\n%s", status, want, text)
	}
	if status, err := h.Daemon.Wait(20 * time.Second); err != nil || status != 1 || !strings.Contains(h.Daemon.Log(), want) {
		t.Errorf("the daemon ends with status %d, %v, and says not %s, but\n%s", status, err, want, h.Daemon.Log())
	}
	if after := len(c.Leases()); after != before {
		t.Errorf("there were %d leases and are %d", before, after)
	}
}

// A network from which etcd or another host has its address, and this host none, is
// found before its routes cut this host off from them.
func TestCheckCutOff(t *testing.T) {
	c, _ := newCluster(t)
	h := c.Node("h1", c.Segment("b", netip.MustParsePrefix("192.168.0.0/24")))
	c.PutLease("172.30.9.0-24", `{"PublicIP": "172.30.0.77"}`, time.Hour)
	const hint = "; to do: choose a Network that has no host's address in it, or give this host a route to them"
	lost := ": etcd at " + c.Etcd.Endpoint() + ", the host 172.30.0.77" + hint
	c.SetConfig(`{"Network": "172.30.0.0/16", "Backend": {"Type": "vxlan"}}`)
	finds(t, c, h, nil, "warning network 172.30.0.0/16 has addresses in it that this host has to reach, and cannot once their subnet is leased"+lost)
	if err := lab.TUN(); err != nil {
		t.Skip(err)
	}
	c.SetConfig(`{"Network": "172.30.0.0/16"}`)
	finds(t, c, h, nil, "failure network 172.30.0.0/16 has addresses in it that this host has to reach, and with the backend udp all of it leads to containers"+lost)
	// With a route of the host's own the daemon runs and goes on to reach etcd.
	h.Run("ip", "route", "add", "172.30.0.0/24", "via", "192.168.0.1")
	finds(t, c, h, nil)
	h.Start()
	h.AwaitReady()
	h.Run("ping", "-c1", "-W2", c.Etcd.Host().Addr().String())
}

// Files that the daemon could not write are found before it tries.
func TestCheckFiles(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	for i, test := range []struct {
		name, script, file string
		want, daemon       string // what check says, and the daemon
	}{
		{"a mount", "touch f; mount --bind f f", "f", "DIR/f is a mount of its own, so that no other file can take its place: mount its directory", "device or resource busy"},
		{"a full file system", "mkdir -p d; mount -t tmpfs -o size=4k none d; head -c 4096 /dev/zero >d/x", "d/f", "writing in DIR/d: no space left on device", "no space left on device"},
		{"no more files", "mkdir -p d; mount -t tmpfs -o nr_inodes=1 none d", "d/f", "writing in DIR/d: no space left on device", "no space left on device"},
		{"a dangling link", "ln -sfn nowhere d", "d/flannel/f", "DIR/d is a symbolic link that leads to nothing", "mkdir DIR/d: file exists"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := c.Node(fmt.Sprintf("h%d", i), s)
			h.Under = mounts("cd " + h.Dir + "; " + test.script)
			file, want, daemon := h.Dir+"/"+test.file, strings.ReplaceAll(test.want, "DIR", h.Dir), strings.ReplaceAll(test.daemon, "DIR", h.Dir)
			finds(t, c, h, []string{"--subnet-file=" + file}, "failure subnet file "+file+" cannot be written: "+want+
				"; to do: choose another --subnet-file, or let flanneld write there: dockerd must not start without it")
			h.Start("--subnet-file=" + file)
			if status, err := h.Daemon.Wait(20 * time.Second); err != nil || status != 1 || !strings.Contains(h.Daemon.Log(), daemon) {
				t.Errorf("the daemon ends with status %d, %v and\n%s", status, err, h.Daemon.Log())
			}
		})
	}
	t.Run("log files", func(t *testing.T) {
		h := c.Node("h", s)
		finds(t, c, h, []string{"--log_dir=/etc/hostname/x"}, "failure log files /etc/hostname/x cannot be written: stat /etc/hostname/x: not a directory; "+
			"to do: choose another --log_dir or --log_file, or let flanneld write there, in the sandbox of a unit by ReadWritePaths=")
		finds(t, c, h, []string{"--log_file=" + h.Dir + "/new/log"}, "ok log files "+h.Dir+"/new/log can be written")
		finds(t, c, h, []string{"--log_dir=/etc/hostname/x", "--logtostderr=true"})
		h.Start("--log_dir=/etc/hostname/x")
		if status, err := h.Daemon.Wait(20 * time.Second); err != nil || status != 2 {
			t.Errorf("the daemon ends with status %d, %v and\n%s", status, err, h.Daemon.Log())
		}
	})
}

// mounts runs a program after a script, with mounts of its own.
func mounts(script string) []string {
	return []string{"unshare", "--mount", "sh", "-ec", script + `; exec "$@"`, "sh"}
}

// A host that takes part is well, and says so.
func TestCheckRunning(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h, _ := join(c, s, 5, "--healthz-port=2401")
	healthSays(t, h, http.StatusOK, "ok") // and so the rules are there
	before := hostState(t, c, h)
	text, status := checked(t, c, h, "--healthz-port=2401")
	if status != 0 || strings.Contains(text, "warning") {
		t.Errorf("exit status %d", status)
	}
	for _, want := range []string{
		fmt.Sprintf(`ok +flanneld +one runs here as process %d,`, h.Daemon.Pid), `skipped +healthz port +the flanneld that runs here may have it`,
		`ok +lease +this host has 10\.1\.5\.0/24, until \S+Z; 254 of 255 subnets are free`, `ok +network +10\.1\.0\.0/16 overlaps no other`,
		`ok +backend +vxlan, with an MTU of 1450 for containers$`, `ok +ip_forward +net\.ipv4\.ip_forward is on`,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(text) {
			t.Errorf("there is no line %s", want)
		}
	}
	if after := hostState(t, c, h); after != before {
		t.Errorf("it has changed something (-before +after):\n%s", cmp.Diff(before, after))
	}
	if t.Failed() {
		t.Log(text)
	}
}

// Beside a flanneld that runs, a backend that it does not run with is looked at all the
// same; of its own, its port is left out.
func TestCheckOtherBackend(t *testing.T) {
	if err := lab.TUN(); err != nil {
		t.Skip(err)
	}
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "udp"}`))
	h, _ := join(c, s, 5)
	for _, port := range []string{":8472", ":7890"} {
		c.Must(h.Do(func() error {
			taken, err := net.ListenPacket("udp4", port)
			if err == nil {
				t.Cleanup(func() { taken.Close() })
			}
			return err
		}))
	}
	for _, test := range []struct{ backend, want string }{
		{`{"Type": "udp"}`, "ok +backend +udp, with an MTU of 1472 for containers; its port is in use by the flanneld that runs here$"},
		{`{"Type": "udp", "Port": 7890}`, "failure +backend +opening the udp backend's socket on " + h.Addr().String() + ":7890: address already in use: "},
		{`{"Type": "udp", "Port": 7891}`, "ok +backend +udp, with an MTU of 1472 for containers$"},
		{`{"Type": "vxlan"}`, "failure +backend +setting the state of the device flannel.1: address already in use: "},
		{`{"Type": "vxlan", "Port": 4789}`, "ok +backend +vxlan, with an MTU of 1450 for containers$"},
	} {
		c.SetConfig(configOf(test.backend))
		if text, _ := checked(t, c, h); !regexp.MustCompile(`(?m)^` + test.want).MatchString(text) {
			t.Errorf("there is no line %s in\n%s", test.want, text)
		}
	}
	// One that does not answer, as an older one does not, may use what it likes.
	c.SetConfig(configOf(`{"Type": "udp"}`))
	h.Daemon.Pause()
	began := time.Now()
	text, _ := checked(t, c, h)
	const want = `(?m)^skipped +backend +udp, .*; whether its port is free cannot be known while the flanneld runs here that does not say what it uses$`
	if took := time.Since(began); took > 6*time.Second || !regexp.MustCompile(want).MatchString(text) {
		t.Errorf("it took %v and there is no line %s in\n%s", took, want, text)
	}
	h.Daemon.Continue()
}

// A public IP that is another host's, or that this host had before its subnet file was
// lost, is told from one that nobody has.
func TestCheckPublicIP(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h1, _ := join(c, s, 5)
	h2 := c.Node("h2", s)
	text, status := checked(t, c, h2, "--public-ip="+h1.Addr().String())
	want := fmt.Sprintf(`(?m)^warning +lease +the host with %[1]v has 10\.1\.5\.0/24, until \S+Z, and this host's subnet file does not know of it; .*; to do: see that there is no other host with %[1]v;`, h1.Addr())
	if status != 0 || !regexp.MustCompile(want).MatchString(text) {
		t.Errorf("exit status %d, and there is no line %s in\n%s", status, want, text)
	}
}

// What is wrong with the network config, and with this host beside it, is found.
func TestCheckConfig(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	finds(t, c, h, nil, `failure network config /coreos.com/network/config is not in the store; to do: write one there, like {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}; flanneld waits until then`)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlna"}}`)
	finds(t, c, h, nil, `failure network config Backend.Type is "vxlna": there is no such backend, only host-gw, udp, vxlan; to do: put it right in etcd; flanneld waits until then`)
	c.SetConfig(`{"Network": "10.1.0.0/16", "SubnetLenght": 25, "Backend": {"Type": "vxlan"}}`)
	finds(t, c, h, nil, "warning network config it has fields that are not known here and have no effect: SubnetLenght; to do: see whether they are misspelt, or remove them")
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "MTU": 9000}}`)
	finds(t, c, h, nil, "failure backend the network config's Backend.MTU is 9000, but eth0, which carries the packets, has an MTU of 1500: lower the one or raise the other; to do: change the network config, or this host's flags")
	c.SetConfig(`{"Network": "10.1.0.0/28", "Backend": {"Type": "vxlan"}}`)
	for i, key := range []string{"10.1.0.4-30", "10.1.0.8-30", "10.1.0.12-30"} {
		c.PutLease(key, fmt.Sprintf(`{"PublicIP": "172.30.0.%d"}`, 200+i), time.Hour)
	}
	finds(t, c, h, nil, "failure lease none of the 3 subnets is free; to do: give the network more subnets, by a larger Network or SubnetLen, or remove leases of hosts that are no more; flanneld waits until then")
	c.PutLease("10.1.0.8-30", fmt.Sprintf(`{"PublicIP": "%v"}`, h.Addr()), 0)
	finds(t, c, h, nil, "ok lease this host has 10.1.0.8/30, reserved for it; 0 of 3 subnets are free")

	if err := lab.TUN(); err != nil {
		t.Skip(err)
	}
	c.DeleteLease("10.1.0.8-30")
	c.SetConfig(`{"Network": "10.1.0.0/16"}`)
	var taken net.PacketConn
	c.Must(h.Do(func() (err error) {
		taken, err = net.ListenPacket("udp4", h.Addr().String()+":8285")
		return err
	}))
	defer taken.Close()
	finds(t, c, h, nil, fmt.Sprintf(`failure backend opening the udp backend's socket on %v:8285: address already in use: another process, probably another flanneld, has that port; stop it or choose another Port for the whole cluster; `+
		`to do: give the backend what it needs, or choose another for the cluster`, h.Addr()))
}

// etcd being away, in whatever way, is a failure, what depends on it is left out and
// named, and the rest is looked at all the same, in time.
func TestCheckWithoutEtcd(t *testing.T) {
	l, s := newSegment(t)
	c := cluster.NewMembers(l, s, 3)
	c.SetConfig(vxlanConfig)
	h := c.Node("h1", s)
	soon := func(t *testing.T, want ...string) (text string) {
		t.Helper()
		began := time.Now()
		text, status := checked(t, c, h)
		if took := time.Since(began); took > 4*time.Second { // and it does not wait for the config from who does not answer
			t.Errorf("it took %v", took)
		}
		if status != 1 {
			t.Errorf("exit status %d", status)
		}
		for _, w := range append(want, "skipped +network +the network config is not known", "skipped +backend +the network config is not known", "skipped +lease +the network config is not known",
			"ok +interface +eth0", "ok +iptables rules +none", "3 failures, 0 warnings: flanneld would not work here as asked.") {
			if !regexp.MustCompile(`(?m)^` + w).MatchString(text) {
				t.Errorf("there is no line %s in\n%s", w, text)
			}
		}
		return text
	}
	down := c.Members[0]

	down.Stop()
	c.Etcd = c.Members[1]
	lab.Eventually(t, 20*time.Second, "two members that know their leader", func() error {
		if text, status := checked(t, c, h); status != 0 {
			return errors.New(text)
		}
		return nil
	})
	finds(t, c, h, nil, "warning etcd "+down.Endpoint()+": connecting to it: connection refused; to do: see to that member; flanneld does with the others meanwhile")

	for _, e := range c.Members[1:] {
		e.Isolate()
	}
	soon(t, "failure +etcd +"+c.Members[0].Endpoint()+": connecting to it: connection refused; to do: see whether etcd runs there",
		"failure +etcd +"+c.Members[1].Endpoint()+": connecting to it: no answer within 2s", "skipped +network config +etcd does not answer")
	for _, e := range c.Members[1:] {
		e.Mend()
	}

	// One alone answers, and knows that it has no majority.
	c.Members[1].Stop()
	lab.Eventually(t, 20*time.Second, "a member that knows that it is alone", func() error {
		if text, _ := checked(t, c, h); !strings.Contains(text, c.Members[2].Endpoint()+": it answers 503 Service Unavailable: During election") {
			return errors.New(text)
		}
		return nil
	})
	soon(t)
}

// A user of etcd's who may not do what flanneld has to is found before that, also one
// who may read and not write; the password is not shown.
func TestCheckEtcdUser(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	c.Etcd.EnableAuth()
	c.Etcd.SetUser("host1", secret, c.Prefix)
	c.Etcd.SetUser("reader", secret, c.Prefix)
	c.Etcd.SetRole("reader", []string{c.Prefix + "/*"}, nil)
	h := c.Node("h1", s)
	const refused = "etcd says: The request requires user authentication (Insufficient credentials); "
	const rights = "flanneld has to read and write /coreos.com/network/*"
	for _, test := range []struct{ name, user, password, want string }{
		{"right", "host1", secret, "ok etcd rights leases can be read and written"},
		{"wrong password", "host1", secret + "0", "failure network config reading /coreos.com/network/config: " + refused +
			`there is no user "host1" with the password given, or it may not do this: see to --etcd-username, --etcd-password and the roles of that user (` + rights +
			`; etcd's log says which it is); to do: see to etcd, and to what flanneld is told of it; flanneld waits until then`},
		{"may not write", "reader", secret, "failure etcd rights writing leases is refused: deleting /coreos.com/network/subnets/flanneld-check: " + refused +
			`the user "reader" may read /coreos.com/network/config, so name and password are right: give it a role that may do this too (` + rights +
			`); to do: let the user of flanneld read and write all below the prefix`},
	} {
		t.Run(test.name, func(t *testing.T) {
			h.Under = []string{"env", "FLANNELD_ETCD_PASSWORD=" + test.password}
			finds(t, c, h, []string{"--etcd-username=" + test.user}, test.want)
			text, _ := checked(t, c, h, "--etcd-username="+test.user, "-v=9")
			keepsSecret(t, "what is printed", text, test.user, test.password)
		})
	}
}

// Files for TLS that cannot be used, and a clock that is not etcd's, are found.
func TestCheckTLS(t *testing.T) {
	l, s := newSegment(t)
	ca := newAuthority(l, "ca")
	c := cluster.On(l, l.Host("etcd", s).EtcdTLS(ca))
	c.SetConfig(vxlanConfig)
	h := c.Node("h1", s)
	flags := admit(l, h.Dir, ca, ca, time.Now().Add(time.Hour))
	finds(t, c, h, flags)
	l.Must(os.Remove(filepath.Join(h.Dir, "client-key.pem")))
	finds(t, c, h, flags, "failure etcd reading the key of the client certificate for etcd: open "+h.Dir+
		"/client-key.pem: no such file or directory; put the file there, or name another with --etcd-keyfile; to do: see to the files and flags for etcd")
	finds(t, c, h, nil, "failure etcd "+c.Etcd.Endpoint()+`: its certificate, issued by "ca", is of none of the CAs that this system trusts; name the file with etcd's CA with --etcd-cafile; `+
		"to do: see whether etcd runs there, with a majority of its members, and what is on the way to it; flanneld waits until then")
}

// Of etcd's usual places one is enough; of those that somebody has named, each counts.
func TestCheckUsualPlaces(t *testing.T) {
	c, _ := newCluster(t)
	c.SetConfig(vxlanConfig)
	h := c.Etcd.Host()
	text, err := h.Exec(lab.Binary("flanneld"), "check", "--subnet-file="+h.Dir+"/subnet.env")
	if err != nil || strings.Contains(text, "warning") || !regexp.MustCompile(`(?m)^skipped +etcd +http://127.0.0.1:4001 is not used: `).MatchString(text) {
		t.Errorf("error %v and\n%s", err, text)
	}
}

// A script reads the same from JSON, in the same order, without colours.
func TestCheckJSON(t *testing.T) {
	c, s := newCluster(t)
	h := c.Node("h1", s)
	table, _ := checked(t, c, h)
	text, status := checked(t, c, h, "--output=json")
	var got struct {
		Fit      bool
		Findings []struct{ Name, Level, Text, Hint string }
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if got.Fit || status != 1 {
		t.Errorf("fit: %v, exit status %d", got.Fit, status)
	}
	rows := strings.Split(table, "\n")
	for i, f := range got.Findings {
		if !strings.HasPrefix(rows[i], f.Level) || !strings.Contains(rows[i], f.Name) {
			t.Errorf("finding %d is %+v, and line %d is %s", i, f, i, rows[i])
		}
		if wrong := f.Level == "warning" || f.Level == "failure"; wrong != (f.Hint != "") {
			t.Errorf("%+v: what is wrong has a hint, and nothing else", f)
		}
	}
	if len(rows) != len(got.Findings)+2 || strings.Contains(table, "\x1b") {
		t.Errorf("%d findings, and the table is\n%q", len(got.Findings), table)
	}
}
