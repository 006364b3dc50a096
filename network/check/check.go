// Package check looks at a host before flanneld is started there, and says of each
// thing that flanneld needs whether it is as it ought to be, in the order in which
// flanneld would meet it. It changes nothing: not in the kernel, of which it loads no
// modules either, not on disk, and not in the store.
//
// Each thing has a function that judges, given what was read, which is plain data.
// Start reading at Run.
package check

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"flanneld/backend"
	"flanneld/backend/table"
	"flanneld/network"
	"flanneld/network/subnetfile"
	"flanneld/pkg/iptables"
	"flanneld/subnet"
)

// Level is how good or bad a Finding is.
type Level string

// Of these only Failure says that the network would not work as asked. Skipped is
// what could not be looked at, for a reason that is another finding, or does not
// matter here.
const (
	OK      Level = "ok"
	Skipped Level = "skipped"
	Warning Level = "warning"
	Failure Level = "failure"
)

// Finding is one thing that was looked at.
type Finding struct {
	// Name is what was looked at; several findings may be about one thing.
	Name  string `json:"name"`
	Level Level  `json:"level"`
	// Text is what was found, on one line.
	Text string `json:"text"`
	// Hint is what to do about a Warning or a Failure.
	Hint string `json:"hint,omitempty"`
}

func finding(l Level, name, hint, format string, args ...any) Finding {
	return Finding{Name: name, Level: l, Text: oneLine(fmt.Sprintf(format, args...)), Hint: hint}
}

// oneLine is a text on one line, whatever is quoted in it.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func ok(name, format string, args ...any) Finding { return finding(OK, name, "", format, args...) }

func skipped(name, format string, args ...any) Finding {
	return finding(Skipped, name, "", format, args...)
}

func warning(name, hint, format string, args ...any) Finding {
	return finding(Warning, name, hint, format, args...)
}

func failure(name, hint, format string, args ...any) Finding {
	return finding(Failure, name, hint, format, args...)
}

// Fit reports whether nothing is a Failure.
func Fit(all []Finding) bool { return count(all, Failure) == 0 }

func count(all []Finding, l Level) (n int) {
	for _, f := range all {
		if f.Level == l {
			n++
		}
	}
	return n
}

// Options say for which flanneld the host is looked at.
type Options struct {
	// Node is what that would be started with.
	Node network.Options
	// Store is where the network is; StoreErr is why there is none.
	Store    subnet.Store
	StoreErr error
	// Given says that somebody has said where the store is. Of the places that are
	// tried otherwise one is enough.
	Given bool
	// LogDir is where log files are written, LogFile the one there if it has a name;
	// both are empty where there are none.
	LogDir, LogFile string
	// IsDaemon tells the daemon from a command, by the arguments.
	IsDaemon func(args []string) bool
}

// atMost is how long all of it may take, programTime how long iptables may, to say what
// it is and to list its rules.
const (
	atMost      = 5700 * time.Millisecond
	programTime = 1200 * time.Millisecond
)

func forProgram(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, programTime, fmt.Errorf("it did not end within %v", programTime))
}

// Run looks at everything, which takes less than six seconds.
func Run(ctx context.Context, o Options) []Finding {
	ctx, stop := context.WithTimeout(ctx, atMost)
	defer stop()
	// Those that may keep one waiting are asked at the same time.
	var wg sync.WaitGroup
	var said answers
	if o.StoreErr == nil {
		wg.Go(func() { said = ask(ctx, o.Store) })
	}
	var running process
	wg.Go(func() { running = findDaemon(ctx, o.IsDaemon) })
	var program *iptables.Tables
	var programErr error
	wg.Go(func() {
		ctx, stop := forProgram(ctx)
		defer stop()
		program, programErr = iptables.New(ctx)
	})
	wg.Wait()

	m := modules{os.DirFS("/")}
	all := []Finding{daemon(running, ownDevices())}
	if o.LogDir != "" {
		all = append(all, logFiles(o.LogDir, o.LogFile, loggable(o.LogDir, o.LogFile)))
	}
	all = append(all, privileges(tryAdmin(), tryRaw())...)
	iface, publicIP, placeErr := o.Node.Place()
	all = append(all, place(iface, publicIP, placeErr)...)
	if o.Node.HealthAddr.IsValid() {
		all = append(all, healthPort(o.Node.HealthAddr, running))
	}

	if o.StoreErr != nil {
		all = append(all, failure("etcd", "see to the files and flags for etcd", "%v", o.StoreErr))
	} else {
		all = append(all, members(said.members, o.Given)...)
	}
	all = append(all, clock(time.Now(), said.members))
	c, findings := config(said)
	all = append(all, findings...)
	all = append(all, rights(said))

	before, beforeErr := subnetfile.Read(o.Node.SubnetFile)
	memory := subnetfile.Memory{File: o.Node.SubnetFile, HasMAC: subnetfile.HostHasMAC}
	mine := holding{config: c, publicIP: publicIP, last: memory.Recall(), said: said}
	all = append(all, mine.lease())
	if c == nil {
		all = append(all, skipped("network", "the network config is not known"), skipped("backend", "the network config is not known"))
	} else {
		nearby, err := neighbourhood()
		all = append(all, overlap(*c, mine.own(), nearby, err))
		if err == nil {
			all = append(all, cutOff(*c, nearby, farAway(said, publicIP))...)
		}
		host := backend.Host{Interface: iface, PublicIP: publicIP, Network: c.Network}
		all = append(all, backendFits(*c, host, placeErr, m, running))
	}
	all = append(all, kernelFeatures(typeOf(c), m)...)
	all = append(all, subnetFile(o.Node.SubnetFile, c, before, beforeErr, writable(o.Node.SubnetFile)))
	all = append(all, readForwarding(network.ForwardingFile))
	all = append(all, iptablesProgram(program, programErr))
	if programErr == nil {
		all = append(all, lookAtRules(ctx, program, m, c, subnetfile.Network(o.Node.SubnetFile)))
	}
	return all
}

// typeOf is the configured backend, empty where that is not known.
func typeOf(c *table.Config) string {
	if c == nil {
		return ""
	}
	return c.BackendType
}

// networkOf is the configured Network, invalid where that is not known.
func networkOf(c *table.Config) netip.Prefix {
	if c == nil {
		return netip.Prefix{}
	}
	return c.Network
}

// late reports whether an error is but that there was no answer in time.
func late(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
