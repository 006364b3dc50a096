// Command bench measures flanneld's control plane with thousands of leases in
// etcd: how fast a host starts, restarts and follows changes, and what it
// costs to keep flanneld running. It ends in one table, each figure beside the
// bound it ought to keep. README.md says how to read it.
//
// The hosts are network namespaces (see package lab), which go with the
// program, however it ends; nothing of the machine itself is changed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
	"flanneld/pkg/lab/screen"
)

// A scene is what is measured in one lab.
type scene struct {
	name string
	play func(*bench, *lab.Lab) error
}

var scenes = []scene{
	{vxlan.name, func(b *bench, l *lab.Lab) error { return b.control(l, vxlan) }},
	{hostGW.name, func(b *bench, l *lab.Lab) error { return b.control(l, hostGW) }},
}

// These leave room in network and segment for twice as many leases and for those
// that come in on the way.
const (
	maxLeases = 14000
	maxRounds = 10
)

// bench is what all scenes share.
type bench struct {
	screen.Screen
	leases int      // in etcd, of other hosts
	rounds int      // of what is measured repeatedly
	only   []string // names of scenes and parts; those of either are all meant if none is named
	rows   []row
}

func main() {
	b := &bench{Screen: screen.New(os.Stdout)}
	if err := b.parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(0)
		}
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(2)
	}
	cluster.Enter(b.Screen)
	if err := b.run(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func (b *bench) parse(args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&b.leases, "leases", 8000, "leases of other hosts in etcd")
	flags.IntVar(&b.rounds, "rounds", 3, "times that starts and bursts are measured")
	only := flags.String("only", "", "measure only these, separated by commas: "+strings.Join(names(), ", "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	for _, name := range b.only {
		if !slices.Contains(names(), name) {
			return fmt.Errorf("-only: there is no %q; there are %s", name, strings.Join(names(), ", "))
		}
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("%q is not a flag, and there are no other arguments", flags.Arg(0))
	case b.leases < 1 || b.leases > maxLeases:
		return fmt.Errorf("-leases: %d is not between 1 and %d", b.leases, maxLeases)
	case b.rounds < 1 || b.rounds > maxRounds:
		return fmt.Errorf("-rounds: %d is not between 1 and %d", b.rounds, maxRounds)
	}
	return nil
}

// names are what -only can choose.
func names() []string { return append(sceneNames(), partNames()...) }

func sceneNames() (all []string) {
	for _, s := range scenes {
		all = append(all, s.name)
	}
	return all
}

// chosen picks what -only names, or all if it names none of them.
func (b *bench) chosen(names []string) (chosen []string) {
	for _, name := range names {
		if slices.Contains(b.only, name) {
			chosen = append(chosen, name)
		}
	}
	if chosen == nil {
		return names
	}
	return chosen
}

// run plays the chosen scenes. The table comes also when one of them fails,
// with what was measured by then.
func (b *bench) run() error {
	if err := lab.Tools("ip", "bridge", "iptables"); err != nil {
		return err
	}
	begin := time.Now()
	b.Say("On %s.", screen.Machine())
	var failed error
	for _, s := range scenes {
		if failed != nil || !slices.Contains(b.chosen(sceneNames()), s.name) {
			continue
		}
		if err := lab.Run(b.Say, func(l *lab.Lab) error { return s.play(b, l) }); err != nil {
			failed = fmt.Errorf("%s: %w", s.name, err)
		}
	}
	b.Heading("What was measured, on %s", screen.Machine())
	b.table()
	b.Say("\ncmd/bench/README.md says how to read this. It took %.0f s.", time.Since(begin).Seconds())
	return failed
}
