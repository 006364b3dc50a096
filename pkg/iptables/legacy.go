package iptables

import (
	"context"
	"fmt"
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
	if !t.nft || len(legacyTables()) == 0 {
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

// Legacy is the host's iptables-legacy, where these Tables are iptables-nft and it
// is in use beside them, as InLegacy has it; otherwise nil.
func (t *Tables) Legacy(ctx context.Context) (*Tables, error) {
	if !t.nft || len(legacyTables()) == 0 {
		return nil, nil
	}
	path := filepath.Join(filepath.Dir(t.path), "iptables-legacy")
	if _, err := exec.LookPath(path); err != nil {
		return nil, nil
	}
	return NewWith(ctx, path)
}

// Has reports whether a table can be looked at without making it. One that cannot
// is empty.
func (t *Tables) Has(table string) bool { return t.nft || slices.Contains(legacyTables(), table) }

// legacyTables are the tables of iptables-legacy that are in use. Asking it itself
// would load its kernel modules and make the table; the kernel's own list, which is
// there when they are loaded, does neither.
func legacyTables() []string {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if err != nil {
		return nil
	}
	return strings.Fields(string(names))
}

// inSaved is InLegacy for what iptables-save prints.
func inSaved(text string, chains []Chain, leftovers []Leftover) (found []string) {
	for _, part := range strings.Split("\n"+text, "\n*")[1:] {
		table, rest, _ := strings.Cut(part, "\n")
		found = append(found, inTable(table, parse(rest), chains, leftovers)...) // "-A CHAIN RULE" as in a listing
	}
	return found
}
