package lab

import (
	"fmt"
	"slices"
	"strings"
)

// Dump is the state of every node (addresses, routes, neighbours, FDB and
// iptables rules, as far as the commands are there) and the end of every
// process's log, so that a failure can be understood without repeating it.
func (l *Lab) Dump() string {
	l.mu.Lock()
	nodes, processes := slices.Clone(l.nodes), slices.Clone(l.processes)
	l.mu.Unlock()
	var b strings.Builder
	for _, n := range nodes {
		for _, argv := range [][]string{
			{"ip", "-4", "addr"},
			{"ip", "-4", "route"},
			{"ip", "-4", "neigh"},
			{"bridge", "fdb"},
			{"iptables-save"},
		} {
			out, err := n.Exec(argv...)
			if err != nil {
				out = err.Error()
			}
			if out != "" {
				fmt.Fprintf(&b, "--- %s: %s\n%s\n", n.Name, strings.Join(argv, " "), out)
			}
		}
	}
	for _, p := range processes {
		state := "running"
		if !p.Running() {
			state = fmt.Sprintf("ended with status %d", p.status)
		}
		fmt.Fprintf(&b, "--- %v, %s: %s\n%s\n", p, state, strings.Join(p.cmd.Args, " "), tail(p.Log(), 60))
	}
	return b.String()
}
