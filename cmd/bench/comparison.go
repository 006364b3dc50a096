package main

import "fmt"

// comparison is a line of the table of traffic: what each carrier does, in the
// same rounds.
type comparison struct {
	what    string
	format  func(float64) string
	figures map[string][]float64 // by carrier, one a round; what has none has nothing to say there
	bound   bound                // of udp by vxlan
}

func (b *bench) compare(c comparison) { b.comparisons = append(b.comparisons, c) }

// bound is a limit of a ratio, and what is aimed at beyond it. None is the zero
// value.
type bound struct {
	limit, aim float64
	most       bool // the limit is above, not below
}

func atLeast(limit, aim float64) bound { return bound{limit, aim, false} }
func atMost(limit, aim float64) bound  { return bound{limit, aim, true} }

func (b bound) String() string {
	sign := ">="
	if b.most {
		sign = "<="
	}
	return fmt.Sprintf("%s %s (aim %.1f)", sign, times(b.limit), b.aim)
}

func (b bound) verdict(ratio float64) string {
	if !b.most && ratio < b.limit {
		return "under"
	}
	return verdict(!b.most || ratio <= b.limit)
}

// ratio is the median of the rounds' ratios of udp and vxlan.
func (c comparison) ratio() float64 {
	var ratios []float64
	for i, f := range c.figures[udp] {
		ratios = append(ratios, f/c.figures[vxlan.name][i])
	}
	return median(ratios)
}

// cells are the line as it is printed.
func (c comparison) cells() []string {
	line := []string{c.what}
	for _, carrier := range carriers {
		cell := "-"
		if all := c.figures[carrier]; len(all) > 0 {
			cell = c.format(median(all))
		}
		line = append(line, cell)
	}
	if c.bound == (bound{}) {
		return append(line, "-", "-", "")
	}
	return append(line, times(c.ratio()), c.bound.String(), c.bound.verdict(c.ratio()))
}

func (b *bench) trafficTable() {
	header := append([]string{"what"}, carriers...)
	lines := [][]string{append(header, udp+" / "+vxlan.name, "bound", "")}
	for _, c := range b.comparisons {
		lines = append(lines, c.cells())
	}
	b.Columns(lines)
}

// decimals formats figures with so many digits after the point.
func decimals(n int) func(float64) string {
	return func(f float64) string { return fmt.Sprintf("%.*f", n, f) }
}
