package firewall

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flanneld/pkg/iptables"
)

// found are the rules among some, all of one chain, that would be taken out.
func found(t *testing.T, table, chain string, rules []string, networks ...netip.Prefix) []string {
	t.Helper()
	var taken []int
	for _, l := range Leftovers(networks...) {
		if l.Table == table && l.Chain == chain {
			taken = append(taken, l.Find(rules)...)
		}
	}
	slices.Sort(taken)
	var out []string
	for _, i := range taken {
		out = append(out, rules[i])
	}
	return out
}

// The networks are read from our own chains, and from rules that only an older daemon
// has all of.
func TestNetworks(t *testing.T) {
	old := []string{
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN",
		"-s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
		"! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE",
	}
	own := Chains(netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("10.7.3.0/24"), true, true, true)
	for _, test := range []struct {
		name        string
		nat, filter map[string][]string
		want        string
	}{
		{"nothing", nil, nil, ""},
		{"our masquerading", map[string][]string{postroutingChain: own[0].Rules}, nil, "10.7.0.0/16"},
		{"our forwarding", nil, map[string][]string{forwardChain: own[1].Rules}, "10.7.0.0/16"},
		{"half of it", nil, map[string][]string{forwardChain: own[1].Rules[:1]}, ""},
		{"others' chains", map[string][]string{"OTHERS": own[0].Rules}, map[string][]string{"FORWARD": own[1].Rules}, ""},
		{"an older daemon's", map[string][]string{"POSTROUTING": old}, nil, "10.1.0.0/16"},
		{"of v0.11", map[string][]string{"POSTROUTING": {old[0], old[1] + " --random-fully", old[2] + " --random-fully"}}, nil, "10.1.0.0/16"},
		{"without the first", map[string][]string{"POSTROUTING": old[1:]}, nil, ""},
		{"without the second", map[string][]string{"POSTROUTING": {old[0], old[2]}}, nil, ""},
		{"without the third", map[string][]string{"POSTROUTING": old[:2]}, nil, ""},
		{"of several networks", map[string][]string{"POSTROUTING": {old[0], strings.ReplaceAll(old[1], "10.1.", "10.2."), old[2]}}, nil, ""},
		{"both", map[string][]string{"POSTROUTING": old, postroutingChain: own[0].Rules}, map[string][]string{forwardChain: own[1].Rules}, "10.7.0.0/16 10.1.0.0/16"},
	} {
		var got []string
		for _, n := range Networks(test.nat, test.filter) {
			got = append(got, n.String())
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, want %s", test.name, got, test.want)
		}
	}
}

// Each is looked at among all others: what is left is not ours.
func TestLeftoverMasqRules(t *testing.T) {
	before := netip.MustParsePrefix("10.2.0.0/20")
	old := []string{
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN",
		"-s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
		"! -s 10.1.0.0/16 -d 10.1.74.0/24 -j RETURN",
		"! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE",
		"-s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
		"! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE --random-fully",
		"! -s 10.1.0.0/16 -d 10.1.9.0/24 -j RETURN",  // a subnet the host had before
		"! -s 10.1.0.0/16 -d 10.1.9.64/26 -j RETURN", // in a network with another SubnetLen
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN",    // a copy
		"-s 10.2.0.0/20 -d 10.2.0.0/20 -j RETURN",    // the network before
		"! -s 10.2.0.0/20 -d 10.2.15.0/24 -j RETURN", // and the subnet in it
		"-s 10.2.0.0/20 ! -d 224.0.0.0/4 -j MASQUERADE",
	}
	others := []string{
		"-s 10.1.0.0/16 -j RETURN",
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -j ACCEPT",
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN --random-fully",
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -o eth0 -j RETURN",
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -p tcp -j RETURN",
		"-s 10.1.0.0/16 -d 10.1.0.0/16 -m comment --comment mine -j RETURN",
		"-s 10.1.0.0/16 ! -o docker0 -j MASQUERADE",
		"-s 10.1.0.0/16 ! -d 10.1.0.0/16 -j MASQUERADE",
		"-s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --to-ports 1024-2048",
		"-s 10.1.0.0/16 ! -d 224.0.0.0/4 -p udp -j MASQUERADE --random-fully",
		"-s 10.1.0.0/16 ! -d 224.0.0.0/4 -j SNAT --to-source 192.0.2.1",
		"-s 10.1.74.0/24 ! -o docker0 -j MASQUERADE", // dockerd's
		"-s 10.1.74.0/24 -d 10.1.74.0/24 -j RETURN",
		"-s 10.1.74.0/24 ! -d 224.0.0.0/4 -j MASQUERADE",
		"! -s 10.1.0.0/16 -d 10.1.74.2/32 -j RETURN", // no subnet, a container
		"! -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN",  // no subnet, the network
		"! -s 10.1.0.0/16 -d 10.0.0.0/8 -j RETURN",   // more than the network
		"! -s 10.1.0.0/16 -d 10.3.74.0/24 -j RETURN", // outside
		"! -s 10.1.0.0/16 -d 10.1.74.0/24 -i eth0 -j RETURN",
		"! -s 10.1.0.0/16 -d 10.1.74.0/24 -j RETURN --x",
		"-s 10.3.0.0/16 -d 10.3.0.0/16 -j RETURN", // another network
		"-s 10.2.0.0/16 -d 10.2.0.0/16 -j RETURN",
	}
	var rules []string
	for i := range max(len(old), len(others)) {
		rules = append(rules, old[min(i, len(old)-1)], others[min(i, len(others)-1)])
	}
	got := found(t, "nat", "POSTROUTING", rules, testNetwork, before)
	for _, rule := range old {
		if !slices.Contains(got, rule) {
			t.Errorf("%s stays", rule)
		}
	}
	for _, rule := range others {
		if slices.Contains(got, rule) {
			t.Errorf("%s goes", rule)
		}
	}
	// The subnet file of the last run need not name a network.
	if got := found(t, "nat", "POSTROUTING", old[9:], testNetwork, netip.Prefix{}); got != nil {
		t.Errorf("without the last network %q go", got)
	}
	for _, l := range Leftovers(testNetwork) {
		if l.Table+" "+l.Chain != "nat POSTROUTING" && l.Table+" "+l.Chain != "filter FORWARD" {
			t.Errorf("something is looked for in %s of %s", l.Chain, l.Table)
		}
	}
}

// In FORWARD the two stand together.
func TestLeftoverForwardRules(t *testing.T) {
	const (
		from, to             = "-s 10.1.0.0/16 -j ACCEPT", "-d 10.1.0.0/16 -j ACCEPT"
		beforeFrom, beforeTo = "-s 10.2.0.0/16 -j ACCEPT", "-d 10.2.0.0/16 -j ACCEPT"
		drop                 = "-j DROP"
	)
	before := netip.MustParsePrefix("10.2.0.0/16")
	for _, test := range []struct {
		name string
		have []string
		stay []string
	}{
		{"the two", []string{"-j DOCKER-USER", from, to, drop}, []string{"-j DOCKER-USER", drop}},
		{"copies", []string{from, to, from, to, drop, from, to}, []string{drop}},
		{"copies made by two daemons at once", []string{from, from, to, to}, nil},
		{"those of the network before", []string{beforeFrom, beforeTo, from, to}, nil},
		{"an operator's alone", []string{from, drop}, []string{from, drop}},
		{"an operator's the other way", []string{to, drop}, []string{to, drop}},
		{"an operator's two", []string{to, from}, []string{to, from}},
		{"an operator's in front of the two", []string{from, drop, from, to}, []string{from, drop}},
		{"an operator's right in front of the two", []string{from, from, to}, []string{from}},
		{"apart", []string{from, drop, to}, []string{from, drop, to}},
		{"of two networks", []string{from, beforeTo}, []string{from, beforeTo}},
		{"with more to them", []string{"-s 10.1.0.0/16 -i eth0 -j ACCEPT", to, from, "-d 10.1.0.0/16 -m comment --comment mine -j ACCEPT"},
			[]string{"-s 10.1.0.0/16 -i eth0 -j ACCEPT", to, from, "-d 10.1.0.0/16 -m comment --comment mine -j ACCEPT"}},
		{"of another network", []string{"-s 10.3.0.0/16 -j ACCEPT", "-d 10.3.0.0/16 -j ACCEPT"}, []string{"-s 10.3.0.0/16 -j ACCEPT", "-d 10.3.0.0/16 -j ACCEPT"}},
	} {
		taken := map[int]bool{}
		for _, l := range Leftovers(testNetwork, before) {
			if l.Table == "filter" {
				for _, i := range l.Find(test.have) {
					taken[i] = true
				}
			}
		}
		var stay []string
		for i, rule := range test.have {
			if !taken[i] {
				stay = append(stay, rule)
			}
		}
		if diff := cmp.Diff(test.stay, stay); diff != "" {
			t.Errorf("%s (-want to stay +stays):\n%s", test.name, diff)
		}
	}
}

// oldRules are what a daemon from v0.7 to v0.11 puts in, as the arguments of
// iptables, for a network and a subnet.
func oldRules(version int, network, own string) (rules []string) {
	random := ""
	if version >= 11 {
		random = " --random-fully"
	}
	masq := "-t nat -A POSTROUTING "
	rules = append(rules, masq+"-s "+network+" -d "+network+" -j RETURN", masq+"-s "+network+" ! -d 224.0.0.0/4 -j MASQUERADE"+random)
	if version >= 9 {
		rules = append(rules, masq+"! -s "+network+" -d "+own+" -j RETURN")
	}
	rules = append(rules, masq+"! -s "+network+" -d "+network+" -j MASQUERADE"+random)
	if version >= 9 {
		rules = append(rules, "-A FORWARD -s "+network+" -j ACCEPT", "-A FORWARD -d "+network+" -j ACCEPT")
	}
	return rules
}

// TestTakeOverOnKernel has iptables itself say how it shows the rules of the old
// daemons, on a host full of rules of others, which all stay, in their order and
// with their counters, whichever flags are on.
func TestTakeOverOnKernel(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		tables, err := iptables.NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		do := func(args string) {
			t.Helper()
			run(t, program, append([]string{"-w"}, strings.Fields(args)...)...)
		}
		save := func() string {
			t.Helper()
			var b strings.Builder
			for line := range strings.Lines(run(t, program+"-save", "-c")) {
				if !strings.HasPrefix(line, "#") {
					b.WriteString(line)
				}
			}
			return b.String()
		}
		for _, args := range dockerHost {
			run(t, program, append([]string{"-w"}, args...)...)
		}
		for _, args := range []string{
			"-t mangle -A POSTROUTING -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN -c 5 500",
			"-t raw -A PREROUTING -s 10.1.0.0/16 -j ACCEPT",
			"-t raw -A PREROUTING -d 10.1.0.0/16 -j ACCEPT -c 7 700",
			"-t nat -A PREROUTING -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN",
			"-t nat -A DOCKER -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN -c 3 300",
			"-A INPUT -s 10.1.0.0/16 -j ACCEPT",
			"-A INPUT -d 10.1.0.0/16 -j ACCEPT -c 1 100",
			"-A DOCKER-USER -s 10.1.0.0/16 -j ACCEPT",
			"-A DOCKER-USER -d 10.1.0.0/16 -j ACCEPT",
			"-A FORWARD -s 10.1.0.0/16 -j ACCEPT -c 9 900", // an operator's own
			"-A FORWARD -i eth1 -j DROP -c 8 800",
			"-t nat -A POSTROUTING -s 10.1.0.0/16 ! -d 224.0.0.0/4 -o eth1 -j MASQUERADE -c 6 600",
		} {
			do(args)
		}
		others := save()

		for _, flags := range []struct{ masq, forward bool }{{true, true}, {false, false}, {true, false}, {false, true}} {
			for _, version := range []int{7, 9, 11} {
				for _, rules := range [][]string{
					oldRules(version, "10.1.0.1/16", "10.1.74.0/24"),
					oldRules(version, "10.1.0.0/16", "10.1.9.0/24"), // again, with another subnet
					oldRules(version, "10.2.0.0/16", "10.2.9.0/24"), // and with another network
				} {
					for _, rule := range rules {
						do(rule)
					}
				}
				chains := Chains(testNetwork, testOwn, flags.masq, flags.forward, true)
				tables.TakeOver(Leftovers(testNetwork, netip.MustParsePrefix("10.2.0.0/16")))
				changes, err := tables.Sync(t.Context(), chains)
				if err != nil {
					t.Fatal(err)
				}
				if said := strings.Join(changes, ", "); !strings.Contains(said, `nat: took out of POSTROUTING what an older daemon left: "-s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN" (2 times), `) ||
					strings.Contains(said, "filter: took out of FORWARD") != (version >= 9) {
					t.Errorf("said %s", said)
				}
				// Without ours all is as it was.
				if _, err := tables.Sync(t.Context(), []iptables.Chain{{Table: "nat", Name: postroutingChain, Absent: true}, {Table: "filter", Name: forwardChain, Absent: true}}); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(others, save()); diff != "" {
					t.Fatalf("v0.%d, %+v: rules of others (-before +after):\n%s", version, flags, diff)
				}
			}
		}
	})
}
