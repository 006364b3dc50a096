package main

import (
	"context"
	"io"
	"os"

	"flanneld/network/check"
	"flanneld/pkg/tty"
	"flanneld/subnet/etcdv2"
)

func checkCommand() command {
	return command{
		name:    "check",
		summary: "whether this host, etcd and the network config are fit for the daemon",
		about: `looks at this host, at etcd and at the network config as the daemon would that is
started with the same flags, changes nothing, and prints a line for each thing: ok,
warning or failure, what was found, and what to do. Run it as the daemon's user.

Exit status: 0 if nothing is a failure, 1 if something is, 2 for wrong usage.`,
		flags: outputFlag,
		run:   runCheck,
	}
}

func runCheck(ctx context.Context, o options, stdout, stderr io.Writer) int {
	store, err := etcdv2.New(o.etcd)
	found := check.Run(ctx, check.Options{
		Node: o.node, Store: store, StoreErr: err, Given: o.etcdGiven, LogDir: o.logDir, LogFile: o.logFile, IsDaemon: isDaemon,
	})
	if ctx.Err() != nil {
		return fail(stderr, "check", context.Cause(ctx)) // what was found may be no more than that
	}
	if o.json {
		err = printJSON(stdout, check.Report{Fit: check.Fit(found), Findings: found})
	} else {
		err = check.Table(stdout, found, tty.Colour(stdout, os.Getenv))
	}
	if err != nil {
		return fail(stderr, "check", err)
	}
	if !check.Fit(found) {
		return exitFailure
	}
	return exitOK
}
