package check

import (
	"context"
	"net/netip"
	"strings"

	"flanneld/backend/table"
	"flanneld/network/firewall"
	"flanneld/pkg/iptables"
)

const missingRules = "until then the network works without masquerading and forward rules"

func iptablesProgram(t *iptables.Tables, err error) Finding {
	const name = "iptables"
	switch {
	case err != nil:
		return warning(name, "see to that, which may be later; "+missingRules, "%v", err)
	case !t.RandomFully():
		return ok(name, "%v; MASQUERADE is without --random-fully, which came with 1.6.2", t)
	}
	return ok(name, "%v; MASQUERADE with --random-fully", t)
}

// lookAtRules counts the rules that are there already.
func lookAtRules(ctx context.Context, t *iptables.Tables, m modules, c *table.Config, before netip.Prefix) Finding {
	if p := m.find("nf_tables"); t.NFT() && (p == loadable || p == unknown) {
		return skipped("iptables rules", "nf_tables is not loaded, so there are none of it")
	}
	ctx, stop := forProgram(ctx)
	defer stop()
	// Only the names count, and those of all are there whatever is asked for.
	chains := firewall.Chains(networkOf(c), networkOf(c), true, true, true)
	leftovers := firewall.Leftovers(networkOf(c), before)
	here, err := t.Count(ctx, chains, leftovers)
	var other []string
	if err == nil {
		other, err = t.InLegacy(ctx, chains, leftovers)
	}
	return rules(here, other, err)
}

func rules(here, other []string, err error) Finding {
	const name = "iptables rules"
	switch {
	case err != nil:
		return warning(name, "see to that, which may be later; "+missingRules, "%v", err)
	case len(other) > 0:
		return warning(name, "delete them with iptables-legacy, or reboot", "this host uses iptables-nft, and iptables-legacy has rules of flannel too, which count as well: %s", strings.Join(other, ", "))
	case len(here) > 0:
		return ok(name, "flanneld keeps or takes over what is there of its own, and of an older daemon's: %s", strings.Join(here, ", "))
	}
	return ok(name, "none of flannel's is there yet")
}
