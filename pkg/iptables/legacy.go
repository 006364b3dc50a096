package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/nldump"
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

// Beside is the host's other kind of iptables, where it is in use beside these
// Tables, and the name of its program: iptables-legacy beside iptables-nft, and the
// reverse. Where there is nothing to look at, other is nil.
func (t *Tables) Beside(ctx context.Context) (name string, other *Tables, err error) {
	name = "iptables-legacy"
	used := len(legacyTables()) > 0
	if !t.nft {
		name = "iptables-nft"
		if used, err = nftTables(); err != nil {
			return name, nil, err
		}
	}
	path := filepath.Join(filepath.Dir(t.path), name)
	if _, err := exec.LookPath(path); !used || err != nil {
		return name, nil, nil
	}
	other, err = NewWith(ctx, path)
	return name, other, err
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

// nftTables reports whether nf_tables has tables for IPv4. iptables-nft itself fails
// where the kernel has no nf_tables, and older ones make the tables that they list.
func nftTables() (bool, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	tables, torn, err := nldump.Whole(func() ([][]byte, error) { return request.Execute(unix.NETLINK_NETFILTER, 0) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) { // the kernel has none
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("asking the kernel for the tables of nf_tables: %w", err)
	}
	return len(tables) > 0 || torn, nil
}

// inSaved is InLegacy for what iptables-save prints.
func inSaved(text string, chains []Chain, leftovers []Leftover) (found []string) {
	for _, part := range strings.Split("\n"+text, "\n*")[1:] {
		table, rest, _ := strings.Cut(part, "\n")
		found = append(found, inTable(table, parse(rest), chains, leftovers)...) // "-A CHAIN RULE" as in a listing
	}
	return found
}
