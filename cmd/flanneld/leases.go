package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"flanneld/network/local"
	"flanneld/network/status"
	"flanneld/pkg/tty"
	"flanneld/subnet/etcdv2"
)

func leasesCommand() command {
	return command{
		name:    "leases",
		summary: "all leases of the network, and how full it is",
		about: `lists all leases of the network in etcd, with the time left or "reserved", and how
full the network is. It asks the daemon that runs on this host; where none does, or
--etcd-endpoints or --etcd-prefix is given, it asks etcd itself, by the flags of the daemon.`,
		flags: outputFlag,
		run:   runLeases,
	}
}

func runLeases(ctx context.Context, o options, stdout, stderr io.Writer) int {
	all, err := readNetwork(ctx, o)
	if err == nil && o.json {
		err = printJSON(stdout, all)
	} else if err == nil {
		err = status.Text{Colour: tty.Colour(stdout, os.Getenv)}.WriteLeases(stdout, all)
	}
	if err != nil {
		return fail(stderr, "leases", err)
	}
	return exitOK
}

func readNetwork(ctx context.Context, o options) (status.Network, error) {
	if !o.etcdGiven && !o.prefixGiven {
		all, err := status.NetworkFromDaemon(ctx)
		if err != nil && !errors.Is(err, local.ErrNone) {
			return all, fmt.Errorf("%w; with --etcd-endpoints etcd itself is asked", err)
		} else if err == nil {
			return all, nil
		}
	}
	store, err := etcdv2.New(o.etcd)
	if err != nil {
		return status.Network{}, err
	}
	return status.ReadNetwork(ctx, store, o.prefix())
}
