// Package cleanup takes off this host what flanneld put there: devices, routes and
// next hops, iptables rules, the subnet file, and this host's lease where that is
// asked for. It goes by the marks that the other packages put on these things, and
// needs no config and no store, so that it works on a host whose cluster is gone.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/backend"
	"flanneld/network/firewall"
	"flanneld/network/local"
	"flanneld/network/subnetfile"
	"flanneld/pkg/extif"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

// patience is how long the store may take to answer.
const patience = 10 * time.Second

// Options say what to clean, and how.
type Options struct {
	// SubnetFile is where the daemon writes its subnet file.
	SubnetFile string
	// Store is nil where it is not to be asked. Its config and leases tell more of
	// what an older daemon has left.
	Store subnet.Store
	// Release removes this host's lease from Store: those with PublicIP or, if that is
	// invalid, the address of the interface that Interface asks for, as the daemon
	// has it.
	Release   bool
	Interface extif.Options
	PublicIP  netip.Addr
	// Leases is the directory in the store that the leases are in, for messages.
	Leases string
	// IsDaemon tells the daemon from a command, by the arguments.
	IsDaemon func(args []string) bool
	// Force cleans beneath a daemon that runs.
	Force bool
	// Dry changes nothing, and says what would be done.
	Dry bool
	// Say prints a line.
	Say func(line string)
}

// Run cleans the host and returns what could not be done; it does all else.
func Run(ctx context.Context, o Options) (failed []error) {
	if err := privileged(); err != nil {
		return []error{err}
	}
	c := cleaner{Options: o}
	if err := c.alone(); err != nil {
		return []error{err}
	}
	c.own, _ = subnetfile.Read(o.SubnetFile) // a file that cannot be read tells nothing
	if n := subnetfile.Network(o.SubnetFile); n.IsValid() {
		c.networks = append(c.networks, n)
	}
	// The lease goes last: until then it keeps the subnet from being another host's,
	// whose traffic this one would take.
	for _, step := range []func(context.Context){c.ask, c.rules, c.tables, c.files, c.sum, c.release} {
		if ctx.Err() != nil {
			return append(c.failed, errors.New("stopped halfway; run it again for the rest"))
		}
		step(ctx)
	}
	return c.failed
}

// privileged is an error where the kernel would refuse all that is to be done.
func privileged() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return fmt.Errorf("asking the kernel for the privileges of this process: %w", err)
	}
	if has[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("this takes the capability NET_ADMIN: run it as root")
	}
	return nil
}

type cleaner struct {
	Options

	// What the subnet file has told.
	own      netip.Prefix
	networks []netip.Prefix // of flannel's, as far as they are known

	asked    bool // the store has answered
	unasked  error
	entries  []subnet.Entry
	ways     map[way]bool // to the subnets of the leases
	keepFile bool         // as it is of use to the next run
	beneath  bool         // a daemon that runs, which needs its files

	count  int // of what was removed from the host
	left   bool
	failed []error
}

// way is how an older daemon's routes lead to another host's subnet.
type way struct {
	to  netip.Prefix
	via netip.Addr
}

func (c *cleaner) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if c.Dry {
		line = "dry run: " + line
	}
	c.Say(line)
}

// leave says what of flanneld's stays on the host, or may be its.
func (c *cleaner) leave(format string, args ...any) {
	c.left = true
	c.say("left "+format, args...)
}

func (c *cleaner) fail(format string, args ...any) {
	c.failed = append(c.failed, fmt.Errorf(format, args...))
}

// alone is an error if a daemon runs, which would put everything back.
func (c *cleaner) alone() error {
	pid, err := local.Running(c.IsDaemon)
	c.beneath = err == nil
	switch {
	case errors.Is(err, local.ErrNone), err != nil && c.Force:
	case err != nil:
		return fmt.Errorf("%w (--force goes on without knowing)", err)
	case c.Force:
		c.say("flanneld runs on this host as process %d, and puts back what it misses: stop it, and run this again", pid)
	case c.Dry:
		c.say("flanneld runs on this host as process %d: stop it first", pid)
	default:
		return fmt.Errorf("flanneld runs on this host as process %d: stop it first (systemctl stop flanneld), or clean beneath it with --force", pid)
	}
	return nil
}

// ask asks the store, if there is one, for what it knows of the network.
func (c *cleaner) ask(ctx context.Context) {
	if c.Store == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	text, _, err := c.Store.Config(ctx)
	if err == nil {
		// One that cannot be read is none that a daemon has worked with.
		if config, err := subnet.ParseConfig(text); err == nil {
			c.networks = append(c.networks, config.Network)
		}
	} else if !errors.Is(err, subnet.ErrNotFound) {
		c.unasked = err
		return
	}
	if c.entries, _, c.unasked = c.Store.List(ctx); c.unasked != nil {
		return
	}
	slices.SortFunc(c.entries, func(a, b subnet.Entry) int { return strings.Compare(a.Key, b.Key) })
	c.asked, c.ways = true, map[way]bool{}
	for _, e := range c.entries {
		if l, err := e.Decode(); err == nil {
			c.ways[way{l.Subnet, l.PublicIP}] = true
		}
	}
}

// rules takes out what is flannel's in each iptables that is in use.
func (c *cleaner) rules(ctx context.Context) {
	fail := func(name string, err error) {
		c.fail("taking out the rules of %s: %w", name, err)
		c.keepFile = true
	}
	main, err := iptables.New(ctx)
	if errors.Is(err, iptables.ErrNone) {
		c.say("there is no iptables program, and so no rules were looked for")
		return
	} else if err != nil {
		fail("iptables", err)
		return
	}
	type kind struct {
		name string
		*iptables.Tables
	}
	kinds := []kind{{"iptables", main}}
	name, other, err := main.Beside(ctx)
	if err != nil {
		fail(name, err)
	} else if other != nil {
		kinds = append(kinds, kind{name, other})
	}

	// First all that tells which networks are flannel's: the rules of one kind may
	// tell it for those of the other.
	for _, k := range kinds {
		found := map[string]map[string][]string{}
		for _, chain := range firewall.Absent() {
			if k.Has(chain.Table) {
				found[chain.Table], _ = k.Rules(ctx, chain.Table) // below it is tried again, and said why not
			}
		}
		c.networks = append(c.networks, firewall.Networks(found["nat"], found["filter"])...)
	}
	for _, k := range kinds {
		change := k.Sync
		if c.Dry {
			change = k.Plan
		}
		k.TakeOver(firewall.Leftovers(c.networks...))
		changes, err := change(ctx, slices.DeleteFunc(firewall.Absent(), func(chain iptables.Chain) bool { return !k.Has(chain.Table) }))
		for _, text := range changes {
			c.count++
			c.say("%s: %s", k.name, text)
		}
		if err != nil {
			fail(k.name, err)
		}
	}
}

// tables clears the kernel's. Routes that an older daemon made bear no mark: only
// the leases tell them from anybody's.
func (c *cleaner) tables(context.Context) {
	var unmarked []kernel.Route
	removed, left, failed := kernel.Clear(backend.Owner, func(r kernel.Route) bool {
		inside := func(n netip.Prefix) bool { return n.Bits() < r.Dst.Bits() && prefix.Contains(n, r.Dst) }
		if !slices.ContainsFunc(c.networks, inside) {
			return false
		}
		if !c.ways[way{r.Dst, r.Via}] {
			unmarked = append(unmarked, r)
			return false
		}
		return true
	}, c.Dry)
	for _, what := range removed {
		c.count++
		c.say("removed %s", what)
	}
	for _, what := range left {
		c.leave("%s, as routes that are not flanneld's go through it", what)
	}
	c.failed = append(c.failed, failed...)
	if len(unmarked) == 0 {
		return
	}
	more := ""
	if n := len(unmarked) - 1; n > 0 {
		more = fmt.Sprintf(" and %d more into the network", n)
	}
	why := "no lease is reached that way"
	if !c.asked {
		c.keepFile = true // without which nothing may tell that these are in the network
		why = "with --etcd-endpoints the leases tell whether an older daemon made it"
	}
	c.leave("the route %v%s, which bears no mark: %s", slices.MinFunc(unmarked, func(a, b kernel.Route) int { return prefix.Compare(a.Dst, b.Dst) }), more, why)
}

// files removes the subnet file and the one beside it.
func (c *cleaner) files(context.Context) {
	written := subnetfile.Files(c.SubnetFile)
	switch {
	case len(written) == 0:
		return
	case c.beneath:
		c.leave("%s, which the daemon that runs would not write again", strings.Join(written, " and "))
		return
	case c.keepFile:
		c.leave("%s, as the next run needs it to tell what is flannel's", c.SubnetFile)
		return
	}
	for _, file := range written {
		if !c.Dry {
			if err := os.Remove(file); err != nil {
				c.fail("removing a file: %w", err)
				continue
			}
		}
		c.count++
		c.say("removed the file %s", file)
	}
}

// sum says how the host is afterwards.
func (c *cleaner) sum(context.Context) {
	forwarding, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	switch {
	case c.count == 0 && len(c.failed) == 0 && !c.left:
		c.say("nothing of flanneld's is on this host")
	case c.count > 0 && err == nil && strings.TrimSpace(string(forwarding)) == "1":
		c.say("left IPv4 forwarding on, as others may need it; sysctl -w net.ipv4.ip_forward=0 turns it off")
	}
}

// release removes this host's leases, but for reservations, which are the
// operator's.
func (c *cleaner) release(ctx context.Context) {
	switch {
	case c.unasked != nil && c.Release:
		c.fail("%w; a lease of this host stays until it ends or this is run again", c.unasked)
		return
	case c.unasked != nil:
		c.fail("%w; so there may be rules and routes of an older daemon that could not be told", c.unasked)
		return
	case !c.Release || c.Store == nil:
		return
	}
	host := c.PublicIP
	if !host.IsValid() {
		iface, err := extif.Choose(c.Interface)
		if err != nil {
			c.fail("finding out which lease is this host's: %w", err)
			return
		}
		host = iface.Addr
	}
	var mine []subnet.Entry
	for _, e := range c.entries {
		l, err := e.Decode()
		switch {
		case err != nil: // nobody's
		case l.PublicIP == host:
			mine = append(mine, e)
		case l.Subnet == c.own:
			// Either the address is not the one this host's daemon had, and may be
			// another's, or the subnet has gone to another host.
			c.fail("releasing nothing: %v, this host's subnet by its subnet file, is leased by %v, and this host is %v; if that was this host's address, give --public-ip=%v or the daemon's --iface",
				l.Subnet, l.PublicIP, host, l.PublicIP)
			return
		}
	}
	if len(mine) == 0 {
		c.say("no lease of this host, %v, is in etcd", host)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, e := range mine {
		if e.Expires.IsZero() {
			c.say("left the reservation %s of this host, which an operator made; etcdctl rm %s deletes it", e.Key, path.Join(c.Leases, e.Key))
			continue
		}
		if !c.Dry {
			err := c.Store.Delete(ctx, e)
			if errors.Is(err, subnet.ErrConflict) {
				err = fmt.Errorf("%w: does flanneld run on a host with the address %v?", err, host)
			}
			if err != nil && !errors.Is(err, subnet.ErrNotFound) {
				c.fail("releasing the lease %s: %w", e.Key, err)
				continue
			}
		}
		c.say("released the lease %s of this host, %v", e.Key, host)
	}
}
