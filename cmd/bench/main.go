// Command bench measures flanneld's control plane with thousands of leases in
// etcd: how fast a host starts, restarts and follows changes, and what it
// costs to keep flanneld running. And it measures what the udp backend carries,
// beside the others. It ends in a table for each of the two, each figure beside
// the bound it ought to keep. README.md says how to read it.
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
	name  string
	parts []string // what it can be confined to
	tools []string // that it calls
	play  func(*bench, *lab.Lab) error
}

var (
	controlTools = []string{"ip", "bridge", "iptables"}
	trafficTools = append(slices.Clone(controlTools), "iperf3", "ping")
)

var scenes = []scene{
	{vxlan.name, partNames(), controlTools, func(b *bench, l *lab.Lab) error { return b.control(l, vxlan) }},
	{hostGW.name, partNames(), controlTools, func(b *bench, l *lab.Lab) error { return b.control(l, hostGW) }},
	{udp, slices.Concat(layoutNames(), trafficPartNames()), trafficTools, (*bench).traffic},
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
	leases      int      // in etcd, of other hosts
	rounds      int      // of what is measured repeatedly
	only        []string // names of scenes and parts; those of either are all meant if none is named
	rows        []row
	comparisons []comparison
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
	flags.IntVar(&b.rounds, "rounds", 3, "times that starts, bursts and traffic are measured")
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
func names() (all []string) {
	for _, s := range scenes {
		all = append(all, s.name)
	}
	for _, s := range scenes {
		for _, name := range s.parts {
			if !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	return all
}

// scenes are those to play: all if -only names nothing; otherwise those that it
// names, and those with a part that it names for no other that it names.
func (b *bench) scenes() (chosen []scene) {
	named := func(s scene) bool { return slices.Contains(b.only, s.name) }
	for _, s := range scenes {
		wanted := len(b.only) == 0 || named(s)
		for _, part := range b.only {
			taken := func(s scene) bool { return named(s) && slices.Contains(s.parts, part) }
			wanted = wanted || slices.Contains(s.parts, part) && !slices.ContainsFunc(scenes, taken)
		}
		if wanted {
			chosen = append(chosen, s)
		}
	}
	return chosen
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

// run plays the chosen scenes. The tables come also when one of them fails,
// with what was measured by then.
func (b *bench) run() error {
	chosen := b.scenes()
	for _, s := range chosen {
		if err := lab.Tools(s.tools...); err != nil {
			return err
		}
	}
	begin := time.Now()
	b.Say("On %s.", screen.Machine())
	var failed error
	for _, s := range chosen {
		if err := lab.Run(b.Say, func(l *lab.Lab) error { return s.play(b, l) }); err != nil {
			failed = fmt.Errorf("%s: %w", s.name, err)
			break
		}
	}
	b.Heading("What was measured, on %s", screen.Machine())
	if len(b.rows) > 0 {
		b.table()
	}
	if len(b.comparisons) > 0 {
		b.Say("")
		b.trafficTable()
	}
	b.Say("\ncmd/bench/README.md says how to read this. It took %.0f s.", time.Since(begin).Seconds())
	return failed
}
