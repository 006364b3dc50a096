package firewall

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"flanneld/pkg/iptables"
)

var (
	testNetwork = netip.MustParsePrefix("10.1.0.0/16")
	testOwn     = netip.MustParsePrefix("10.1.74.0/24")
)

// chainText shows chains the way iptables -S shows a table.
func chainText(chains []iptables.Chain) string {
	var b strings.Builder
	for _, c := range chains {
		if c.Absent {
			fmt.Fprintf(&b, "%s: no %s\n", c.Table, c.Name)
			continue
		}
		place := ""
		if c.First {
			place = " (first)"
		}
		fmt.Fprintf(&b, "%s: -A %s -j %s%s\n", c.Table, c.Parent, c.Name, place)
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "%s: -A %s %s\n", c.Table, c.Name, rule)
		}
	}
	return b.String()
}

const (
	goldenPlain = `
nat: -A POSTROUTING -j FLANNEL-POSTRTG (first)
nat: -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
nat: -A FLANNEL-POSTRTG -s 10.1.74.0/24 -d 10.1.74.0/24 -j RETURN
nat: -A FLANNEL-POSTRTG -s 10.1.74.0/24 -d 10.1.0.0/16 -j ACCEPT
`
	goldenMasq = `
nat: -A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN
nat: -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.74.0/24 -j RETURN
nat: -A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
nat: -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE --random-fully
`
	goldenForward = `
filter: -A FORWARD -j FLANNEL-FWD
filter: -A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT
filter: -A FLANNEL-FWD -d 10.1.0.0/16 -j ACCEPT
`
	goldenNoForward = `
filter: no FLANNEL-FWD
`
)

func TestFirewallChains(t *testing.T) {
	join := func(parts ...string) string {
		var b strings.Builder
		for _, p := range parts {
			b.WriteString(strings.TrimPrefix(p, "\n"))
		}
		return b.String()
	}
	for _, test := range []struct {
		name          string
		masq, forward bool
		want          string
	}{
		{"neither", false, false, join(goldenPlain, goldenNoForward)},
		{"forward", false, true, join(goldenPlain, goldenForward)},
		{"masq", true, false, join(goldenPlain, goldenMasq, goldenNoForward)},
		{"both", true, true, join(goldenPlain, goldenMasq, goldenForward)},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := chainText(Chains(testNetwork, testOwn, test.masq, test.forward, true))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			got = chainText(Chains(testNetwork, testOwn, test.masq, test.forward, false))
			if diff := cmp.Diff(strings.ReplaceAll(test.want, " --random-fully", ""), got); diff != "" {
				t.Errorf("without --random-fully (-want +got):\n%s", diff)
			}
		})
	}
}

// Host bits in what the caller gives must not get into the rules: iptables
// would show them without.
func TestFirewallChainsMasksHostBits(t *testing.T) {
	got := Chains(netip.MustParsePrefix("10.1.0.1/16"), netip.MustParsePrefix("10.1.74.1/24"), true, true, true)
	if diff := cmp.Diff(Chains(testNetwork, testOwn, true, true, true), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// inNamespace runs the test in a network namespace of its own, once for each
// iptables program there is. The thread is never given back, so that it and the
// namespace end with the test.
func inNamespace(t *testing.T, test func(t *testing.T, program string)) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	found := false
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		if _, err := exec.LookPath(program); err != nil {
			continue
		}
		found = true
		t.Run(program, func(t *testing.T) {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Skipf("cannot make a network namespace: %v", err)
			}
			test(t, program)
		})
	}
	if !found {
		t.Skip("needs iptables-nft or iptables-legacy (package iptables)")
	}
}

// run runs a program in the namespace of the test's thread.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// tableText is nat and filter as iptables shows them, without remarks.
func tableText(t *testing.T, program string) string {
	t.Helper()
	var b strings.Builder
	for _, table := range []string{"nat", "filter"} {
		for line := range strings.Lines(run(t, program, "-w", "-t", table, "-S")) {
			if !strings.HasPrefix(line, "#") {
				fmt.Fprintf(&b, "%s: %s", table, line)
			}
		}
	}
	return b.String()
}

// dockerHost gives a namespace rules as dockerd and an operator make them.
var dockerHost = [][]string{
	{"-t", "nat", "-N", "DOCKER"},
	{"-t", "nat", "-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DOCKER"},
	{"-t", "nat", "-A", "POSTROUTING", "-s", "10.1.74.0/24", "!", "-o", "docker0", "-j", "MASQUERADE"},
	{"-t", "nat", "-A", "POSTROUTING", "-s", "10.1.74.2/32", "-d", "10.1.74.2/32", "-p", "tcp", "-m", "tcp", "--dport", "80", "-j", "MASQUERADE"},
	{"-t", "filter", "-P", "FORWARD", "DROP"},
	{"-t", "filter", "-N", "DOCKER-USER"},
	{"-t", "filter", "-A", "FORWARD", "-j", "DOCKER-USER"},
	{"-t", "filter", "-A", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
	{"-t", "filter", "-A", "DOCKER-USER", "-m", "comment", "--comment", "say \"no\" -j FLANNEL-FWD ", "-j", "RETURN"},
	{"-t", "filter", "-A", "INPUT", "-s", "192.0.2.7/32", "-j", "DROP"},
}

// dockerHostText is what dockerHost comes to with our chains beside it.
const dockerHostText = `
nat: -P PREROUTING ACCEPT
nat: -P INPUT ACCEPT
nat: -P OUTPUT ACCEPT
nat: -P POSTROUTING ACCEPT
nat: -N DOCKER
nat: -N FLANNEL-POSTRTG
nat: -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
nat: -A POSTROUTING -j FLANNEL-POSTRTG
nat: -A POSTROUTING -s 10.1.74.0/24 ! -o docker0 -j MASQUERADE
nat: -A POSTROUTING -s 10.1.74.2/32 -d 10.1.74.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
nat: -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
nat: -A FLANNEL-POSTRTG -s 10.1.74.0/24 -d 10.1.74.0/24 -j RETURN
nat: -A FLANNEL-POSTRTG -s 10.1.74.0/24 -d 10.1.0.0/16 -j ACCEPT
nat: -A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN
nat: -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.74.0/24 -j RETURN
nat: -A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
nat: -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE --random-fully
filter: -P INPUT ACCEPT
filter: -P FORWARD DROP
filter: -P OUTPUT ACCEPT
filter: -N DOCKER-USER
filter: -N FLANNEL-FWD
filter: -A INPUT -s 192.0.2.7/32 -j DROP
filter: -A FORWARD -j DOCKER-USER
filter: -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
filter: -A FORWARD -j FLANNEL-FWD
filter: -A DOCKER-USER -m comment --comment "say \"no\" -j FLANNEL-FWD " -j RETURN
filter: -A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT
filter: -A FLANNEL-FWD -d 10.1.0.0/16 -j ACCEPT
`

// TestFirewallOnKernel states the property that matters: whatever was done to
// our chains, one Sync brings about the text above, and the next has nothing to do.
func TestFirewallOnKernel(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		tables, err := iptables.NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		if !tables.RandomFully() {
			t.Skip("the text wanted has --random-fully, which this iptables has not")
		}
		for _, args := range dockerHost {
			run(t, program, append([]string{"-w"}, args...)...)
		}
		bare := tableText(t, program)
		chains := Chains(testNetwork, testOwn, true, true, true)

		sync := func(chains []iptables.Chain, want string) {
			t.Helper()
			before := tableText(t, program)
			changes, err := tables.Sync(t.Context(), chains)
			if err != nil {
				t.Fatalf("%v\nfrom:\n%s", err, before)
			}
			if len(changes) == 0 {
				t.Error("Sync says it changed nothing")
			}
			if diff := cmp.Diff(want, tableText(t, program)); diff != "" {
				t.Errorf("after %q (-want +got):\n%s\nbefore:\n%s", changes, diff, before)
			}
			if changes, err := tables.Sync(t.Context(), chains); err != nil || len(changes) > 0 {
				t.Errorf("the second Sync changed %q, error %v", changes, err)
			}
			t.Logf("%s", strings.Join(changes, ", "))
		}
		want := strings.TrimPrefix(dockerHostText, "\n")
		sync(chains, want)

		const nat, fwd = "-t nat", "-t filter"
		const toNat, toFwd = " -j FLANNEL-POSTRTG", " -j FLANNEL-FWD"
		for _, damage := range [][]string{
			// The chains' content.
			{nat + " -D FLANNEL-POSTRTG 3"},
			{fwd + " -D FLANNEL-FWD 1"},
			{nat + " -D FLANNEL-POSTRTG 3", nat + " -A FLANNEL-POSTRTG -s 10.1.74.0/24 -d 10.1.0.0/16 -j ACCEPT"},
			{nat + " -A FLANNEL-POSTRTG -s 10.1.74.0/24 -d 10.1.0.0/16 -j ACCEPT"},
			{nat + " -I FLANNEL-POSTRTG -j ACCEPT"},
			{nat + " -I FLANNEL-POSTRTG 4 -s 192.0.2.0/24 -j MASQUERADE", fwd + " -A FLANNEL-FWD -j DROP"},
			{nat + " -F FLANNEL-POSTRTG"},
			{fwd + " -F FLANNEL-FWD"},
			// The jumps.
			{nat + " -D POSTROUTING" + toNat},
			{fwd + " -D FORWARD" + toFwd},
			{nat + " -A POSTROUTING" + toNat},
			{nat + " -I POSTROUTING" + toNat, nat + " -A POSTROUTING" + toNat},
			{fwd + " -A FORWARD" + toFwd, fwd + " -A FORWARD" + toFwd},
			{nat + " -D POSTROUTING" + toNat, nat + " -A POSTROUTING" + toNat},
			{nat + " -D POSTROUTING" + toNat, nat + " -I POSTROUTING 2" + toNat, nat + " -A POSTROUTING" + toNat},
			{nat + " -A POSTROUTING -m comment --comment flanneld" + toNat},
			{fwd + " -A FORWARD -s 192.0.2.0/24" + toFwd, fwd + " -I FORWARD -g FLANNEL-FWD"},
			{fwd + " -D FORWARD" + toFwd, fwd + " -I FORWARD -g FLANNEL-FWD"},
			// All of it.
			{nat + " -D POSTROUTING" + toNat, nat + " -F FLANNEL-POSTRTG", nat + " -X FLANNEL-POSTRTG"},
			{fwd + " -D FORWARD" + toFwd, fwd + " -F FLANNEL-FWD", fwd + " -X FLANNEL-FWD"},
		} {
			// No subtest for each: it would have a thread of its own, in the
			// machine's namespace.
			t.Log(strings.Join(damage, ", "))
			for _, args := range damage {
				run(t, program, append([]string{"-w"}, strings.Fields(args)...)...)
			}
			sync(chains, want)
		}

		// dockerd starts later and goes in front.
		run(t, program, "-w", "-t", "nat", "-D", "POSTROUTING", "-s", "10.1.74.0/24", "!", "-o", "docker0", "-j", "MASQUERADE")
		run(t, program, "-w", "-t", "nat", "-I", "POSTROUTING", "-s", "10.1.74.0/24", "!", "-o", "docker0", "-j", "MASQUERADE")
		sync(chains, want)

		// Another subnet, other flags: the old rules go.
		moved := Chains(testNetwork, netip.MustParsePrefix("10.1.9.0/24"), true, true, true)
		text := strings.ReplaceAll(want, "10.1.74.0/24 -d 10.1.74.0/24", "10.1.9.0/24 -d 10.1.9.0/24")
		text = strings.ReplaceAll(text, "-s 10.1.74.0/24 -d 10.1.0.0/16", "-s 10.1.9.0/24 -d 10.1.0.0/16")
		text = strings.ReplaceAll(text, "-d 10.1.74.0/24 -j RETURN", "-d 10.1.9.0/24 -j RETURN")
		sync(moved, text)
		sync(chains, want)

		plain := Chains(testNetwork, testOwn, false, false, true)
		var b strings.Builder
		for line := range strings.Lines(want) {
			masq := strings.HasPrefix(line, "nat: -A FLANNEL") && strings.Contains(goldenMasq, line)
			forward := strings.HasPrefix(line, "filter: -A FLANNEL") || line == "filter: -N FLANNEL-FWD\n" || line == "filter: -A FORWARD -j FLANNEL-FWD\n"
			if !masq && !forward {
				b.WriteString(line)
			}
		}
		run(t, program, "-w", "-I", "DOCKER-USER", "1", "-s", "192.0.2.9/32", "-j", "FLANNEL-FWD")
		sync(plain, b.String())

		// Nothing of ours left: the host is as it was.
		sync([]iptables.Chain{{Table: "nat", Name: postroutingChain, Absent: true}}, bare)
	})
}
