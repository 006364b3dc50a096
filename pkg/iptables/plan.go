package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// listing is what one table holds.
type listing struct {
	names []string // in the order shown
	rules map[string][]string
}

// parse reads what iptables -S prints: a line "-P CHAIN POLICY" or "-N CHAIN"
// for each chain and then a line "-A CHAIN RULE" for each rule.
func parse(text string) listing {
	l := listing{rules: make(map[string][]string)}
	for line := range strings.Lines(text) {
		// Some versions end rules with a blank.
		op, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, rule, _ := strings.Cut(rest, " ")
		switch op {
		case "-P", "-N":
			l.names = append(l.names, name)
			l.rules[name] = nil
		case "-A":
			l.rules[name] = append(l.rules[name], rule)
		}
		// Anything else is a remark, such as that the other kind of iptables
		// has rules too.
	}
	return l
}

func (l listing) has(chain string) bool {
	_, ok := l.rules[chain]
	return ok
}

// plan works out what makes table, as it is now, what chains ask for: the input
// for iptables-restore --noflush, and the same in words. Both are empty when
// nothing is wrong.
func plan(table string, have listing, chains []Chain) (script string, changes []string, err error) {
	var (
		declared []string // chains that are made or emptied
		lines    []string
	)
	say := func(format string, args ...any) {
		changes = append(changes, table+": "+fmt.Sprintf(format, args...))
	}

	firstOf := make(map[string]string)
	for _, c := range chains {
		if c.Absent {
			continue
		}
		if c.First {
			if other := firstOf[c.Parent]; other != "" {
				return "", nil, fmt.Errorf("the jumps to %s and to %s cannot both be the first rule of %s", other, c.Name, c.Parent)
			}
			firstOf[c.Parent] = c.Name
		}
		if now := have.rules[c.Name]; !have.has(c.Name) || !slices.Equal(now, c.Rules) {
			// To iptables-restore a declaration makes the chain, or else
			// empties it. The rules follow in the same transaction.
			declared = append(declared, c.Name)
			for _, rule := range c.Rules {
				lines = append(lines, "-A "+c.Name+" "+rule)
			}
			if !have.has(c.Name) {
				say("made chain %s with %s", c.Name, count(len(c.Rules)))
			} else {
				say("chain %s: %s", c.Name, difference(now, c.Rules))
			}
		}
	}

	for _, c := range chains {
		if c.Absent {
			continue
		}
		if !have.has(c.Parent) && !slices.Contains(declared, c.Parent) {
			return "", nil, fmt.Errorf("there is no chain %s to jump to %s from", c.Parent, c.Name)
		}
		if slices.ContainsFunc(chains, func(o Chain) bool { return !o.Absent && o.Name == c.Parent }) {
			return "", nil, fmt.Errorf("chain %s is our own: a jump from it to %s belongs among its rules", c.Parent, c.Name)
		}
		jump := "-j " + c.Name
		var jumps []string
		inPlace := false
		for i, rule := range have.rules[c.Parent] {
			if target(rule) == c.Name {
				jumps = append(jumps, rule)
				inPlace = inPlace || rule == jump && (i == 0 || !c.First)
			}
		}
		if inPlace && len(jumps) == 1 {
			continue
		}
		// All out and the one in: within the transaction nobody sees it gone.
		// Without First one that is in its place stays there, as the last:
		// deleting takes the first of those that are alike.
		keep := -1
		if !c.First {
			for i, rule := range jumps {
				if rule == jump {
					keep = i
				}
			}
		}
		for i, rule := range jumps {
			if i != keep {
				lines = append(lines, "-D "+c.Parent+" "+rule)
			}
		}
		switch {
		case c.First:
			lines = append(lines, "-I "+c.Parent+" 1 "+jump)
		case keep < 0:
			lines = append(lines, "-A "+c.Parent+" "+jump)
		}
		switch {
		case len(jumps) == 0:
			say("added the jump from %s to %s", c.Parent, c.Name)
		case len(jumps) == 1 && c.First && jumps[0] == jump:
			say("made the jump from %s to %s the first rule", c.Parent, c.Name)
		case len(jumps) == 1:
			say("replaced %q in %s by the jump to %s", jumps[0], c.Parent, c.Name)
		default:
			say("left one of %d jumps from %s to %s", len(jumps), c.Parent, c.Name)
		}
	}

	for _, c := range chains {
		if !c.Absent || !have.has(c.Name) {
			continue
		}
		lines = append(lines, "-F "+c.Name)
		for _, from := range have.names {
			// Chains emptied in this transaction hold no jump any more.
			if from == c.Name || slices.Contains(declared, from) ||
				slices.ContainsFunc(chains, func(o Chain) bool { return o.Absent && o.Name == from }) {
				continue
			}
			for _, rule := range have.rules[from] {
				if target(rule) == c.Name {
					lines = append(lines, "-D "+from+" "+rule)
				}
			}
		}
		say("took out chain %s and the jumps to it", c.Name)
	}
	// Last, when all of them are empty, so that they may have jumped to each other.
	for _, c := range chains {
		if c.Absent && have.has(c.Name) {
			lines = append(lines, "-X "+c.Name)
		}
	}

	if len(changes) == 0 {
		return "", nil, nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	for _, name := range declared {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String(), changes, nil
}

// difference says in a few words in what the rules of a chain were wrong.
func difference(have, want []string) string {
	missing, extra := surplus(want, have), surplus(have, want)
	var parts []string
	if len(missing) > 0 {
		parts = append(parts, "put in the "+count(len(missing))+" missing")
	}
	if len(extra) > 0 {
		parts = append(parts, "took out "+strings.Join(quoted(extra), " and "))
	}
	if len(parts) == 0 {
		return "put its rules in order"
	}
	return strings.Join(parts, " and ")
}

// surplus is what a holds more of than b.
func surplus(a, b []string) []string {
	rest := slices.Clone(b)
	var more []string
	for _, rule := range a {
		if i := slices.Index(rest, rule); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			more = append(more, rule)
		}
	}
	return more
}

func quoted(rules []string) []string {
	out := make([]string, len(rules))
	for i, rule := range rules {
		out[i] = `"` + rule + `"`
	}
	return out
}

func count(n int) string {
	switch n {
	case 0:
		return "no rules"
	case 1:
		return "1 rule"
	default:
		return fmt.Sprintf("%d rules", n)
	}
}

// target is the chain or the built-in target a rule leads to, by -j or by -g;
// empty when it has none. What stands in quotes is a comment, whatever it says.
func target(rule string) string {
	var words []string
	var word strings.Builder
	inQuotes, escaped := false, false
	for _, r := range rule {
		switch {
		case escaped:
			escaped = false
			word.WriteRune(r)
		case inQuotes && r == '\\':
			escaped = true
		case r == '"':
			inQuotes = !inQuotes
			// Keeps a quoted "-j" from looking like the option.
			word.WriteRune(r)
		case r == ' ' && !inQuotes:
			words = append(words, word.String())
			word.Reset()
		default:
			word.WriteRune(r)
		}
	}
	words = append(words, word.String())
	for i := 0; i+1 < len(words); i++ {
		if words[i] == "-j" || words[i] == "-g" {
			return words[i+1]
		}
	}
	return ""
}
