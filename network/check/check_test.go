package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"flanneld/backend/table"
	"flanneld/pkg/extif"
	"flanneld/subnet"
)

// lines are findings as a person reads them, without what is laid out.
func lines(all ...Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%s %s: %s\n", f.Level, f.Name, f.Text)
	}
	return b.String()
}

// says checks findings, and that what is wrong has a hint, and nothing else.
func says(t *testing.T, what string, want string, got ...Finding) {
	t.Helper()
	if diff := cmp.Diff(want+"\n", lines(got...)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
	for _, f := range got {
		if wrong := f.Level == Warning || f.Level == Failure; wrong != (f.Hint != "") || strings.Contains(f.Text+f.Hint, "\n") {
			t.Errorf("%s: %+v: what is wrong has a hint, nothing else has, and all is on one line", what, f)
		}
	}
}

func configOf(t *testing.T, text string) *table.Config {
	t.Helper()
	c, _, err := table.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

var errNo = errors.New("no")

func TestDaemon(t *testing.T) {
	for want, f := range map[string]Finding{
		"ok flanneld: none runs here": daemon(process{}, nil),
		"ok flanneld: none runs here; from an earlier run there is flannel.1, flannel0, to be taken over or removed": daemon(process{}, []string{"flannel.1", "flannel0"}),
		"ok flanneld: one runs here as process 7, so what follows is about a host that takes part":                   daemon(process{pid: 7, answers: true}, []string{"flannel.1"}),
		"ok flanneld: one runs here as process 7, and is of an older kind: stop it before this one is started":       daemon(process{pid: 7}, nil),
		"warning flanneld: whether one runs here cannot be known: no":                                                daemon(process{err: errNo}, nil),
	} {
		says(t, "daemon", want, f)
	}
}

func TestPrivileges(t *testing.T) {
	says(t, "all", "ok privileges: CAP_NET_ADMIN and CAP_NET_RAW", privileges(nil, nil)...)
	says(t, "none", "failure privileges: CAP_NET_ADMIN is missing, without which nothing in the kernel's network can be changed: operation not permitted", privileges(unix.EPERM, unix.EPERM)...)
	says(t, "no raw sockets", "warning privileges: CAP_NET_RAW is missing, without which iptables may refuse to work: operation not permitted", privileges(nil, unix.EPERM)...)
}

func TestPlace(t *testing.T) {
	addr := netip.MustParseAddr("172.16.0.11")
	i := extif.Interface{Name: "eth0", MTU: 1500, Addr: addr, Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}, Up: true, Chosen: "the IPv4 default route"}
	const is = " interface: eth0 with the address 172.16.0.11 and MTU 1500, chosen by the IPv4 default route"
	says(t, "well", "ok"+is+"\nok public IP: peers are told 172.16.0.11", place(i, addr, nil)...)
	says(t, "NAT", "ok"+is+"\nok public IP: peers are told 203.0.113.9, which is no address of eth0: what is sent there has to reach this host", place(i, netip.MustParseAddr("203.0.113.9"), nil)...)
	i.Up = false
	says(t, "down", "failure"+is+", is down: there is no traffic between hosts until it is up\nok public IP: peers are told 172.16.0.11", place(i, addr, nil)...)
	says(t, "none", "failure interface: no\nskipped public IP: there is no interface", place(extif.Interface{}, netip.Addr{}, errNo)...)
}

func TestMembers(t *testing.T) {
	a, b := subnet.Member{Endpoint: "http://a:2379", Took: 1234567}, subnet.Member{Endpoint: "http://b:2379", Err: errNo}
	says(t, "one of two that were given", "ok etcd: http://a:2379 answers, in 1.2ms\nwarning etcd: http://b:2379: no", members([]subnet.Member{a, b}, true)...)
	says(t, "one of two that were not", "ok etcd: http://a:2379 answers, in 1.2ms\nskipped etcd: http://b:2379 is not used: no", members([]subnet.Member{a, b}, false)...)
	for _, given := range []bool{true, false} {
		says(t, "none", "failure etcd: http://b:2379: no", members([]subnet.Member{b}, given)...)
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC)
	at := func(ahead time.Duration) []subnet.Member {
		return []subnet.Member{{Endpoint: "http://a:2379", Ahead: time.Second}, {Endpoint: "http://b:2379", Ahead: ahead}, {Endpoint: "http://c:2379", Ahead: 99 * time.Hour, Err: errNo}}
	}
	for _, test := range []struct {
		now     time.Time
		members []subnet.Member
		want    string
	}{
		{now, nil, "ok clock: it is 2027-03-04T05:06:07Z here; there is nothing to compare that with"},
		{now, at(-5 * time.Minute), "ok clock: it is 2027-03-04T05:06:07Z here, and within 5m0s of that on etcd's hosts"},
		{now, at(301 * time.Second), "warning clock: it is 2027-03-04T05:06:07Z here, 5m1s behind the clock of http://b:2379"},
		{now, at(-time.Hour), "warning clock: it is 2027-03-04T05:06:07Z here, 1h0m0s ahead of the clock of http://b:2379"},
		{time.Unix(100, 0), at(0), "warning clock: it is 1970-01-01T00:01:40Z here, which is too long ago to be true"},
	} {
		says(t, "clock", test.want, clock(test.now, test.members))
	}
}

func TestConfig(t *testing.T) {
	well := []subnet.Member{{}}
	for _, test := range []struct {
		name string
		answers
		want string
		used bool
	}{
		{"no etcd", answers{members: []subnet.Member{{Err: errNo}}, configErr: errNo}, "skipped network config: etcd does not answer", false},
		{"none", answers{members: well, configErr: fmt.Errorf("/net/config is %w", subnet.ErrNotFound)}, "failure network config: /net/config is not in the store", false},
		{"no majority", answers{members: well, configErr: fmt.Errorf("reading: %w", context.DeadlineExceeded)}, "failure network config: it could not be read within 4.3s", false},
		{"refused", answers{members: well, configErr: errNo}, "failure network config: no", false},
		{"wrong", answers{members: well, text: `{"Network": "10.1.0.0"}`}, `failure network config: Network is "10.1.0.0": must be an IPv4 prefix like "10.1.0.0/16"`, false},
		{"right", answers{members: well, text: `{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`},
			"ok network config: Network 10.1.0.0/16, SubnetLen 24, SubnetMin 10.1.1.0, SubnetMax 10.1.255.0, Backend vxlan", true},
		{"unknown fields", answers{members: well, text: `{"Network": "10.1.0.0/16", "Foo": 1, "Backend": {"Type": "vxlan", "Prot": 8472}}`},
			"ok network config: Network 10.1.0.0/16, SubnetLen 24, SubnetMin 10.1.1.0, SubnetMax 10.1.255.0, Backend vxlan\n" +
				"warning network config: it has fields that are not known here and have no effect: Foo, Backend.Prot", true},
		{"thousands of them", answers{members: well, text: `{"Network": "10.1.0.0/16", ` + unknownFields(3000) + `"Backend": {"Type": "vxlan"}}`},
			"ok network config: Network 10.1.0.0/16, SubnetLen 24, SubnetMin 10.1.1.0, SubnetMax 10.1.255.0, Backend vxlan\n" +
				"warning network config: it has fields that are not known here and have no effect: F1000, F1001, F1002, F1003, F1004, and 2995 more", true},
	} {
		c, found := config(test.answers)
		says(t, test.name, test.want, found...)
		if (c != nil) != test.used {
			t.Errorf("%s: used: %v", test.name, c != nil)
		}
	}
}

func unknownFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"F%d": 1, `, 1000+i)
	}
	return b.String()
}

func TestRights(t *testing.T) {
	a := answers{members: []subnet.Member{{}}, writeErr: fmt.Errorf("x is %w", subnet.ErrNotFound)}
	says(t, "all", "ok etcd rights: leases can be read and written", rights(a))
	a.writeErr = errNo
	says(t, "read only", "failure etcd rights: writing leases is refused: no", rights(a))
	a.listErr = errNo
	says(t, "none", "failure etcd rights: no", rights(a))
	a.configErr = errNo
	says(t, "no config", "skipped etcd rights: the network config could not be read", rights(a))
}

func TestLease(t *testing.T) {
	me, other := netip.MustParseAddr("172.16.0.11"), netip.MustParseAddr("172.16.0.12")
	lease := func(p string, ip netip.Addr, revision uint64) *subnet.Lease {
		return &subnet.Lease{Subnet: netip.MustParsePrefix(p), Attrs: subnet.Attrs{PublicIP: ip}, Revision: revision, Created: revision, Expires: time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC)}
	}
	reserved := lease("10.1.0.4/30", me, 7)
	reserved.Expires = time.Time{}
	taken := new(subnet.Lease)
	*taken = *reserved
	taken.Revision = 8
	full := []*subnet.Lease{lease("10.1.0.4/30", other, 7), lease("10.1.0.8/30", other, 8), lease("10.1.0.12/30", other, 9)}
	last := subnet.Remembered{Subnet: netip.MustParsePrefix("10.1.0.4/30"), PublicIP: other, Revision: 7}
	from := func(p string) subnet.Remembered { return subnet.Remembered{Subnet: netip.MustParsePrefix(p)} }
	for _, test := range []struct {
		name   string
		last   subnet.Remembered
		leases []*subnet.Lease
		want   string
	}{
		{"a new host", subnet.Remembered{}, full[:1], "ok lease: this host will get a free subnet; 2 of 3 subnets are free"},
		{"its own", from("10.1.0.4/30"), []*subnet.Lease{lease("10.1.0.4/30", me, 7)}, "ok lease: this host has 10.1.0.4/30, until 2027-03-04T05:06:07Z; 2 of 3 subnets are free"},
		{"its own, or that of another host with its address", from("10.1.0.8/30"), []*subnet.Lease{lease("10.1.0.4/30", me, 7)},
			"warning lease: the host with 172.16.0.11 has 10.1.0.4/30, until 2027-03-04T05:06:07Z, and this host's subnet file does not know of it; 2 of 3 subnets are free"},
		{"a reservation that a host has taken", subnet.Remembered{}, []*subnet.Lease{taken},
			"warning lease: the host with 172.16.0.11 has 10.1.0.4/30, reserved for it, and this host's subnet file does not know of it; 2 of 3 subnets are free"},
		{"a reservation", subnet.Remembered{}, []*subnet.Lease{reserved}, "ok lease: this host has 10.1.0.4/30, reserved for it; 2 of 3 subnets are free"},
		{"its own, under an earlier address", last, full, "ok lease: this host has 10.1.0.4/30, until 2027-03-04T05:06:07Z; 0 of 3 subnets are free"},
		{"its own of an earlier config", subnet.Remembered{}, []*subnet.Lease{lease("10.9.0.0/24", me, 7)},
			"warning lease: this host has 10.9.0.0/24, which is none of the network's subnets any more and will be removed; this host will get a free subnet; 3 of 3 subnets are free"},
		{"two of its own, of which one fits", from("10.1.0.4/30"), []*subnet.Lease{lease("10.9.0.0/24", me, 7), lease("10.1.0.4/30", me, 8), lease("10.9.1.0/24", me, 9)},
			"ok lease: this host has 10.1.0.4/30, until 2027-03-04T05:06:07Z; 2 of 3 subnets are free"},
		{"of the subnet file", from("10.1.0.8/30"), full[:1], "ok lease: this host will ask for 10.1.0.8/30, the subnet in its subnet file; 2 of 3 subnets are free"},
		{"of the subnet file, taken", from("10.1.0.4/30"), full[:1],
			"warning lease: the subnet in its subnet file, 10.1.0.4/30, is not to be had: 10.1.0.4/30 (held by 172.16.0.12); this host will get a free subnet; 2 of 3 subnets are free"},
		{"full", subnet.Remembered{}, full, "failure lease: none of the 3 subnets is free"},
	} {
		h := holding{config: configOf(t, `{"Network": "10.1.0.0/28", "Backend": {"Type": "vxlan"}}`), publicIP: me, last: test.last, said: answers{leases: test.leases}}
		says(t, test.name, test.want, h.lease())
	}
}

func TestOverlap(t *testing.T) {
	c := *configOf(t, `{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`)
	p, via := netip.MustParsePrefix, netip.MustParseAddr("172.16.0.1")
	own := p("10.1.5.0/24")
	addr := func(a, dev string) near { return near{prefix: p(a), dev: dev, onLink: true} }
	route := func(n near) near { n.route = true; return n }
	for _, test := range []struct {
		name string
		near
		want string // empty is for none
	}{
		{"elsewhere", addr("172.16.0.11/24", "eth0"), ""},
		{"in the network", addr("10.1.7.1/24", "br0"), "the address 10.1.7.1/24 of br0"},
		{"all around the network", addr("10.200.0.1/8", "eth0"), "the address 10.200.0.1/8 of eth0"},
		{"the bridge of the containers", addr("10.1.5.1/24", "docker0"), ""},
		{"a route around the network", route(near{prefix: p("10.0.0.0/8"), via: via, dev: "eth0"}), ""},
		{"a link around the network", route(near{prefix: p("10.0.0.0/8"), dev: "eth0", onLink: true}), "the route 10.0.0.0/8 dev eth0"},
		{"routes by several gateways around the network", route(near{prefix: p("10.0.0.0/8")}), ""},
		{"a route to the network", route(near{prefix: p("10.1.0.0/16"), via: via, dev: "eth0"}), "the route 10.1.0.0/16 via 172.16.0.1"},
		{"a route in the network", route(near{prefix: p("10.1.7.0/24"), via: via, dev: "eth0"}), "the route 10.1.7.0/24 via 172.16.0.1"},
		{"a route by several gateways in the network", route(near{prefix: p("10.1.7.0/24")}), "the route 10.1.7.0/24"},
		{"an older daemon's route", route(near{prefix: p("10.1.7.0/24"), via: via, dev: "eth0", plain: true}), ""},
		{"a smaller one", route(near{prefix: p("10.1.7.0/25"), via: via, dev: "eth0", plain: true}), "the route 10.1.7.0/25 via 172.16.0.1"},
		{"to a container", route(near{prefix: p("10.1.5.7/32"), dev: "veth1", onLink: true}), ""},
	} {
		want := "ok network: 10.1.0.0/16 overlaps no other address or route of this host"
		if test.want != "" {
			want = "warning network: 10.1.0.0/16 overlaps what this host has already: " + test.want
		}
		says(t, test.name, want, overlap(c, own, []near{test.near}, nil))
	}
	many := make([]near, 7)
	for i := range many {
		many[i] = addr(fmt.Sprintf("10.1.%d.1/24", 10+i), "br0")
	}
	if got := overlap(c, own, many, nil).Text; !strings.HasSuffix(got, "the address 10.1.14.1/24 of br0, and 2 more") {
		t.Errorf("of many: %s", got)
	}
	says(t, "cannot be known", "warning network: whether 10.1.0.0/16 is in use cannot be known: no", overlap(c, own, nil, errNo))
}

// Of etcd's members and other hosts in the network those are cut off that are reached
// by a route to more than it.
func TestCutOff(t *testing.T) {
	udp, vxlan := *configOf(t, `{"Network": "172.16.0.0/16"}`), *configOf(t, `{"Network": "172.16.0.0/16", "Backend": {"Type": "vxlan"}}`)
	a, p, self := netip.MustParseAddr, netip.MustParsePrefix, netip.MustParseAddr("172.16.9.9")
	lease := func(ip netip.Addr) *subnet.Lease { return &subnet.Lease{Attrs: subnet.Attrs{PublicIP: ip}} }
	said := answers{
		members: []subnet.Member{{Endpoint: "https://172.16.0.1:2379"}, {Endpoint: "http://etcd:2379"}, {Endpoint: "http://[2001:db8::1]:2379"}, {Endpoint: "http://192.168.0.9:2379"}},
		leases:  []*subnet.Lease{lease(self), lease(netip.Addr{}), lease(a("172.16.1.2")), lease(a("192.168.0.2"))},
	}
	const both, host = "etcd at https://172.16.0.1:2379, the host 172.16.1.2", "the host 172.16.1.2"
	for _, test := range []struct {
		name   string
		nearby []near
		want   string
	}{
		{"the default route", nil, both},
		{"a route to more", []near{{prefix: p("172.16.0.0/12"), route: true}}, both},
		{"a link with more", []near{{prefix: p("172.17.0.1/12"), onLink: true}}, both},
		{"a link with one of them", []near{{prefix: p("172.16.0.7/24"), onLink: true}}, host},
		{"a route to one of them", []near{{prefix: p("172.16.0.1/32"), route: true}}, host},
		{"routes to both", []near{{prefix: p("172.16.0.0/24"), route: true}, {prefix: p("172.16.1.0/24"), route: true}}, ""},
		{"a route to all of the network, which stays", []near{{prefix: p("172.16.0.0/16"), route: true}}, ""},
	} {
		all := farAway(said, self)
		if test.want == "" {
			if found := cutOff(udp, test.nearby, all); len(found) > 0 {
				t.Errorf("%s: %v", test.name, found)
			}
			continue
		}
		const has = "172.16.0.0/16 has addresses in it that this host has to reach, and "
		says(t, test.name, "failure network: "+has+"with the backend udp all of it leads to containers: "+test.want, cutOff(udp, test.nearby, all)...)
		says(t, test.name, "warning network: "+has+"cannot once their subnet is leased: "+test.want, cutOff(vxlan, test.nearby, all)...)
	}
}

// Where a part of the kernel is follows from files alone, and no module is loaded
// for it.
func TestModules(t *testing.T) {
	const release = "6.1.0-18-amd64"
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	host := func(more fstest.MapFS) fstest.MapFS {
		all := fstest.MapFS{
			"proc/sys/kernel/osrelease": file(release + "\n"), "proc/modules": file(""), "proc/misc": file("200 tap\n"),
			"lib/modules/" + release + "/modules.builtin": file("kernel/net/ipv4/tunnel4.ko\n"),
			"lib/modules/" + release + "/modules.dep":     file("kernel/drivers/net/vxlan/vxlan.ko.xz: kernel/net/ipv4/udp_tunnel.ko.xz\nkernel/drivers/net/tun.ko:\n"),
		}
		for name, f := range more {
			if all[name] = f; f == nil {
				delete(all, name)
			}
		}
		return all
	}
	for _, test := range []struct {
		name string
		root fstest.MapFS
		want string // of vxlan and tun
	}{
		{"modules", host(nil), "loadable loadable"},
		{"loaded", host(fstest.MapFS{"sys/module/vxlan/refcnt": file("0"), "proc/misc": file(" 10 other\n200 tun\n")}), "present present"},
		{"built in", host(fstest.MapFS{"lib/modules/" + release + "/modules.builtin": file("kernel/drivers/net/vxlan/vxlan.ko\nkernel/drivers/net/tun.ko\n")}), "present present"},
		{"none", host(fstest.MapFS{"lib/modules/" + release + "/modules.dep": file("kernel/net/ipv4/udp_tunnel.ko:\n")}), "absent absent"},
		{"only what needs it", host(fstest.MapFS{"lib/modules/" + release + "/modules.dep": file("kernel/x/nvxlan.ko: kernel/drivers/net/vxlan/vxlan.ko\n")}), "absent absent"},
		{"of another kernel", host(fstest.MapFS{"proc/sys/kernel/osrelease": file("6.9.9\n")}), "unknown unknown"},
		{"a kernel that takes no modules", host(fstest.MapFS{"proc/modules": nil}), "absent absent"},
		{"a kernel that takes no more modules", host(fstest.MapFS{"proc/sys/kernel/modules_disabled": file("1\n")}), "absent absent"},
	} {
		m := modules{test.root}
		names := map[presence]string{present: "present", loadable: "loadable", absent: "absent", unknown: "unknown"}
		if got := names[m.find("vxlan")] + " " + names[m.tun()]; got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// Only what the configured backend cannot do without is a failure.
func TestKernelParts(t *testing.T) {
	for _, test := range []struct {
		p           presence
		backendType string
		want        string
	}{
		{present, "udp", "ok VXLAN: the kernel has it"},
		{loadable, "vxlan", "ok VXLAN: a module, which the kernel loads when it is first used"},
		{absent, "vxlan", "failure VXLAN: the kernel does not have it, which the backend vxlan needs"},
		{absent, "", "warning VXLAN: the kernel does not have it, which the backend vxlan needs"},
		{absent, "host-gw", "ok VXLAN: the kernel does not have it, and the backend host-gw does without"},
		{unknown, "vxlan", "warning VXLAN: it is not loaded, and the modules of this kernel are not to be seen here"},
		{unknown, "udp", "ok VXLAN: the kernel does not have it, and the backend udp does without"},
	} {
		says(t, test.want, test.want, part("VXLAN", "vxlan", test.p, test.backendType, "vxlan"))
	}
	says(t, "next hops", "ok next-hop objects: the kernel has them", nextHops("vxlan", nil))
	says(t, "no next hops", "warning next-hop objects: the kernel does not have them: with vxlan or host-gw and thousands of hosts, a start takes many times as long", nextHops("host-gw", unix.EOPNOTSUPP))
	says(t, "no next hops, udp", "ok next-hop objects: the kernel does not have them, and the backend udp does without", nextHops("udp", unix.EOPNOTSUPP))
	says(t, "no answer", "warning next-hop objects: they cannot be asked for: no", nextHops("vxlan", errNo))
	says(t, "offloads", "ok udp offloads: the kernel has all", offloads("", nil))
	says(t, "fewer offloads", "warning udp offloads: packets will be carried more slowly than could be: the kernel lacks X", offloads("X", nil))
	says(t, "offloads untried", "skipped udp offloads: they cannot be tried: no", offloads("", errNo))
}

func TestSubnetFile(t *testing.T) {
	c, fits, not := configOf(t, `{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`), netip.MustParsePrefix("10.1.5.0/24"), netip.MustParsePrefix("10.2.5.0/24")
	for _, test := range []struct {
		name          string
		config        *table.Config
		own           netip.Prefix
		err, writeErr error
		want          string
	}{
		{"not there", c, netip.Prefix{}, fs.ErrNotExist, nil, "ok subnet file: /f is not there yet, and can be written"},
		{"there", c, fits, nil, nil, "ok subnet file: /f has 10.1.5.0/24, and can be written"},
		{"no config", nil, not, nil, nil, "ok subnet file: /f has 10.2.5.0/24, and can be written"},
		{"of another network", c, not, nil, nil, "warning subnet file: /f has 10.2.5.0/24, which is none of the network's subnets: this host will get another"},
		{"damaged", c, netip.Prefix{}, errNo, nil, "warning subnet file: /f cannot be used: no"},
		{"not to be written", c, fits, nil, errNo, "failure subnet file: /f cannot be written: no"},
		{"read-only", c, fits, nil, unix.EROFS, "failure subnet file: /f cannot be written: read-only file system"},
	} {
		says(t, test.name, test.want, subnetFile("/f", test.config, test.own, test.err, test.writeErr))
	}
}

// A file can be written where its directory, or the one that this would be made in,
// can be; nothing is made to find that out.
func TestWritable(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(dir, "f"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": "d", "dangling": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"link": "<nil>", "dangling": "<nil>", "link/subnet.env": "<nil>",
		"dangling/subnet.env": "DIR/dangling is a symbolic link that leads to nothing", "dangling/new/subnet.env": "DIR/dangling is a symbolic link that leads to nothing",
		"d/subnet.env": "<nil>", "new": "<nil>", "new/and/newer/subnet.env": "<nil>", "f": "<nil>",
		"d": "DIR/d is there and is no file", "f/subnet.env": "DIR/f is no directory", "f/d/subnet.env": "stat DIR/f/d: not a directory",
	} {
		if got := strings.ReplaceAll(fmt.Sprint(writable(filepath.Join(dir, name))), dir, "DIR"); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
		t.Errorf("there is now %v (%v)", entries, err)
	}
}

// Log files can be written where their directory is or can be made; one of a name can
// be there already.
func TestLogFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ dir, file, want string }{
		{"new/dir", "", "ok log files: DIR/new/dir can be written"},
		{"f", "", "failure log files: DIR/f cannot be written: DIR/f is no directory"},
		{"f/x", "", "failure log files: DIR/f/x cannot be written: stat DIR/f/x: not a directory"},
		{".", "f", "ok log files: DIR/f can be written"},
		{".", "new", "ok log files: DIR/new can be written"},
		{"..", ".", "failure log files: DIR cannot be written: DIR is a directory"},
	} {
		at, file := filepath.Join(dir, test.dir), test.file
		if file != "" {
			file = filepath.Join(dir, file)
		}
		f := logFiles(at, file, loggable(at, file))
		f.Text = strings.ReplaceAll(f.Text, dir, "DIR")
		says(t, test.dir+" "+test.file, test.want, f)
	}
}

func TestForwarding(t *testing.T) {
	says(t, "on", "ok ip_forward: net.ipv4.ip_forward is on", forwarding("1", nil, unix.EROFS))
	says(t, "off", "ok ip_forward: net.ipv4.ip_forward is off; flanneld turns it on when it starts", forwarding("0", nil, nil))
	says(t, "off for good", "failure ip_forward: net.ipv4.ip_forward is off, and flanneld cannot turn it on: read-only file system", forwarding("0", nil, unix.EROFS))
	says(t, "hidden", "warning ip_forward: it cannot be read whether it is on: no", forwarding("", errNo, errNo))
}

func TestRules(t *testing.T) {
	says(t, "none", "ok iptables rules: none of flannel's is there yet", rules(nil, nil, nil))
	says(t, "an earlier run's", "ok iptables rules: flanneld keeps or takes over what is there of its own, and of an older daemon's: 1 rule in A of nat, 2 rules in B of filter",
		rules([]string{"1 rule in A of nat", "2 rules in B of filter"}, nil, nil))
	says(t, "in both", "warning iptables rules: this host uses iptables-nft, and iptables-legacy has rules of flannel too, which count as well: 1 rule in B of nat", rules([]string{"1 rule in A of nat"}, []string{"1 rule in B of nat"}, nil))
	says(t, "none to be seen", "warning iptables rules: no", rules(nil, nil, errNo))
	says(t, "no program", "warning iptables: no", iptablesProgram(nil, errNo))
}

// A bad host as a person reads it, and as a script does.
func TestShow(t *testing.T) {
	bad := []Finding{
		ok("flanneld", "none runs here"),
		warning("clock", "set it", "it is 1970-01-01T00:00:00Z here,\nwhich is too long ago to be true"),
		failure("network config", "put it right in etcd", `Backend.Type is "<b>"`),
		skipped("lease", "the network config is not known"),
	}
	table := func(all []Finding, colour bool) string {
		var b strings.Builder
		if err := Table(&b, all, colour); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	want := `ok       flanneld        none runs here
warning  clock           it is 1970-01-01T00:00:00Z here, which is too long ago to be true; to do: set it
failure  network config  Backend.Type is "<b>"; to do: put it right in etcd
skipped  lease           the network config is not known

1 failure, 1 warning: flanneld would not work here as asked.
`
	if diff := cmp.Diff(want, table(bad, false)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	coloured := strings.NewReplacer("ok       flanneld", "\x1b[32mok     \x1b[0m  flanneld", "warning  clock", "\x1b[33mwarning\x1b[0m  clock", "failure  network", "\x1b[31mfailure\x1b[0m  network").Replace(want)
	if diff := cmp.Diff(coloured, table(bad, true)); diff != "" {
		t.Errorf("in colours (-want +got):\n%s", diff)
	}
	for want, all := range map[string][]Finding{
		"All is well: flanneld would work here.": {bad[0], bad[3]}, "No failure, 2 warnings: flanneld would work here.": {bad[1], bad[1]},
		"2 failures, 0 warnings: flanneld would not work here as asked.": {bad[2], bad[2]},
	} {
		if got := table(all, false); !strings.HasSuffix(got, "\n\n"+want+"\n") {
			t.Errorf("it ends in %q, want %s", got, want)
		}
		if Fit(all) != !strings.Contains(want, "not work") {
			t.Errorf("%s: fit: %v", want, Fit(all))
		}
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(Report{Fit(bad[2:]), bad[2:]}); err != nil {
		t.Fatal(err)
	}
	const wantJSON = `{
  "fit": false,
  "findings": [
    {
      "name": "network config",
      "level": "failure",
      "text": "Backend.Type is \"<b>\"",
      "hint": "put it right in etcd"
    },
    {
      "name": "lease",
      "level": "skipped",
      "text": "the network config is not known"
    }
  ]
}
`
	if diff := cmp.Diff(wantJSON, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
