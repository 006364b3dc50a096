package iptables

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testLeftovers are two kinds: rules to be known by themselves, in the parent of
// the chain that comes first, and rules to be known by their neighbours, in that
// of the chain that may be anywhere.
var testLeftovers = []Leftover{
	{"nat", "POSTROUTING", func(rules []string) (found []int) {
		for i, rule := range rules {
			if rule == "-s 10.9.0.0/16 -j RETURN" || rule == "-d 10.9.0.0/16 -j RETURN" {
				found = append(found, i)
			}
		}
		return found
	}},
	{"nat", "OUTPUT", func(rules []string) (found []int) {
		for i := 0; i+1 < len(rules); i++ {
			if rules[i] == "-s 10.9.0.0/16 -j ACCEPT" && rules[i+1] == "-d 10.9.0.0/16 -j ACCEPT" {
				found = append(found, i, i+1)
				i++
			}
		}
		return found
	}},
}

// apply does with a table what iptables-restore --noflush does: all or nothing.
func (l listing) apply(script string) (listing, error) {
	now := listing{names: slices.Clone(l.names), rules: make(map[string][]string)}
	for name, rules := range l.rules {
		now.rules[name] = slices.Clone(rules)
	}
	lines := strings.Split(strings.TrimSuffix(script, "\n"), "\n")
	if len(lines) < 2 || !strings.HasPrefix(lines[0], "*") || lines[len(lines)-1] != "COMMIT" {
		return l, errors.New("not from *TABLE to COMMIT")
	}
	for _, line := range lines[1 : len(lines)-1] {
		fail := func(why string) (listing, error) { return l, fmt.Errorf("line %q: %s", line, why) }
		if name, ok := strings.CutPrefix(line, ":"); ok {
			name, ok = strings.CutSuffix(name, " - [0:0]")
			if !ok {
				return fail("no declaration of a chain of ours")
			}
			if !now.has(name) {
				now.names = append(now.names, name)
			}
			now.rules[name] = nil
			continue
		}
		op, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		if !now.has(name) {
			return fail("there is no such chain")
		}
		rules := now.rules[name]
		switch op {
		case "-A":
			rules = append(rules, rule)
		case "-I":
			number, text, _ := strings.Cut(rule, " ")
			n, err := strconv.Atoi(number)
			if err != nil || n < 1 || n > len(rules)+1 {
				return fail("there is no such place")
			}
			rules = slices.Insert(rules, n-1, text)
		case "-D":
			i := slices.Index(rules, rule)
			if n, err := strconv.Atoi(rule); err == nil {
				i = n - 1
			}
			if i < 0 || i >= len(rules) {
				return fail("there is no such rule")
			}
			rules = slices.Delete(rules, i, i+1)
		case "-F":
			rules = nil
		case "-X":
			for _, from := range now.rules {
				if slices.ContainsFunc(from, func(r string) bool { return target(r) == name }) {
					return fail("a rule leads to it")
				}
			}
			if len(rules) > 0 {
				return fail("it has rules")
			}
			delete(now.rules, name)
			now.names = slices.DeleteFunc(now.names, func(n string) bool { return n == name })
			continue
		default:
			return fail("unknown")
		}
		now.rules[name] = rules
	}
	return now, nil
}

// String is the table as iptables -S shows it.
func (l listing) String() string {
	var b strings.Builder
	for _, name := range l.names {
		if builtin(name) {
			fmt.Fprintf(&b, "-P %s ACCEPT\n", name)
		} else {
			fmt.Fprintf(&b, "-N %s\n", name)
		}
	}
	for _, name := range l.names {
		for _, rule := range l.rules[name] {
			fmt.Fprintf(&b, "-A %s %s\n", name, rule)
		}
	}
	return b.String()
}

func builtin(chain string) bool {
	return slices.Contains([]string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}, chain)
}

// randomTable is a nat table that anything may have happened to.
func randomTable(r *rand.Rand) listing {
	l := listing{names: []string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING", "THEIRS"}, rules: make(map[string][]string)}
	// Each chain may lead to those behind it, so that there is no loop.
	ours := []string{"OURS", "MORE", "GONE"}
	for _, name := range ours {
		if r.IntN(4) > 0 {
			l.names = append(l.names, name)
		}
	}
	for i, name := range l.names {
		l.rules[name] = nil
		pool := []string{
			"-s 192.0.2.1/32 -j RETURN", "-s 192.0.2.1/32 -j ACCEPT", "-j RETURN", "-d 192.0.2.0/24",
			"-m comment --comment \"no -j OURS here\" -j RETURN", "-m comment --comment \"a \\\" -j GONE\" -j ACCEPT",
			"-s 10.9.0.0/16 -j RETURN", "-d 10.9.0.0/16 -j RETURN", "-s 10.9.0.0/16 -p tcp -j RETURN",
			"-s 10.9.0.0/16 -j ACCEPT", "-d 10.9.0.0/16 -j ACCEPT",
			"-s 10.1.0.0/16 -j ACCEPT", "-j RETURN", "-j ACCEPT", // those of testChains
		}
		for _, to := range l.names[max(4, i+1):] {
			pool = append(pool, "-j "+to, "-j "+to, "-g "+to, "-p udp -j "+to, "-m comment --comment \"it\\'s mine\" -j "+to)
		}
		for range r.IntN(9) {
			rule := pool[r.IntN(len(pool))]
			l.rules[name] = append(l.rules[name], rule)
			if rule == "-s 10.9.0.0/16 -j ACCEPT" && r.IntN(2) == 0 {
				l.rules[name] = append(l.rules[name], "-d 10.9.0.0/16 -j ACCEPT")
			}
		}
		if slices.Contains(ours, name) && r.IntN(2) == 0 {
			for _, c := range testChains {
				if c.Name == name {
					l.rules[name] = slices.Clone(c.Rules)
				}
			}
		}
	}
	return l
}

// checkSynced says in what a table is not what one Sync ought to make of another.
func checkSynced(before, after listing) error {
	want := listing{names: slices.Clone(before.names), rules: make(map[string][]string)}
	for _, name := range before.names {
		gone := map[int]bool{}
		for _, l := range testLeftovers {
			if l.Chain == name {
				for _, i := range l.Find(before.rules[name]) {
					gone[i] = true
				}
			}
		}
		for i, rule := range before.rules[name] {
			for _, c := range testChains {
				gone[i] = gone[i] || target(rule) == c.Name && (c.Absent || c.Parent == name)
			}
			if !gone[i] {
				want.rules[name] = append(want.rules[name], rule)
			}
		}
	}
	for _, c := range testChains {
		if c.Absent {
			delete(want.rules, c.Name)
			want.names = slices.DeleteFunc(want.names, func(n string) bool { return n == c.Name })
			continue
		}
		if !slices.Contains(want.names, c.Name) {
			want.names = append(want.names, c.Name)
		}
		want.rules[c.Name] = c.Rules
		var jumps []int
		for i, rule := range after.rules[c.Parent] {
			if target(rule) == c.Name {
				jumps = append(jumps, i)
			}
		}
		if len(jumps) != 1 || after.rules[c.Parent][jumps[0]] != "-j "+c.Name {
			return fmt.Errorf("%s does not lead to %s just once", c.Parent, c.Name)
		}
		if c.First && jumps[0] != 0 {
			return fmt.Errorf("the jump to %s is not the first rule of %s", c.Name, c.Parent)
		}
		want.rules[c.Parent] = slices.Insert(slices.Clone(want.rules[c.Parent]), min(jumps[0], len(want.rules[c.Parent])), "-j "+c.Name)
		// In front of the jump there is no rule that was behind a leftover.
		if !c.First {
			for _, l := range testLeftovers {
				if found := l.Find(before.rules[c.Parent]); l.Chain == c.Parent && len(found) > 0 && jumps[0] > found[0] {
					return fmt.Errorf("the jump to %s is rule %d and the first leftover was rule %d", c.Name, jumps[0]+1, found[0]+1)
				}
			}
		}
	}
	for _, l := range []*listing{&want, &after} {
		slices.Sort(l.names)
	}
	if diff := cmp.Diff(want.String(), after.String()); diff != "" {
		return fmt.Errorf("(-want +got):\n%s", diff)
	}
	return nil
}

// TestPlanOnModel states what Sync is for: from whatever there is, one step makes
// our chains exact and leaves all else as it was, and there is no second step.
func TestPlanOnModel(t *testing.T) {
	for seed := range uint64(5000) {
		before := randomTable(rand.New(rand.NewPCG(seed, 0)))
		script, _, err := plan("nat", before, testChains, testLeftovers)
		if err != nil {
			t.Fatal(err)
		}
		after := before
		if script != "" {
			after, err = before.apply(script)
		}
		if err == nil {
			err = checkSynced(before, after)
		}
		if err == nil {
			if again, _, _ := plan("nat", after, testChains, nil); again != "" {
				err = fmt.Errorf("and then once more:\n%s", again)
			}
		}
		if err != nil {
			t.Fatalf("seed %d: %v\nfrom\n%vby\n%s", seed, err, before, script)
		}
	}
}

// TestSyncOnKernel is the same with the kernel and the real programs.
func TestSyncOnKernel(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		tables, err := NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		show := func() listing {
			text, err := tables.command(t.Context(), "", tables.listing("nat"))
			if err != nil {
				t.Fatal(err)
			}
			return parse(text)
		}
		for seed := range uint64(100) {
			var script strings.Builder
			script.WriteString("*nat\n")
			random := randomTable(rand.New(rand.NewPCG(seed, 1)))
			for line := range strings.Lines(random.String()) {
				op, rest, _ := strings.Cut(line, " ")
				name, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
				switch op {
				case "-P":
					fmt.Fprintf(&script, ":%s ACCEPT [0:0]\n", name)
				case "-N":
					fmt.Fprintf(&script, ":%s - [0:0]\n", name)
				default:
					script.WriteString(line)
				}
			}
			script.WriteString("COMMIT\n")
			// Without --noflush what was there before goes.
			if _, err := tables.command(t.Context(), script.String(), []string{program + "-restore"}); err != nil {
				t.Fatalf("%v\n%s", err, script.String())
			}
			before := show()
			if got, want := rulesOf(before), rulesOf(random); got != want {
				t.Fatalf("seed %d: the kernel shows %s for %s", seed, got, want)
			}
			tables.TakeOver(testLeftovers)
			changes, err := tables.Sync(t.Context(), testChains)
			if err == nil {
				err = checkSynced(before, show())
			}
			if err != nil {
				t.Fatalf("seed %d: %v\nfrom\n%vchanged %q", seed, err, before, changes)
			}
		}
	})
}

// rulesOf is all rules of a table, in the order of the chains' names.
func rulesOf(l listing) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(l.rules)) {
		fmt.Fprintf(&b, "%s %q\n", name, l.rules[name])
	}
	return b.String()
}

// FuzzPlan has iptables print anything, also what no iptables prints.
func FuzzPlan(f *testing.F) {
	f.Add(rightTable)
	for seed := range uint64(20) {
		f.Add(randomTable(rand.New(rand.NewPCG(seed, 2))).String())
	}
	f.Fuzz(func(t *testing.T, text string) {
		before := parse(text)
		script, _, err := plan("nat", before, testChains, testLeftovers)
		if err != nil || script == "" {
			return
		}
		after, err := before.apply(script)
		if err != nil {
			t.Fatalf("%v in\n%s", err, script)
		}
		if script, _, _ := plan("nat", after, testChains, nil); script != "" {
			t.Errorf("and then once more:\n%s", script)
		}
	})
}
