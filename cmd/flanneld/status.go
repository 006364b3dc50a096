package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"flanneld/network/local"
	"flanneld/network/status"
	"flanneld/pkg/echo"
	"flanneld/pkg/tty"
	"flanneld/subnet/etcdv2"
)

// statusOptions are the flags of status.
type statusOptions struct{ noProbe, all bool }

func statusCommand() command {
	return command{
		name:    "status",
		summary: "how this host and its peers are; exit status 1 if anything is wrong",
		about: `shows how this host's network is: daemon, lease, config, etcd, and of each peer
how it is reached, whether route, neighbour and FDB entry are right in the kernel,
and whether it answers. It asks the daemon that runs on this host; where none does it
goes by the flags of the daemon, to be given as there. Exit status 0 when all is well,
1 when not, or when it cannot be found out.`,
		flags: func(fs *flag.FlagSet, o *options) {
			outputFlag(fs, o)
			fs.BoolVar(&o.status.noProbe, "no-probe", false, "do not ask the peers whether they answer")
			fs.BoolVar(&o.status.all, "all", false, "list all peers, also of many those that nothing is wrong with")
		},
		run: runStatus,
	}
}

// settling is how long what is wrong may be a change under way: a lease that has
// come or gone just now, which the daemon takes a moment for.
const settling = 700 * time.Millisecond

func runStatus(ctx context.Context, o options, stdout, stderr io.Writer) int {
	report, err := inspect(ctx, o)
	if err == nil && !report.Well && report.Daemon != nil && report.Daemon.Ready {
		first := report
		time.Sleep(settling)
		if report, err = inspect(ctx, o); err == nil {
			report.Since(first)
		}
	}
	if err != nil {
		return fail(stderr, "status", err)
	}
	if !o.status.noProbe {
		if err := report.Ask(ctx); errors.Is(err, echo.ErrNotAllowed) {
			report.Notes = append(report.Notes, "the peers were not asked whether they answer: "+err.Error())
		} else if err != nil {
			return fail(stderr, "status", err)
		}
	}
	if o.json {
		err = printJSON(stdout, report)
	} else {
		err = status.Text{Colour: tty.Colour(stdout, os.Getenv), All: o.status.all}.Write(stdout, report)
	}
	if err != nil {
		return fail(stderr, "status", err)
	}
	if !report.Well {
		return exitFailure
	}
	return exitOK
}

// inspect asks the daemon, or finds out without one.
func inspect(ctx context.Context, o options) (status.Report, error) {
	n, err := status.FromDaemon(ctx)
	if err != nil { // also where one runs that hangs
		missing := noDaemon(err)
		var store *etcdv2.Store
		if store, err = etcdv2.New(o.etcd); err == nil {
			n, err = status.Alone{
				Missing: missing, Store: store, Prefix: o.prefix(), Interface: o.node.Interface, PublicIP: o.node.PublicIP, SubnetFile: o.node.SubnetFile,
			}.Node(ctx)
		}
		if err != nil && !errors.Is(missing, local.ErrNone) {
			err = fmt.Errorf("%w; and without asking it: %w", missing, err)
		}
		if err != nil {
			return status.Report{}, err
		}
	}
	return status.Inspect(n), nil
}

// noDaemon is why there is no daemon to ask, given the error of asking one.
func noDaemon(err error) error {
	if !errors.Is(err, local.ErrNone) {
		return err
	}
	if pid, rerr := local.Running(isDaemon); rerr == nil {
		return fmt.Errorf("flanneld runs on this host as process %d, and cannot be asked: it is of another version, or another process had its socket when it started", pid)
	}
	return err
}
