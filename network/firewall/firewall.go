// Package firewall says which iptables rules this host ought to have, for source
// addresses and for forwarding, and keeps them. Start reading at Chains.
package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"flanneld/pkg/iptables"
)

// The names that newer daemons of this kind use, so that a host that changes
// from one to the other keeps one set of rules and not two.
const (
	postroutingChain = "FLANNEL-POSTRTG"
	forwardChain     = "FLANNEL-FWD"
)

// Keeper keeps the rules of one host.
type Keeper struct {
	// Network is the whole overlay, Own this host's subnet.
	Network, Own netip.Prefix
	// Before is the Network of the last run, invalid if there is none.
	Before netip.Prefix
	// Masq is --ip-masq, Forward --iptables-forward-rules.
	Masq, Forward bool
	// Resync is how often the rules are compared.
	Resync time.Duration
	// Compared is called each time they were, or could not be: with what was put
	// right, and with an error while the rules are not what they ought to be.
	Compared func(changes []string, err error)
}

// Run keeps the rules until ctx ends, and then returns nil and leaves them.
// Without them the network works all the same, as far as the host's other rules
// let it.
func (k Keeper) Run(ctx context.Context) error {
	tables, err := k.findIPTables(ctx)
	if err != nil {
		return nil // ctx has ended
	}
	chains := Chains(k.Network, k.Own, k.Masq, k.Forward, tables.RandomFully())
	old := Leftovers(k.Network, k.Before)
	tables.TakeOver(old)
	looked := false
	return tables.Run(ctx, chains, k.Resync, func(changes []string, err error) {
		k.Compared(changes, err)
		if err == nil && !looked {
			looked = true
			sayLegacy(ctx, tables, chains, old)
		}
	})
}

// findIPTables waits until the host has an iptables program that works, which is
// to fail only when ctx ends. It may be installed or mended at any time.
func (k Keeper) findIPTables(ctx context.Context) (*iptables.Tables, error) {
	said := ""
	for {
		tables, err := iptables.New(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil && said != "":
			klog.Info("Found an iptables program that works: the firewall rules follow")
			return tables, nil
		case err == nil:
			return tables, nil
		case err.Error() != said:
			klog.Errorf("Going on without firewall rules: %v", err)
			said = err.Error()
		}
		k.Compared(nil, err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(max(k.Resync, time.Second)):
		}
	}
}

// sayLegacy says what nobody sees who looks at the rules by iptables alone.
func sayLegacy(ctx context.Context, tables *iptables.Tables, chains []iptables.Chain, old []iptables.Leftover) {
	found, err := tables.InLegacy(ctx, chains, old)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		klog.Warningf("iptables: %v", err)
	case len(found) > 0:
		klog.Warningf("iptables: this host uses iptables-nft, and iptables-legacy has rules of flannel too, which count as well: %s. "+
			"Delete them with iptables-legacy, or reboot", strings.Join(found, ", "))
	}
}

// Chains says which iptables chains this host ought to have. network is
// the whole overlay and own this host's subnet; masq is --ip-masq, forward is
// --iptables-forward-rules, randomFully whether iptables has --random-fully.
//
// What is not wanted is in the result too, as absent, so that what an earlier
// run with other flags left behind goes.
func Chains(network, own netip.Prefix, masq, forward, randomFully bool) []iptables.Chain {
	chains := []iptables.Chain{{
		Table:  "nat",
		Name:   postroutingChain,
		Rules:  postroutingRules(network.Masked(), own.Masked(), masq, randomFully),
		Parent: "POSTROUTING",
		// dockerd, unless it runs with --ip-masq=false, puts
		// "-s OWN ! -o docker0 -j MASQUERADE" at the top when it starts. Our
		// rules only count in front of it.
		First: true,
	}}
	fwd := iptables.Chain{Table: "filter", Name: forwardChain, Absent: true}
	if forward {
		fwd = iptables.Chain{
			Table: "filter",
			Name:  forwardChain,
			// dockerd sets FORWARD's policy to DROP, which would end whatever
			// comes from other hosts' containers and whatever goes to them.
			// Two rules, since either end of a connection may be outside.
			Rules: []string{
				fmt.Sprintf("-s %s -j ACCEPT", network.Masked()),
				fmt.Sprintf("-d %s -j ACCEPT", network.Masked()),
			},
			// Appended: what an operator drops in FORWARD or DOCKER-USER stays
			// dropped. Only the policy is overridden.
			Parent: "FORWARD",
		}
	}
	return append(chains, fwd)
}

// Absent asks for none of the chains that Chains asks for.
func Absent() []iptables.Chain {
	return []iptables.Chain{
		{Table: "nat", Name: postroutingChain, Absent: true},
		{Table: "filter", Name: forwardChain, Absent: true},
	}
}

// postroutingRules are the rules for source addresses. nat chains see the first
// packet of each connection. In them RETURN leaves the packet to the rules
// behind the jump, dockerd's and kube-proxy's among them, while ACCEPT ends the
// table: nobody else changes the source address then.
//
// The text is what iptables -S prints, since it is compared with that.
func postroutingRules(network, own netip.Prefix, masq, randomFully bool) []string {
	var rules []string
	rule := func(format string, args ...any) { rules = append(rules, fmt.Sprintf(format, args...)) }

	// kube-proxy marks what it wants masqueraded (service traffic that has to
	// come back through this host) and does so in a chain of its own, behind
	// ours. Those packets go from our subnet to Network as well, so the mark
	// comes before everything else.
	rule("-m mark --mark 0x4000/0x4000 -j RETURN")

	// Between containers of this host there is nothing for us to do, but for
	// dockerd there is: a container that reaches itself through its own
	// published port needs dockerd's hairpin rule ("-s C -d C -p tcp --dport P
	// -j MASQUERADE"). With ACCEPT here it would never come to that.
	rule("-s %s -d %s -j RETURN", own, own)

	// Container to container on another host keeps its own source address. It
	// has to be ACCEPT: behind a RETURN stands dockerd's "-s OWN ! -o docker0
	// -j MASQUERADE", which takes every device but its own bridge for outside.
	// That is why this rule is there without --ip-masq too.
	rule("-s %s -d %s -j ACCEPT", own, network)

	if !masq {
		// dockerd masquerades what goes outside, by its own rule.
		return rules
	}
	random := ""
	if randomFully {
		// Two connections that leave at the same moment may get the same port
		// otherwise, and then one loses its first packet.
		random = " --random-fully"
	}

	// From other hosts' containers to ours, and from host to host through this
	// one: the source address stays here as well, against the masquerade rule
	// further down. No rule of dockerd's is about these sources, and RETURN
	// lets an operator's have them.
	rule("-s %s -d %s -j RETURN", network, network)

	// From outside, this host included, to our own containers: left alone, so
	// that a container sees who talks to it. The way back leads through this
	// host anyway.
	rule("! -s %s -d %s -j RETURN", network, own)

	// Container to outside leaves with this host's address. Multicast does not:
	// receivers tell senders apart by their addresses, and no answer comes back
	// that would have to be undone. The source is Network and not our subnet
	// alone, so that it also holds for what another host sends through this one
	// and for containers that are still in the subnet this host had before.
	rule("-s %s ! -d 224.0.0.0/4 -j MASQUERADE%s", network, random)

	// This host, or somebody outside who uses it as a router, to a container on
	// another host: that host has a way back for addresses in Network and to
	// this host, but perhaps not to every address this host has or forwards.
	rule("! -s %s -d %s -j MASQUERADE%s", network, network, random)
	return rules
}
