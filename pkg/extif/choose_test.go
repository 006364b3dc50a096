package extif

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func addrs(cidrs ...string) []address {
	var list []address
	for _, cidr := range cidrs {
		cidr, secondary := strings.CutSuffix(cidr, " secondary")
		cidr, inner := strings.CutSuffix(cidr, " link")
		list = append(list, address{prefix: netip.MustParsePrefix(cidr), secondary: secondary, global: !inner})
	}
	return list
}

// testHost is a host of many kinds of interface.
func testHost() snapshot {
	return snapshot{
		links: []link{
			{name: "lo", index: 1, mtu: 65536, up: true, loopback: true, addrs: addrs("127.0.0.1/8 link")},
			{name: "eth0", index: 2, mtu: 1500, mac: "02:00:00:00:00:02", up: true,
				addrs: addrs("169.254.7.7/16", "10.4.7.99/24 secondary", "10.4.7.21/24", "10.4.7.100/32")},
			{name: "eth1", index: 3, mtu: 9000, up: true, addrs: addrs("192.168.5.1/24")},
			{name: "eth2", index: 4, mtu: 1500, up: false, addrs: addrs("192.168.6.1/24")},
			{name: "eth3", index: 5, mtu: 1500, up: true},
			{name: "veth7", index: 6, mtu: 1500, up: true, port: true},
		},
		defaults: []defaultRoute{{index: 3, metric: 100}, {index: 2, metric: 50}, {index: 4, metric: 50}},
	}
}

const thereAre = "; there are: lo (127.0.0.1), eth0 (169.254.7.7, 10.4.7.99, 10.4.7.21, 10.4.7.100), " +
	"eth1 (192.168.5.1), eth2 (192.168.6.1, down), eth3 (no IPv4 address)"

func TestChoose(t *testing.T) {
	a := netip.MustParseAddr
	without := func(s snapshot) snapshot { s.defaults = nil; return s }
	for _, test := range []struct {
		name string
		opts Options
		host func(snapshot) snapshot
		want string // name and address
		err  string // without the list of interfaces
	}{
		{name: "default route of lowest metric", want: "eth0 10.4.7.21"},
		{name: "the first of two of the same metric", want: "eth1 192.168.5.1", host: func(s snapshot) snapshot {
			s.defaults = []defaultRoute{{index: 3}, {index: 2}}
			return s
		}},
		{name: "default route, public IP on the interface", opts: Options{PublicIP: a("10.4.7.100")}, want: "eth0 10.4.7.100"},
		{name: "public IP does not choose", opts: Options{PublicIP: a("192.168.5.1")}, want: "eth0 10.4.7.21"},
		{name: "no default route", host: without, err: "there is no IPv4 default route to choose the interface by; name it with --iface"},
		{name: "default route through loopback only", err: "there is no IPv4 default route to choose the interface by; name it with --iface",
			host: func(s snapshot) snapshot { s.defaults = []defaultRoute{{index: 1}}; return s }},
		{name: "default route without address", host: func(s snapshot) snapshot { s.defaults = []defaultRoute{{index: 5}}; return s },
			err: "the IPv4 default route leads through eth3, which has no IPv4 address; name another interface with --iface"},
		{name: "of two default routes the one without address", host: func(s snapshot) snapshot {
			s.defaults = []defaultRoute{{index: 5, metric: 1}, {index: 2, metric: 2}}
			return s
		}, err: "the IPv4 default route of lowest metric (1) leads through eth3, which has no IPv4 address; name another interface with --iface"},

		{name: "name", opts: Options{Ifaces: []string{"eth1"}}, want: "eth1 192.168.5.1"},
		{name: "name, no default route", opts: Options{Ifaces: []string{"eth1"}}, host: without, want: "eth1 192.168.5.1"},
		{name: "name and public IP", opts: Options{Ifaces: []string{"eth0"}, PublicIP: a("10.4.7.100")}, want: "eth0 10.4.7.100"},
		{name: "name and public IP beyond NAT", opts: Options{Ifaces: []string{"eth0"}, PublicIP: a("203.0.113.9")}, want: "eth0 10.4.7.21"},
		{name: "address", opts: Options{Ifaces: []string{"10.4.7.99"}, PublicIP: a("10.4.7.100")}, want: "eth0 10.4.7.99"},
		{name: "down", opts: Options{Ifaces: []string{"eth2"}}, want: "eth2 192.168.6.1"},
		{name: "loopback by name", opts: Options{Ifaces: []string{"lo"}}, want: "lo 127.0.0.1"},
		{name: "first match wins", opts: Options{Ifaces: []string{"eth7", "10.9.9.9", "eth3", "eth1", "eth0"}}, want: "eth1 192.168.5.1"},
		{name: "empty ones", opts: Options{Ifaces: []string{"", ""}, Regexes: []string{""}}, want: "eth0 10.4.7.21"},
		{name: "no such name", opts: Options{Ifaces: []string{"eth7"}}, err: "--iface=eth7: no such interface"},
		{name: "no such address", opts: Options{Ifaces: []string{"10.9.9.9"}}, err: "--iface=10.9.9.9: no interface has this address"},
		{name: "name without address", opts: Options{Ifaces: []string{"eth3"}}, err: "--iface=eth3: the interface has no IPv4 address"},
		{name: "all fail", opts: Options{Ifaces: []string{"eth7"}, Regexes: []string{"^10[.]9"}},
			err: "--iface=eth7: no such interface; --iface-regex=^10[.]9: matches no IPv4 address and no name of an interface"},

		{name: "regex, address", opts: Options{Regexes: []string{`^192\.168\.`}}, want: "eth1 192.168.5.1"},
		{name: "regex, the address that matches", opts: Options{Regexes: []string{`^10\.4\.7\.\d\d\d$`}}, want: "eth0 10.4.7.100"},
		{name: "regex, the best that matches", opts: Options{Regexes: []string{`^10\.4`}}, want: "eth0 10.4.7.21"},
		{name: "regex and public IP", opts: Options{Regexes: []string{`^10\.4`}, PublicIP: a("10.4.7.99")}, want: "eth0 10.4.7.99"},
		{name: "regex, name", opts: Options{Regexes: []string{`th1$`}}, want: "eth1 192.168.5.1"},
		{name: "regex, addresses before names", opts: Options{Regexes: []string{`^eth0|^192`}}, want: "eth1 192.168.5.1"},
		{name: "regex, one after the other", opts: Options{Regexes: []string{`^eth1`, `^10`}}, want: "eth1 192.168.5.1"},
		{name: "regex, name with address first", opts: Options{Regexes: []string{`^eth[31]`}}, want: "eth1 192.168.5.1"},
		{name: "regex, loopback last", opts: Options{Regexes: []string{`1.*`}}, want: "eth0 10.4.7.21"},
		{name: "regex after iface", opts: Options{Ifaces: []string{"eth7"}, Regexes: []string{`^eth1`}}, want: "eth1 192.168.5.1"},
		{name: "iface before regex", opts: Options{Ifaces: []string{"eth0"}, Regexes: []string{`^eth1`}}, want: "eth0 10.4.7.21"},
		{name: "regex, name without address", opts: Options{Regexes: []string{`^(eth3|veth)`}},
			err: "--iface-regex=^(eth3|veth): matches only interfaces that have no IPv4 address (eth3, veth7)"},

		{name: "can reach", opts: Options{CanReach: a("192.168.5.9")}, want: "eth1 192.168.5.1",
			host: func(s snapshot) snapshot { s.reach = 3; return s }},
		{name: "can reach after iface", opts: Options{Ifaces: []string{"eth7"}, CanReach: a("192.168.5.9")}, want: "eth1 192.168.5.1",
			host: func(s snapshot) snapshot { s.reach = 3; return s }},
		{name: "can reach, public IP", opts: Options{CanReach: a("10.4.7.3"), PublicIP: a("10.4.7.99")}, want: "eth0 10.4.7.99",
			host: func(s snapshot) snapshot { s.reach = 2; return s }},
		{name: "cannot reach", opts: Options{CanReach: a("10.9.9.9")}, err: "--iface-can-reach=10.9.9.9: the kernel has no route to it (network is unreachable)",
			host: func(s snapshot) snapshot { s.reachErr = errors.New("network is unreachable"); return s }},
		{name: "can reach itself", opts: Options{CanReach: a("10.4.7.21")}, host: func(s snapshot) snapshot { s.reach = 1; return s },
			err: "--iface-can-reach=10.4.7.21: is an address of this host itself; it must be one of another host"},
		{name: "can reach through one without address", opts: Options{CanReach: a("10.9.9.9")}, host: func(s snapshot) snapshot { s.reach = 5; return s },
			err: "--iface-can-reach=10.9.9.9: is reached through eth3, which has no IPv4 address"},
		{name: "can reach through one that is gone", opts: Options{CanReach: a("10.9.9.9")}, host: func(s snapshot) snapshot { s.reach = 77; return s },
			err: "--iface-can-reach=10.9.9.9: the kernel's route to it leads through interface number 77, which is gone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			regexes, err := test.opts.compile()
			if err != nil {
				t.Fatal(err)
			}
			host := testHost()
			if test.host != nil {
				host = test.host(host)
			}
			got, err := choose(test.opts, regexes, host)
			if test.err != "" {
				if err == nil {
					t.Fatalf("chose %s %s, want an error", got.Name, got.Addr)
				}
				if diff := cmp.Diff(test.err+thereAre, err.Error()); diff != "" {
					t.Errorf("error (-want +got):\n%s", diff)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := got.Name + " " + got.Addr.String(); s != test.want {
				t.Errorf("chose %s, want %s", s, test.want)
			}
		})
	}
}

func TestChooseFields(t *testing.T) {
	got, err := choose(Options{}, nil, testHost())
	if err != nil {
		t.Fatal(err)
	}
	want := Interface{Name: "eth0", Index: 2, MTU: 1500, MAC: "02:00:00:00:00:02", Addr: netip.MustParseAddr("10.4.7.21"),
		Up: true, Chosen: "the IPv4 default route of lowest metric (50)"}
	for _, p := range []string{"169.254.7.7/16", "10.4.7.99/24", "10.4.7.21/24", "10.4.7.100/32"} {
		want.Addrs = append(want.Addrs, netip.MustParsePrefix(p))
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whoever shows the choice can say why it was made, and that it is of no use yet.
func TestChosen(t *testing.T) {
	single := testHost()
	single.defaults = single.defaults[:1]
	for _, test := range []struct {
		opts Options
		host snapshot
		want string
		down bool
	}{
		{Options{}, single, "the IPv4 default route", false},
		{Options{Ifaces: []string{"eth7", "eth2"}}, testHost(), "--iface=eth2", true},
		{Options{Ifaces: []string{"10.4.7.99"}}, testHost(), "--iface=10.4.7.99", false},
		{Options{Regexes: []string{"th1$"}}, testHost(), "--iface-regex=th1$", false},
	} {
		regexes, err := test.opts.compile()
		if err != nil {
			t.Fatal(err)
		}
		got, err := choose(test.opts, regexes, test.host)
		if err != nil || got.Chosen != test.want || got.Up == test.down {
			t.Errorf("%+v: chosen by %q, up: %v, error %v; want %q", test.opts, got.Chosen, got.Up, err, test.want)
		}
	}
}

func TestListIsShort(t *testing.T) {
	host := testHost()
	for range 100 {
		host.links = append(host.links, link{name: "cali", up: true})
	}
	if s := host.String(); strings.Count(s, "cali") != 7 || !strings.HasSuffix(s, ", and 93 more without an IPv4 address") {
		t.Errorf("listed as %s", s)
	}
}

func TestValidate(t *testing.T) {
	a := netip.MustParseAddr
	for _, test := range []struct {
		opts Options
		want string
	}{
		{Options{}, ""},
		{Options{Ifaces: []string{"", "eth0", "10.1.1.1"}, Regexes: []string{"", "^eth"}, CanReach: a("10.1.1.1"), PublicIP: a("10.1.1.1")}, ""},
		{Options{Ifaces: []string{"fd00::1"}}, "--iface=fd00::1 is not an IPv4 address"},
		{Options{Regexes: []string{"eth["}}, "--iface-regex=eth[ is not a regular expression: error parsing regexp: missing closing ]: `[`"},
		{Options{CanReach: a("fd00::1")}, "--iface-can-reach=fd00::1 is not an IPv4 address"},
		{Options{PublicIP: a("fd00::1")}, "--public-ip=fd00::1 is not an IPv4 address"},
	} {
		got := ""
		if err := test.opts.Validate(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%+v: %q, want %q", test.opts, got, test.want)
		}
		if test.want != "" {
			if _, err := Choose(test.opts); err == nil || err.Error() != test.want {
				t.Errorf("Choose(%+v): %v, want %q", test.opts, err, test.want)
			}
		}
	}
}
