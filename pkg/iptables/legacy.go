package iptables

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// InLegacy says how many rules of ours each chain of iptables-legacy holds, where
// these Tables are iptables-nft: rules in the chains, jumps to them, and
// leftovers. Rules of both kinds work side by side, and neither program shows
// those of the other. A host that was changed over from one to the other has both
// until it is rebooted.
//
// Where there is nothing to look at, nothing is found. It runs one process if
// there are tables of iptables-legacy, and none otherwise.
func (t *Tables) InLegacy(ctx context.Context, chains []Chain, leftovers []Leftover) (found []string, err error) {
	// Asking iptables-legacy itself would load its kernel modules. This file is
	// there, with something in it, only when they are loaded and in use.
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if !t.nft || err != nil || len(bytes.TrimSpace(names)) == 0 {
		return nil, nil
	}
	save, err := exec.LookPath(filepath.Join(filepath.Dir(t.path), "iptables-legacy-save"))
	if err != nil {
		return nil, nil
	}
	text, err := t.command(ctx, "", []string{save})
	if err != nil {
		return nil, fmt.Errorf("looking for rules in iptables-legacy: %w", err)
	}
	return inSaved(text, chains, leftovers), nil
}

// inSaved is InLegacy for what iptables-save prints.
func inSaved(text string, chains []Chain, leftovers []Leftover) (found []string) {
	for _, part := range strings.Split("\n"+text, "\n*")[1:] {
		table, rest, _ := strings.Cut(part, "\n")
		rules := parse(rest).rules // "-A CHAIN RULE" as in a listing
		for _, chain := range slices.Sorted(maps.Keys(rules)) {
			n := 0
			for _, rule := range rules[chain] {
				if slices.ContainsFunc(chains, func(c Chain) bool { return c.Table == table && (c.Name == chain || c.Name == target(rule)) }) {
					n++
				}
			}
			for _, l := range leftovers {
				if l.Table == table && l.Chain == chain {
					n += len(l.Find(rules[chain]))
				}
			}
			if n > 0 {
				found = append(found, fmt.Sprintf("%s in %s of %s", count(n), chain, table))
			}
		}
	}
	return found
}
