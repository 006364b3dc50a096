package main

import (
	"fmt"
	"time"
)

// row is a line of the table. What is empty has nothing to say there.
type row struct {
	what      string
	measured  string
	reference string // measured in the same run
	ratio     string // of the two, within one round
	bound     string
	verdict   string
}

func (b *bench) table() {
	cell := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	lines := [][]string{{"what", "measured", "reference", "ratio", "bound", ""}}
	for _, r := range b.rows {
		lines = append(lines, []string{r.what, cell(r.measured), cell(r.reference), cell(r.ratio), cell(r.bound), r.verdict})
	}
	b.Columns(lines)
}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

// verdict says whether a figure keeps its bound.
func verdict(keeps bool) string {
	if keeps {
		return "ok"
	}
	return "over"
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func times(ratio float64) string { return fmt.Sprintf("%.2f x", ratio) }

func percent(p float64) string { return fmt.Sprintf("%.2f %%", p) }
