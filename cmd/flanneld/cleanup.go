package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"path"

	"flanneld/network/cleanup"
	"flanneld/subnet/etcdv2"
)

func cleanupCommand() command {
	return command{
		name:    "cleanup",
		summary: "takes off this host what flanneld put there",
		about: `takes off this host what flanneld put there: devices, routes,
iptables rules (also those that daemons from v0.7 to v0.11 have left) and the subnet
file. What is not flanneld's stays. It is refused while a daemon runs.`,
		flags: func(fs *flag.FlagSet, o *options) {
			fs.BoolVar(&o.cleanup.Dry, "dry-run", false, "say what would be done, and do nothing")
			fs.BoolVar(&o.cleanup.Force, "force", false, "also while a daemon runs")
			fs.BoolVar(&o.cleanup.Release, "release-lease", false, "remove this host's lease from etcd, too; a reservation stays")
		},
		run: runCleanup,
	}
}

// runCleanup is flanneld cleanup.
func runCleanup(ctx context.Context, o options, stdout, stderr io.Writer) int {
	c := o.cleanup
	c.SubnetFile, c.Interface, c.PublicIP = o.node.SubnetFile, o.node.Interface, o.node.PublicIP
	c.Leases = path.Join(o.prefix(), "subnets")
	c.IsDaemon = isDaemon
	c.Say = func(line string) { fmt.Fprintln(stdout, line) }
	status := exitOK
	if o.etcdGiven || c.Release {
		store, err := etcdv2.New(o.etcd)
		if err != nil {
			status = fail(stderr, "cleanup", err)
		} else {
			c.Store = store
		}
	}
	for _, err := range cleanup.Run(ctx, c) {
		status = fail(stderr, "cleanup", err)
	}
	return status
}
