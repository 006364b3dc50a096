package iptables

import (
	"fmt"
	"maps"
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
		case "-P", "-N", "-A":
			if !l.has(name) {
				l.names = append(l.names, name)
				l.rules[name] = nil
			}
			if op == "-A" {
				l.rules[name] = append(l.rules[name], rule)
			}
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

// plan works out what makes table, as it is now, what chains ask for, without
// the leftovers: the input for iptables-restore --noflush, and the same in words.
// Both are empty when nothing is wrong.
func plan(table string, have listing, chains []Chain, leftovers []Leftover) (script string, changes []string, err error) {
	var (
		declared []string // chains that are made or emptied
		filled   []string // their rules
		gone     = make(strokes)
		places   []place
		added    []string // jumps that come first or last
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
				filled = append(filled, "-A "+c.Name+" "+rule)
			}
			if !have.has(c.Name) {
				say("made chain %s with %s", c.Name, count(len(c.Rules)))
			} else {
				say("chain %s: %s", c.Name, difference(now, c.Rules))
			}
		}
	}

	// What is left over goes before the jumps are looked at, since they may take
	// its place.
	var takenOut []string
	for _, l := range leftovers {
		rules := have.rules[l.Chain]
		var found []string
		for _, i := range l.Find(rules) {
			if gone.add(l.Chain, i) {
				found = append(found, rules[i])
			}
		}
		if len(found) > 0 {
			takenOut = append(takenOut, fmt.Sprintf("took out of %s what an older daemon left: %s", l.Chain, strings.Join(counted(found), ", ")))
		}
	}
	oldest := gone.first()

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
		rules := have.rules[c.Parent]
		var jumps []int
		plain := -1 // the jump to be kept, if it is in its place
		for i, rule := range rules {
			if target(rule) == c.Name {
				jumps = append(jumps, i)
				if rule == jump {
					plain = i
				}
			}
		}
		before, replaces := oldest[c.Parent]
		replaces = replaces && !c.First
		if len(jumps) == 1 && plain >= 0 {
			if c.First && gone.ahead(c.Parent, plain) == 0 || !c.First && (!replaces || plain < before) {
				continue
			}
		}
		// All out and the one in: within the transaction nobody sees it gone.
		// Without First one that is in its place stays there, as the last:
		// deleting takes the first of those that are alike.
		for _, i := range jumps {
			if i != plain || c.First || replaces {
				gone.add(c.Parent, i)
			}
		}
		switch {
		case c.First:
			added = append(added, "-I "+c.Parent+" 1 "+jump)
		case replaces:
			if i := slices.Index(rules, jump); i >= 0 {
				before = min(before, i)
			}
			places = append(places, place{c.Parent, before, jump})
		case plain < 0:
			added = append(added, "-A "+c.Parent+" "+jump)
		}
		switch {
		case len(jumps) == 0:
			say("added the jump from %s to %s", c.Parent, c.Name)
		case len(jumps) == 1 && c.First && plain >= 0:
			say("made the jump from %s to %s the first rule", c.Parent, c.Name)
		case len(jumps) == 1 && plain >= 0:
			say("moved the jump from %s to %s up to where an older daemon left rules", c.Parent, c.Name)
		case len(jumps) == 1:
			say("replaced %q in %s by the jump to %s", rules[jumps[0]], c.Parent, c.Name)
		default:
			say("left one of %d jumps from %s to %s", len(jumps), c.Parent, c.Name)
		}
	}
	for _, text := range takenOut {
		say("%s", text)
	}

	var emptied, removed []string
	for _, c := range chains {
		if !c.Absent || !have.has(c.Name) {
			continue
		}
		emptied = append(emptied, "-F "+c.Name)
		for _, from := range have.names {
			// Chains emptied in this transaction hold no jump any more.
			if slices.Contains(declared, from) ||
				slices.ContainsFunc(chains, func(o Chain) bool { return o.Absent && o.Name == from }) {
				continue
			}
			for i, rule := range have.rules[from] {
				if target(rule) == c.Name {
					gone.add(from, i)
				}
			}
		}
		// Last, when all of them are empty, so that they may have jumped to each other.
		removed = append(removed, "-X "+c.Name)
		say("took out chain %s and the jumps to it", c.Name)
	}

	if len(changes) == 0 {
		return "", nil, nil
	}
	lines := slices.Concat(filled, emptied, gone.lines(have))
	// From the end, so that one does not shift the others.
	slices.SortStableFunc(places, func(a, b place) int { return b.before - a.before })
	for _, p := range places {
		lines = append(lines, fmt.Sprintf("-I %s %d %s", p.chain, gone.ahead(p.chain, p.before)+1, p.jump))
	}
	lines = slices.Concat(lines, added, removed)
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

// place is where a jump comes in: in front of the rule that had this index.
type place struct {
	chain  string
	before int
	jump   string
}

// strokes are the rules to be deleted, by chain and index.
type strokes map[string]map[int]bool

// add reports whether the rule was not among them yet.
func (s strokes) add(chain string, i int) bool {
	if s[chain] == nil {
		s[chain] = make(map[int]bool)
	}
	was := s[chain][i]
	s[chain][i] = true
	return !was
}

// ahead is how many rules in front of the index stay.
func (s strokes) ahead(chain string, index int) int {
	n := 0
	for i := range index {
		if !s[chain][i] {
			n++
		}
	}
	return n
}

// first is the lowest index in each chain that has any.
func (s strokes) first() map[string]int {
	all := make(map[string]int)
	for chain, struck := range s {
		if len(struck) > 0 {
			all[chain] = slices.Min(slices.Collect(maps.Keys(struck)))
		}
	}
	return all
}

// lines delete the rules. A rule is named by its text, of which iptables deletes
// the first that is alike, so that no change by others in the meantime makes us
// hit another rule. Only where one that is alike and stays is in front of it does
// it take the number; such go first and from the end, while the numbers hold.
func (s strokes) lines(have listing) []string {
	var lines []string
	for _, chain := range have.names {
		if len(s[chain]) == 0 {
			continue
		}
		rules := have.rules[chain]
		stays := make(map[string]bool) // texts met in front that stay
		var byNumber, byText []string
		for i, rule := range rules {
			switch {
			case !s[chain][i]:
				stays[rule] = true
			case stays[rule]:
				byNumber = append(byNumber, fmt.Sprintf("-D %s %d", chain, i+1))
			default:
				byText = append(byText, "-D "+chain+" "+rule)
			}
		}
		slices.Reverse(byNumber)
		lines = slices.Concat(lines, byNumber, byText)
	}
	return lines
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

// counted is quoted, each once, with how often it is there.
func counted(rules []string) []string {
	times := make(map[string]int)
	var all []string
	for _, rule := range rules {
		if times[rule]++; times[rule] == 1 {
			all = append(all, rule)
		}
	}
	out := quoted(all)
	for i, rule := range all {
		if n := times[rule]; n > 1 {
			out[i] += fmt.Sprintf(" (%d times)", n)
		}
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
