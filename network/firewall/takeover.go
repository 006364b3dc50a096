package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flanneld/pkg/iptables"
)

// Leftovers are the rules that daemons from v0.7 to v0.11 put for these networks
// straight into the built-in chains, whatever flags this one has. A rule with
// anything more to it, or for another network, is somebody else's.
func Leftovers(networks ...netip.Prefix) []iptables.Leftover {
	networks = slices.DeleteFunc(slices.Clone(networks), func(p netip.Prefix) bool { return !p.IsValid() })
	for i, n := range networks {
		networks[i] = n.Masked()
	}
	return []iptables.Leftover{{
		Table: "nat",
		Chain: "POSTROUTING",
		Find: func(rules []string) (found []int) {
			for i, rule := range rules {
				if slices.ContainsFunc(networks, func(n netip.Prefix) bool { return oldMasqRule(rule, n) }) {
					found = append(found, i)
				}
			}
			return found
		},
	}, {
		Table: "filter",
		Chain: "FORWARD",
		// Always two in a row. One alone is an operator's, say in front of a
		// rule of his that drops. Two within two are both.
		Find: func(rules []string) (found []int) {
			var open []int // what is not taken and may be the first of two
			for i, rule := range rules {
				if last := len(open) - 1; last >= 0 && slices.ContainsFunc(networks, func(n netip.Prefix) bool {
					return rules[open[last]] == fmt.Sprintf("-s %v -j ACCEPT", n) && rule == fmt.Sprintf("-d %v -j ACCEPT", n)
				}) {
					found = append(found, open[last], i)
					open = open[:last]
					continue
				}
				open = append(open, i)
			}
			return found
		},
	}}
}

// Networks are those that the rules of these tables, by chain, tell to be flannel's
// without a doubt: the network of our own chains, and one that is masqueraded as
// daemons from v0.7 to v0.11 did it, with all the rules that each of them had.
func Networks(nat, filter map[string][]string) (all []netip.Prefix) {
	add := func(text string) {
		if n, err := netip.ParsePrefix(text); err == nil && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	for _, rule := range filter[forwardChain] {
		if n := strings.Fields(rule); len(n) == 4 && n[0] == "-s" && slices.Contains(filter[forwardChain], "-d "+n[1]+" -j ACCEPT") {
			add(n[1])
		}
	}
	for _, rule := range nat[postroutingChain] {
		if n := strings.Fields(rule); len(n) == 6 && n[0] == "-s" && n[2] == "-d" && n[5] == "ACCEPT" {
			add(n[3])
		}
	}
	old := nat["POSTROUTING"]
	for _, rule := range old {
		n := strings.Fields(rule)
		if len(n) != 6 || rule != fmt.Sprintf("-s %[1]s -d %[1]s -j RETURN", n[1]) {
			continue
		}
		has := func(format string) bool {
			rule := fmt.Sprintf(format, n[1])
			return slices.Contains(old, rule) || slices.Contains(old, rule+" --random-fully")
		}
		if has("-s %s ! -d 224.0.0.0/4 -j MASQUERADE") && has("! -s %[1]s -d %[1]s -j MASQUERADE") {
			add(n[1])
		}
	}
	return all
}

// oldMasqRule reports whether a rule is one of those that --ip-masq made.
func oldMasqRule(rule string, network netip.Prefix) bool {
	switch rule {
	case fmt.Sprintf("-s %[1]v -d %[1]v -j RETURN", network):
		return true
	// The option came with v0.11, where iptables has it.
	case fmt.Sprintf("-s %v ! -d 224.0.0.0/4 -j MASQUERADE", network),
		fmt.Sprintf("-s %v ! -d 224.0.0.0/4 -j MASQUERADE --random-fully", network),
		fmt.Sprintf("! -s %[1]v -d %[1]v -j MASQUERADE", network),
		fmt.Sprintf("! -s %[1]v -d %[1]v -j MASQUERADE --random-fully", network):
		return true
	}
	// The subnet the host had then, which may be another one now. None is
	// smaller than /30.
	text, ok := strings.CutPrefix(rule, fmt.Sprintf("! -s %v -d ", network))
	if !ok {
		return false
	}
	text, ok = strings.CutSuffix(text, " -j RETURN")
	own, err := netip.ParsePrefix(text)
	return ok && err == nil && network.Contains(own.Addr()) && network.Bits() < own.Bits() && own.Bits() <= 30
}
