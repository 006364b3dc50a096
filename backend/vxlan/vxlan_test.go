package vxlan

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flanneld/backend"
	"flanneld/pkg/extif"
	"flanneld/pkg/jsonfields"
	"flanneld/pkg/kernel"
	"flanneld/pkg/lab"
	"flanneld/subnet"
)

func TestMain(m *testing.M) { lab.Main(m) }

var (
	host = backend.Host{
		Interface: extif.Interface{Name: "eth0", Index: 2, MTU: 1500, Addr: netip.MustParseAddr("192.0.2.1")},
		PublicIP:  netip.MustParseAddr("192.0.2.1"),
		Network:   netip.MustParsePrefix("10.1.0.0/16"),
	}
	own    = lease("10.1.1.0/24", "192.0.2.1", `{"VtepMAC":"02:00:00:00:00:01"}`)
	ownMAC = kernel.MAC{2, 0, 0, 0, 0, 1}
	// link is a host on 192.0.2.0/24, by eth0.
	link = kernel.NewHost(
		kernel.HostRoute{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eth0"},
		kernel.HostRoute{Dst: netip.MustParsePrefix("192.0.2.0/24"), Dev: "eth0", OnLink: true},
		kernel.HostRoute{Dst: netip.MustParsePrefix("198.51.100.0/24"), Dev: "eth1", OnLink: true},
	)
)

func lease(prefix, publicIP, data string) *subnet.Lease {
	return &subnet.Lease{
		Subnet: netip.MustParsePrefix(prefix),
		Attrs:  subnet.Attrs{PublicIP: netip.MustParseAddr(publicIP), BackendType: Type, BackendData: json.RawMessage(data)},
	}
}

func parse(t *testing.T, text string) (config, error) {
	t.Helper()
	fields, err := jsonfields.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return readConfig(fields)
}

func TestPlan(t *testing.T) {
	const ownDevice = "link flannel.1 mtu 1450 addr 10.1.1.0/32 mac 02:00:00:00:00:01 vxlan id 1 local 192.0.2.1 dstport 8472\n"
	near := lease("10.1.2.0/24", "192.0.2.2", `{"VtepMAC":"02:00:00:00:00:02"}`)
	far := lease("10.1.3.0/24", "203.0.113.3", `{"VtepMAC":"02:00:00:00:00:03"}`)
	other := lease("10.1.4.0/24", "198.51.100.4", `{"VtepMAC":"02:00:00:00:00:04"}`)
	const nearVXLAN = `route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink
neigh 10.1.2.0 lladdr 02:00:00:00:00:02
fdb 02:00:00:00:00:02 dst 192.0.2.2
`
	const allVXLAN = `route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink
route 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink
route 10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink
neigh 10.1.2.0 lladdr 02:00:00:00:00:02
neigh 10.1.3.0 lladdr 02:00:00:00:00:03
neigh 10.1.4.0 lladdr 02:00:00:00:00:04
fdb 02:00:00:00:00:02 dst 192.0.2.2
fdb 02:00:00:00:00:03 dst 203.0.113.3
fdb 02:00:00:00:00:04 dst 198.51.100.4
`
	bad := func(prefix, data string) *subnet.Lease { return lease(prefix, "203.0.113.9", data) }
	for _, test := range []struct {
		name   string
		config string
		view   kernel.Host
		leases []*subnet.Lease
		state  string
		faults []string
	}{
		{name: "alone", leases: []*subnet.Lease{own}, state: ownDevice},
		{name: "before the own lease is seen", state: ownDevice},
		{name: "three peers", view: link, leases: []*subnet.Lease{own, near, far, other}, state: ownDevice + allVXLAN},
		{name: "direct routing", config: `{"Directrouting":true}`, view: link, leases: []*subnet.Lease{own, near, far, other},
			state: ownDevice + `route 10.1.2.0/24 via 192.0.2.2 dev eth0
route 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink
route 10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink
neigh 10.1.3.0 lladdr 02:00:00:00:00:03
neigh 10.1.4.0 lladdr 02:00:00:00:00:04
fdb 02:00:00:00:00:03 dst 203.0.113.3
fdb 02:00:00:00:00:04 dst 198.51.100.4
`},
		{name: "direct routing, nothing on the link", config: `{"DirectRouting":true}`, leases: []*subnet.Lease{near, far, other}, state: ownDevice + allVXLAN},
		{name: "direct routing needs no MAC of a peer on the link", config: `{"DirectRouting":true}`, view: link,
			leases: []*subnet.Lease{lease("10.1.2.0/24", "192.0.2.2", "")}, state: ownDevice + "route 10.1.2.0/24 via 192.0.2.2 dev eth0\n"},
		{name: "every setting", config: `{"VNI":7,"Port":4789,"GBP":true,"MTU":1400}`, leases: []*subnet.Lease{near},
			state: "link flannel.7 mtu 1350 addr 10.1.1.0/32 mac 02:00:00:00:00:01 vxlan id 7 local 192.0.2.1 dstport 4789 gbp\n" +
				strings.ReplaceAll(nearVXLAN, "flannel.1", "flannel.7")},
		{name: "BackendData in the spelling of others", leases: []*subnet.Lease{lease("10.1.2.0/24", "192.0.2.2", `{"VNI":1,"vtepmac":"02-00-00-00-00-02"}`)}, state: ownDevice + nearVXLAN},
		{name: "MAC in capitals", leases: []*subnet.Lease{lease("10.1.2.0/24", "192.0.2.2", `{"VtepMAC":"0A:BC:DE:F0:00:02"}`)},
			state: ownDevice + "route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink\nneigh 10.1.2.0 lladdr 0a:bc:de:f0:00:02\nfdb 0a:bc:de:f0:00:02 dst 192.0.2.2\n"},
		{name: "bad MACs keep nobody else out", leases: []*subnet.Lease{
			bad("10.1.11.0/24", ""),
			bad("10.1.12.0/24", `{}`),
			bad("10.1.13.0/24", `{"VtepMAC":"02:00"}`),
			bad("10.1.14.0/24", `{"VtepMAC":"01:00:5e:00:00:01"}`),
			bad("10.1.15.0/24", `{"VtepMAC":"ff:ff:ff:ff:ff:ff"}`),
			bad("10.1.16.0/24", `{"VtepMAC":"00:00:00:00:00:00"}`),
			bad("10.1.17.0/24", `{"VtepMAC":"02:00:00:00:00:00:00:01"}`),
			bad("10.1.18.0/24", `[]`),
			bad("10.1.19.0/24", `{"VtepMAC":5}`),
			near,
		}, state: ownDevice + nearVXLAN, faults: []string{
			"leaving out the lease of 10.1.11.0/24 (held by 203.0.113.9): it has no BackendData with a VtepMAC",
			`leaving out the lease of 10.1.12.0/24 (held by 203.0.113.9): its VtepMAC "" is not the MAC of a host`,
			`leaving out the lease of 10.1.13.0/24 (held by 203.0.113.9): its VtepMAC "02:00" is not the MAC of a host`,
			`leaving out the lease of 10.1.14.0/24 (held by 203.0.113.9): its VtepMAC "01:00:5e:00:00:01" is not the MAC of a host`,
			`leaving out the lease of 10.1.15.0/24 (held by 203.0.113.9): its VtepMAC "ff:ff:ff:ff:ff:ff" is not the MAC of a host`,
			`leaving out the lease of 10.1.16.0/24 (held by 203.0.113.9): its VtepMAC "00:00:00:00:00:00" is not the MAC of a host`,
			`leaving out the lease of 10.1.17.0/24 (held by 203.0.113.9): its VtepMAC "02:00:00:00:00:00:00:01" is not the MAC of a host`,
			"leaving out the lease of 10.1.18.0/24 (held by 203.0.113.9): its BackendData cannot be read: …",
			"leaving out the lease of 10.1.19.0/24 (held by 203.0.113.9): its BackendData cannot be read: …",
		}},
		{name: "a MAC twice", leases: []*subnet.Lease{near, lease("10.1.5.0/24", "192.0.2.5", `{"VtepMAC":"02:00:00:00:00:02"}`)}, state: ownDevice + nearVXLAN, faults: []string{
			"leaving out the lease of 10.1.5.0/24 (held by 192.0.2.5): its VtepMAC 02:00:00:00:00:02 is also that of 10.1.2.0/24 (held by 192.0.2.2); if both hosts are there, delete the device flannel.1 on one of them and restart flanneld there",
		}},
		{name: "a host with an old lease beside its own", leases: []*subnet.Lease{near, lease("10.1.5.0/24", "192.0.2.2", `{"VtepMAC":"02:00:00:00:00:02"}`)}, state: ownDevice + `route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink
route 10.1.5.0/24 via 10.1.5.0 dev flannel.1 onlink
neigh 10.1.2.0 lladdr 02:00:00:00:00:02
neigh 10.1.5.0 lladdr 02:00:00:00:00:02
fdb 02:00:00:00:00:02 dst 192.0.2.2
`},
		{name: "a host with an old lease under its old address", leases: []*subnet.Lease{near, newer(lease("10.1.5.0/24", "192.0.2.5", `{"VtepMAC":"02:00:00:00:00:02"}`))}, state: ownDevice + `route 10.1.5.0/24 via 10.1.5.0 dev flannel.1 onlink
neigh 10.1.5.0 lladdr 02:00:00:00:00:02
fdb 02:00:00:00:00:02 dst 192.0.2.5
`, faults: []string{
			"leaving out the lease of 10.1.2.0/24 (held by 192.0.2.2): its VtepMAC 02:00:00:00:00:02 is also that of 10.1.5.0/24 (held by 192.0.2.5); if both hosts are there, delete the device flannel.1 on one of them and restart flanneld there",
		}},
		{name: "the own MAC", leases: []*subnet.Lease{lease("10.1.5.0/24", "192.0.2.5", `{"VtepMAC":"02:00:00:00:00:01"}`), near}, state: ownDevice + nearVXLAN, faults: []string{
			"leaving out the lease of 10.1.5.0/24 (held by 192.0.2.5): its VtepMAC 02:00:00:00:00:01 is also this host's own; if both hosts are there, delete the device flannel.1 on one of them and restart flanneld there",
		}},
		{name: "another backend", leases: []*subnet.Lease{near, {Subnet: netip.MustParsePrefix("10.1.5.0/24"), Attrs: subnet.Attrs{PublicIP: netip.MustParseAddr("192.0.2.5"), BackendType: "udp"}}},
			state: ownDevice + nearVXLAN, faults: []string{"leaving out the lease of 10.1.5.0/24 (held by 192.0.2.5): its backend is udp, this host's is vxlan"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.config == "" {
				test.config = "{}"
			}
			c, err := parse(t, test.config)
			if err != nil {
				t.Fatal(err)
			}
			b := &vxlan{config: c, host: host, mac: ownMAC}
			state, errs := b.Plan(own.Subnet)(test.leases, test.view)
			if d := cmp.Diff(test.state, state.String()); d != "" {
				t.Errorf("state (-want +got):\n%s", d)
			}
			if v := state.Device.VXLAN; v.Link != host.Interface.Name {
				t.Errorf("the device is on the interface %s", v.Link)
			}
			var faults []string
			for _, err := range errs {
				text := err.Error()
				if head, _, ok := strings.Cut(text, "cannot be read: "); ok {
					text = head + "cannot be read: …" // encoding/json has the rest
				}
				faults = append(faults, text)
			}
			if d := cmp.Diff(test.faults, faults); d != "" {
				t.Errorf("faults (-want +got):\n%s", d)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	def := config{vni: 1, port: 8472}
	with := func(f func(*config)) config { c := def; f(&c); return c }
	for text, want := range map[string]config{
		`{}`: def,
		`{"VNI":null,"Port":null,"GBP":null,"DirectRouting":null,"MTU":null}`: def,
		`{"VNI":0}`:              with(func(c *config) { c.vni = 0 }),
		`{"vni":9999999}`:        with(func(c *config) { c.vni = 9999999 }),
		`{"Port":1}`:             with(func(c *config) { c.port = 1 }),
		`{"PORT":65535}`:         with(func(c *config) { c.port = 65535 }),
		`{"gbp":true}`:           with(func(c *config) { c.gbp = true }),
		`{"Directrouting":true}`: with(func(c *config) { c.directRouting = true }),
		`{"MTU":1400}`:           with(func(c *config) { c.mtu = 1400 }),
		`{"MTU":118}`:            with(func(c *config) { c.mtu = 118 }),
		`{"MTU":65535}`:          with(func(c *config) { c.mtu = 65535 }),
	} {
		if c, err := parse(t, text); err != nil || c != want {
			t.Errorf("%s: %+v, %v, want %+v", text, c, err, want)
		}
	}
	for text, want := range map[string]string{
		`{"VNI":-1}`:              "VNI is -1: must be a whole number from 0 to 9999999",
		`{"VNI":16777216}`:        "VNI is 16777216: must be a whole number from 0 to 9999999",
		`{"VNI":"1"}`:             `VNI is "1": must be a whole number from 0 to 9999999`,
		`{"Port":0}`:              "Port is 0: must be a whole number from 1 to 65535",
		`{"Port":65536}`:          "Port is 65536: must be a whole number from 1 to 65535",
		`{"Port":84.72}`:          "Port is 84.72: must be a whole number from 1 to 65535",
		`{"GBP":1}`:               "GBP is 1: must be true or false",
		`{"DirectRouting":"yes"}`: `DirectRouting is "yes": must be true or false`,
		`{"MTU":117}`:             "MTU is 117: must be a whole number from 118 to 65535",
		`{"MTU":65536}`:           "MTU is 65536: must be a whole number from 118 to 65535",
		`{"MTU":[]}`:              "MTU is []: must be a whole number from 118 to 65535",
	} {
		if _, err := parse(t, text); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	fields, err := jsonfields.Parse([]byte(`{"vni":1,"port":1,"gbp":true,"directrouting":true,"mtu":1400,"Learning":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(fields); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"Learning"}, fields.Unknown()); d != "" {
		t.Errorf("unknown fields (-want +got):\n%s", d)
	}
}

// The MAC is the same whenever a host starts, another for another host or VNI,
// and one that no maker of network cards has given out.
func TestNewMAC(t *testing.T) {
	// As it must stay over versions too: peers of a host that has rebooted
	// into a new version need not learn another.
	if got, want := newMAC(backend.Host{PublicIP: netip.MustParseAddr("192.0.2.1"), Interface: extif.Interface{MAC: "02:42:c0:00:02:01"}}, 1), "12:b1:1f:fd:8f:6a"; got.String() != want {
		t.Errorf("the MAC of 192.0.2.1 is %v, was %s", got, want)
	}
	seen := map[kernel.MAC]bool{}
	for vni := range 4 {
		a := netip.MustParseAddr("10.0.0.0")
		for range 5000 {
			host := backend.Host{PublicIP: a}
			mac := newMAC(host, vni)
			if other := newMAC(backend.Host{PublicIP: a, Interface: extif.Interface{MAC: "02:00:00:00:00:01"}}, vni); other == mac {
				t.Fatalf("two hosts with the address %v have one MAC", a)
			}
			if mac != newMAC(host, vni) || mac[0]&0x01 != 0 || mac[0]&0x02 == 0 {
				t.Fatalf("the MAC of %v, VNI %d is %v", a, vni, mac)
			}
			if seen[mac] {
				t.Fatalf("the MAC of %v, VNI %d is another's too: %v", a, vni, mac)
			}
			seen[mac] = true
			a = a.Next()
		}
	}
}

// A device that is there keeps its MAC, as peers know it; anything else gets
// the host's.
func TestOpen(t *testing.T) {
	if err := lab.Tools("ip"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	h := l.Host("h1", l.Segment("lan", netip.MustParsePrefix("192.0.2.0/24")))
	hostMAC := newMAC(host, 1).String()
	for _, test := range []struct {
		name, script, mac string
	}{
		{"no device", "true", hostMAC},
		{"a device", "ip link add flannel.1 address 02:00:00:00:00:42 type vxlan id 1 dstport 8472", "02:00:00:00:00:42"},
		{"a device of another shape", "ip link add flannel.1 address 02:00:00:00:00:43 type vxlan id 9 dstport 4789", "02:00:00:00:00:43"},
		{"the device of another VNI", "ip link add flannel.2 address 02:00:00:00:00:44 type vxlan id 2 dstport 8472", hostMAC},
		{"a bridge", "ip link add flannel.1 address 02:00:00:00:00:45 type bridge", hostMAC},
	} {
		t.Run(test.name, func(t *testing.T) {
			h.Run("sh", "-ec", test.script)
			defer h.Exec("sh", "-c", "ip link del flannel.1; ip link del flannel.2")
			var b backend.Backend
			err := h.Do(func() error {
				c, err := parse(t, `{}`)
				if err == nil {
					b, err = c.open(host)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := string(b.Data()), `{"VtepMAC":"`+test.mac+`"}`; got != want {
				t.Errorf("BackendData is %s, want %s", got, want)
			}
			if b.MTU() != 1450 {
				t.Errorf("MTU is %d", b.MTU())
			}
		})
	}
}

func TestValidMAC(t *testing.T) {
	for text, want := range map[string]bool{
		"02:00:00:00:00:01": true, "ca:4f:c9:70:58:48": true, "00:00:00:00:00:01": true,
		"00:00:00:00:00:00": false, "01:00:5e:00:00:01": false, "ff:ff:ff:ff:ff:ff": false, "02:00:00:00:00:00:00:01": false,
	} {
		hw, err := net.ParseMAC(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := validMAC(hw); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	if validMAC(nil) {
		t.Error("no MAC at all is valid")
	}
}

// newer is a lease that was written after all others.
func newer(l *subnet.Lease) *subnet.Lease {
	l.Revision = 99
	return l
}
