// Command flanneld is the node daemon: it gives its host a subnet of the
// cluster's network and carries its containers' traffic to those of the others.
//
// This package reads the command line and turns the outcome into an exit
// status; package network is what runs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"k8s.io/klog/v2"

	"flanneld/network"
	"flanneld/subnet/etcdv2"
)

// version is set by the build.
var version = "unknown"

// Exit statuses. A service manager starts the daemon again after exitFailure;
// after exitUsage that would be of no use.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	// A program that panics, or that a watchdog aborts, exits with 2 in Go, which
	// here means bad usage, after which nobody starts it again. This has it end by
	// the signal.
	debug.SetTraceback("crash")
	// But not with a core: the password and the key are in it. A failure leaves what
	// the unit or shell has set.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	c, args, helped := choose(args)
	if helped {
		args = append([]string{"--help"}, args...)
	}
	o, err := parseFlags(c, args, getenv, stdout)
	// Not for the programs that are called. The second is the variable of unit files
	// that the command line is made of, which has been read.
	os.Unsetenv(envPrefix + "ETCD_PASSWORD")
	os.Unsetenv("FLANNEL_OPTIONS")
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "%s: %s\n", strings.TrimSpace("flanneld "+c.name), oneLine(err))
		return exitUsage
	}
	// supervisord's stopsignal is often QUIT; it is to end as cleanly.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what the first does not
	return c.run(ctx, o, stdout, stderr)
}

// runDaemon is flanneld without a command.
func runDaemon(ctx context.Context, o options, stdout, _ io.Writer) int {
	if o.version {
		fmt.Fprintf(stdout, "flanneld %s\n", version)
		return exitOK
	}
	defer klog.Flush()
	klog.Infof("flanneld %s starts", version)
	store, err := etcdv2.New(o.etcd)
	if err != nil {
		klog.Errorf("Stopping: %v", err)
		return exitFailure
	}
	o.node.Version, o.node.Prefix, o.node.Notify = version, o.prefix(), notify
	if o.node.Watchdog, err = sd.SdWatchdogEnabled(false); err != nil {
		klog.Warningf("Going on without systemd's watchdog, whose environment is broken: %v", err)
	}
	err = network.Run(ctx, store, o.node)
	notify("STOPPING=1")
	if err != nil {
		klog.Errorf("Stopping: %v", err)
		return exitFailure
	}
	klog.Info("Stopped; a lease stays, and so does what is in the kernel, so that traffic goes on")
	return exitOK
}

// notify tells systemd, if it is there.
func notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		klog.Warningf("Telling systemd %q: %v", state, err)
	}
}
