package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"k8s.io/klog/v2"
)

// command is what flanneld does when its first argument is the command's name.
// It takes the flags of the daemon, from the environment too, so that it sees the
// host as the daemon does that is started with them, and flags of its own.
type command struct {
	name string
	// summary is one line, about shows what it does, for its help.
	summary, about string
	// flags adds its own flags. They are not taken from the environment: each is
	// about this one call.
	flags func(fs *flag.FlagSet, o *options)
	// run does it, until ctx ends at the latest, and returns the exit status.
	run func(ctx context.Context, o options, stdout, stderr io.Writer) int
}

// daemon is what flanneld is without a command.
var daemon = command{
	about: "flanneld gives this host a subnet of the cluster's network and carries its containers' traffic to the others.",
	flags: func(fs *flag.FlagSet, o *options) {
		fs.BoolVar(&o.version, "version", false, "print the version and exit")
	},
	run: runDaemon,
}

// commands are all others, in the order in which help lists them.
func commands() []command {
	return []command{checkCommand(), statusCommand(), leasesCommand(), cleanupCommand()}
}

// choose finds the command that a command line is for, and what follows its name.
// helped says that help is asked for by that word.
func choose(args []string) (c command, rest []string, helped bool) {
	word := func() string {
		if len(args) == 0 {
			return ""
		}
		return args[0]
	}
	if word() == "help" {
		helped, args = true, args[1:]
	}
	for _, c := range commands() {
		if c.name == word() {
			return c, args[1:], helped
		}
	}
	return daemon, args, helped
}

// isDaemon tells the daemon from a command, by the arguments.
func isDaemon(args []string) bool {
	c, _, helped := choose(args)
	return c.name == "" && !helped
}

// listCommands writes what flanneld help begins with.
func listCommands(w io.Writer) {
	fmt.Fprintf(w, "%s\n\nUsage:\n  %-17s %s\n", daemon.about, "flanneld", "the daemon")
	for _, c := range commands() {
		fmt.Fprintf(w, "  flanneld %-8s %s\n", c.name, c.summary)
	}
	fmt.Fprintf(w, "  %-17s %s\n", "flanneld help", "this list; flanneld help COMMAND, or COMMAND --help, has more")
}

// outputFlag adds the flag of commands that print for a person or for a script.
func outputFlag(fs *flag.FlagSet, o *options) {
	fs.Func("output", "`table`, for a person (the default), or json, for a script", func(s string) error {
		if s != "table" && s != "json" {
			return errors.New("must be table or json")
		}
		o.json = s == "json"
		return nil
	})
}

// printJSON writes what a command has found for a script.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// quiet keeps what parts of the daemon log out of what a command prints, unless
// somebody wants to see it.
func quiet(verbosity string) {
	if verbosity == "0" {
		klog.LogToStderr(false)
		klog.SetOutput(io.Discard)
	}
}

// fail prints one line about why a command could not do its work.
func fail(stderr io.Writer, c string, err error) int {
	fmt.Fprintf(stderr, "flanneld %s: %s\n", c, oneLine(err))
	return exitFailure
}

// oneLine is an error on one line, whatever is quoted in it.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
