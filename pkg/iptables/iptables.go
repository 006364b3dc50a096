// Package iptables keeps chains of our own at the content they ought to have.
//
// The caller says, as plain data, which chains there ought to be, with which
// rules and with a jump from where. Sync compares that with what iptables
// shows, to the letter and in order, and puts right what differs; Run does so
// again and again. Rules and chains that are not in the data are never touched,
// except for what the caller names as left by an older daemon, once: see TakeOver.
// The package knows nothing of what the rules are for.
//
// Start reading at Chain and at plan, which works out the difference and needs
// neither the kernel nor the iptables program.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"
	"k8s.io/klog/v2"
)

// Chain is one chain as it ought to be: with these rules and no others, and
// jumped to from one place.
type Chain struct {
	// Table is "nat", "filter" or another table iptables knows.
	Table string
	Name  string
	// Rules are in the form that iptables -S prints after "-A NAME ": it is
	// compared as text. Rule comments with blanks or quotes are best avoided.
	Rules []string
	// Parent is the chain that holds the one jump to this one. Other jumps in
	// Parent, also conditional ones, are taken out; those from other chains are
	// somebody else's decision and stay.
	Parent string
	// First asks for the jump to be Parent's first rule. At most one chain can
	// have that of one Parent. Without it the jump may be anywhere, and is
	// appended where there is none.
	First bool
	// Absent asks for the opposite: neither chain nor any jump to it. Rules,
	// Parent and First mean nothing then.
	Absent bool
}

// Leftover is what an older daemon put straight into a chain that is not its own,
// before there was a chain to have it in.
type Leftover struct {
	Table, Chain string
	// Find picks the rules from all those of the chain, by index, in any order.
	// Rules are in the form of Chain.Rules.
	Find func(rules []string) []int
}

// commandTime is how long one iptables process may take. It covers the wait for
// the lock that all iptables processes share.
const commandTime = 20 * time.Second

// tries is how often Sync changes one table before it takes what it finds for
// something that trying does not mend. The second time is for changes that
// others make between our look and our change.
const tries = 2

// Tables is the host's iptables, that of the network namespace the caller is
// in. Its methods are for one goroutine at a time.
type Tables struct {
	list    []string // program and options, what to show to follow
	restore []string // program and options, reads what to do from its input

	path        string
	version     string // in the program's own words
	nft         bool
	randomFully bool
	leftovers   []Leftover
	patience    time.Duration // commandTime
	output      func(ctx context.Context, stdin string, argv []string) (string, error)
}

// ErrNone says that the host has no iptables program.
var ErrNone = errors.New("no iptables program in PATH or in /usr/sbin, /sbin, /usr/local/sbin: install the package iptables")

// New finds the iptables program. An error means that the host has none that
// works now, ErrNone that it has none at all; callers that can do without go on
// without.
func New(ctx context.Context) (*Tables, error) {
	// Daemons are at times started with a PATH that has no sbin directory.
	for _, path := range []string{"iptables", "/usr/sbin/iptables", "/sbin/iptables", "/usr/local/sbin/iptables"} {
		if _, err := exec.LookPath(path); err == nil {
			return NewWith(ctx, path)
		}
	}
	return nil, ErrNone
}

// NewWith is New for the iptables program of the given name or path, for hosts
// with more than one: iptables-nft and iptables-legacy have rules of their own
// each.
func NewWith(ctx context.Context, path string) (*Tables, error) {
	path, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w: install the package iptables", path, err)
	}
	restore := path + "-restore"
	if _, err := exec.LookPath(restore); err != nil {
		return nil, fmt.Errorf("finding %s, which belongs beside %s: %w: install the package iptables as a whole", restore, path, err)
	}
	t := &Tables{
		path:     path,
		list:     []string{path},
		restore:  []string{restore, "--noflush"},
		patience: commandTime,
		output:   output,
	}
	// go-iptables knows which version can do what. It cannot list a whole table
	// in one process, nor run iptables-restore, so the rest is done here. It
	// would also wait forever for a program that hangs, and does not say what a
	// program that fails says: so the program is asked here before.
	version, err := t.command(ctx, "", []string{path, "--version"})
	if err != nil {
		return nil, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	ipt, err := goiptables.New(goiptables.Path(path))
	if err != nil {
		return nil, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	t.version = strings.TrimPrefix(excerpt(version), "iptables ")
	t.nft = strings.Contains(version, "nf_tables")
	t.randomFully = ipt.HasRandomFully()
	// Both programs wait for the lock only when told to. Before 1.6.2
	// iptables-restore had no such option and took no lock: there the kernel
	// alone refuses most of the changes that cross another one, and the next
	// try follows.
	if atLeast(ipt, 1, 4, 20) {
		t.list = append(t.list, "-w")
	}
	if atLeast(ipt, 1, 6, 2) {
		t.restore = append(t.restore, "-w")
	}
	return t, nil
}

func atLeast(ipt *goiptables.IPTables, major, minor, patch int) bool {
	a, b, c := ipt.GetIptablesVersion()
	if a != major {
		return a > major
	}
	if b != minor {
		return b > minor
	}
	return c >= patch
}

// String names the program and its version, as in "/usr/sbin/iptables v1.8.9
// (nf_tables)".
func (t *Tables) String() string { return t.path + " " + t.version }

// NFT reports whether the rules are those of nf_tables, and not of iptables-legacy.
func (t *Tables) NFT() bool { return t.nft }

// RandomFully reports whether MASQUERADE may have the option --random-fully.
func (t *Tables) RandomFully() bool { return t.randomFully }

// TakeOver has Sync remove the leftovers, once for each table: in the step that
// brings the chains in, so that no packet meets a gap between the old rules and
// the new. A chain whose Parent has leftovers gets its jump where the first of
// them was, or further up, unless it asks for First: what the old rules came
// before, the new ones come before too. From then on rules like these are
// somebody else's.
func (t *Tables) TakeOver(leftovers []Leftover) { t.leftovers = leftovers }

// takeOver are the leftovers of a table that are still to be removed.
func (t *Tables) takeOver(table string) (of []Leftover) {
	for _, l := range t.leftovers {
		if l.Table == table {
			of = append(of, l)
		}
	}
	return of
}

// takenOver ends it for a table.
func (t *Tables) takenOver(table string) {
	t.leftovers = slices.DeleteFunc(slices.Clone(t.leftovers), func(l Leftover) bool { return l.Table == table })
}

// Sync makes the chains what they ought to be and says what it changed, one
// sentence for each. Where nothing is wrong it runs one process for each table
// that chains name. A table that cannot be put right does not keep the others
// from it; err then has the reasons, and the next Sync tries again.
func (t *Tables) Sync(ctx context.Context, chains []Chain) (changes []string, err error) {
	return eachTable(chains, func(table string, chains []Chain) ([]string, error) { return t.syncTable(ctx, table, chains) })
}

// Plan says what Sync would change first, in the same words, and changes nothing.
func (t *Tables) Plan(ctx context.Context, chains []Chain) (changes []string, err error) {
	return eachTable(chains, func(table string, chains []Chain) ([]string, error) {
		_, changes, err := t.plan(ctx, table, chains)
		return changes, err
	})
}

// eachTable hands the chains to f, those of one table at a time.
func eachTable(chains []Chain, f func(table string, chains []Chain) ([]string, error)) (changes []string, err error) {
	var tables []string
	byTable := make(map[string][]Chain)
	for _, c := range chains {
		if byTable[c.Table] == nil {
			tables = append(tables, c.Table)
		}
		byTable[c.Table] = append(byTable[c.Table], c)
	}
	for _, table := range tables {
		did, tableErr := f(table, byTable[table])
		changes = append(changes, did...)
		switch {
		case tableErr == nil:
		case err == nil:
			err = tableErr
		default:
			err = fmt.Errorf("%w; %w", err, tableErr)
		}
	}
	return changes, err
}

// syncTable looks, changes, and looks again until there is nothing to change.
//
// All changes to a table go in one iptables-restore --noflush: the kernel takes
// them in one step or not at all, so that no packet ever meets a chain that is
// empty or half done, or a parent without the jump. A rule it is to delete is
// named by its text and not by its number: if somebody else was quicker the
// whole step fails, and is worked out anew, rather than hit another's rule.
func (t *Tables) syncTable(ctx context.Context, table string, chains []Chain) (changes []string, err error) {
	for try := 0; ; try++ {
		script, todo, err := t.plan(ctx, table, chains)
		if err != nil {
			return changes, err
		}
		if script == "" {
			t.takenOver(table)
			return changes, nil
		}
		if try == tries {
			return changes, fmt.Errorf("iptables table %s is wrong again right after it was put right: %s: "+
				"another program changes the same chains, or iptables shows these rules in a form of its own (compare with %s)",
				table, strings.Join(todo, ", "), strings.Join(t.listing(table), " "))
		}
		if _, err := t.command(ctx, script, t.restore); err != nil {
			if try+1 < tries && ctx.Err() == nil {
				klog.V(1).Infof("iptables: changing table %s: %v; looking again", table, err)
				continue
			}
			return changes, fmt.Errorf("changing the iptables table %s (%s): %w", table, strings.Join(todo, ", "), err)
		}
		t.takenOver(table)
		changes = append(changes, todo...)
	}
}

// plan is plan for a table as it is now.
func (t *Tables) plan(ctx context.Context, table string, chains []Chain) (script string, changes []string, err error) {
	have, err := t.look(ctx, table)
	if err != nil {
		return "", nil, err
	}
	script, changes, err = plan(table, have, chains, t.takeOver(table))
	if err != nil {
		return "", nil, fmt.Errorf("working out the iptables table %s: %w", table, err)
	}
	return script, changes, nil
}

// Rules are those of a table, by chain, in the form of Chain.Rules.
func (t *Tables) Rules(ctx context.Context, table string) (map[string][]string, error) {
	have, err := t.look(ctx, table)
	return have.rules, err
}

// look reads a table.
func (t *Tables) look(ctx context.Context, table string) (listing, error) {
	text, err := t.command(ctx, "", t.listing(table))
	if err != nil {
		return listing{}, fmt.Errorf("listing the iptables table %s: %w", table, err)
	}
	have := parse(text)
	if len(have.names) == 0 {
		return listing{}, fmt.Errorf("listing the iptables table %s: %s printed %s, which is no table: see whether that is the iptables of its package",
			table, strings.Join(t.listing(table), " "), excerpt(text))
	}
	return have, nil
}

// Run does Sync at once and then every interval, until ctx ends; an interval of
// 0 is once and never again. It logs what it changed and what went wrong, each
// only when it differs from the time before, and calls report with what each
// Sync returned, nil included. Nothing but the end of ctx ends it: what is wrong
// now may be right in five seconds.
func (t *Tables) Run(ctx context.Context, chains []Chain, interval time.Duration, report func(changes []string, err error)) error {
	var tick <-chan time.Time
	if interval > 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	var lastChange, lastError string
	for {
		changes, err := t.Sync(ctx, chains)
		if ctx.Err() != nil {
			return nil
		}
		change := strings.Join(changes, ", ")
		switch {
		case change == "":
		case change != lastChange:
			klog.Infof("iptables: put right: %s", change)
		default: // somebody undoes it each time: once is enough to tell
			klog.V(2).Infof("iptables: put right again: %s", change)
		}
		lastChange = change
		switch {
		case err == nil && lastError != "":
			klog.Info("iptables: all is right again")
			lastError = ""
		case err != nil && err.Error() != lastError:
			klog.Errorf("iptables: %v; trying again", err)
			lastError = err.Error()
		}
		report(changes, err)
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

// listing is the command that shows one table.
func (t *Tables) listing(table string) []string {
	return append(slices.Clone(t.list), "-t", table, "-S")
}

func (t *Tables) command(ctx context.Context, stdin string, argv []string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, t.patience, fmt.Errorf("it did not end within %v", t.patience))
	defer cancel()
	return t.output(ctx, stdin, argv)
}

// output runs a program and returns what it prints.
func output(ctx context.Context, stdin string, argv []string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.Env = environment(os.Environ())
	// A wrapper script that hangs has children, which are to go with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	name := filepath.Base(argv[0])
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s: %w: it hangs, or another iptables process holds the lock", name, context.Cause(ctx))
	}
	said := strings.TrimSpace(stderr.String())
	if said == "" {
		// There iptables-nft says that a table is not of its making.
		said = strings.TrimSpace(stdout.String())
	}
	if said == "" {
		said = "it gave no reason"
	}
	return "", fmt.Errorf("%s: %w: %s", name, err, excerpt(said))
}

// environment is what of ours a program is given. There may be secrets in the rest,
// and the socket of the service manager; and what it prints is to be in English.
func environment(ours []string) []string {
	env := []string{"LC_ALL=C"}
	for _, v := range ours {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "PATH", "XTABLES_LOCKFILE", "XTABLES_LIBDIR", "IPTABLES_LIB_DIR": // the latter are iptables' own
			env = append(env, v)
		}
	}
	return env
}

// excerpt is as much of what a program says as a message has room for.
func excerpt(text string) string {
	const room = 300
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	switch {
	case text == "":
		return "nothing"
	case len(text) > room:
		return strings.ToValidUTF8(text[:room], "") + " …"
	}
	return text
}
