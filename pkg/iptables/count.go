package iptables

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// Count says how many rules of the chains, jumps to them included, and how many
// leftovers there are in each chain now, as in "2 rules in FORWARD of filter".
//
// Listing a table of iptables-legacy has the kernel load and make it. So one that
// is not in use there is not listed: it has no rules. It is for the caller to know
// that the kernel has nf_tables already, where these Tables are of that.
func (t *Tables) Count(ctx context.Context, chains []Chain, leftovers []Leftover) (found []string, err error) {
	tables := map[string]bool{}
	for _, c := range chains {
		tables[c.Table] = true
	}
	for _, l := range leftovers {
		tables[l.Table] = true
	}
	for _, table := range slices.Sorted(maps.Keys(tables)) {
		if !t.Has(table) {
			continue
		}
		text, err := t.command(ctx, "", t.listing(table))
		if err != nil {
			return found, fmt.Errorf("listing the iptables table %s: %w", table, err)
		}
		found = append(found, inTable(table, parse(text), chains, leftovers)...)
	}
	return found, nil
}

// inTable counts what is ours in one table.
func inTable(table string, have listing, chains []Chain, leftovers []Leftover) (found []string) {
	for _, chain := range slices.Sorted(maps.Keys(have.rules)) {
		n := 0
		for _, rule := range have.rules[chain] {
			if slices.ContainsFunc(chains, func(c Chain) bool { return c.Table == table && (c.Name == chain || c.Name == target(rule)) }) {
				n++
			}
		}
		for _, l := range leftovers {
			if l.Table == table && l.Chain == chain {
				n += len(l.Find(have.rules[chain]))
			}
		}
		if n > 0 {
			found = append(found, fmt.Sprintf("%s in %s of %s", count(n), chain, table))
		}
	}
	return found
}
