package check

import (
	"fmt"
	"io"
	"strings"
)

// Table writes the findings for a person, one a line, and a line that sums them up.
func Table(w io.Writer, all []Finding, colour bool) error {
	widest := 0
	for _, f := range all {
		widest = max(widest, len(f.Name))
	}
	var b strings.Builder
	for _, f := range all {
		level := fmt.Sprintf("%-7s", f.Level)
		if paint := colours[f.Level]; colour && paint != "" {
			level = paint + level + "\x1b[0m"
		}
		text := f.Text
		if f.Hint != "" {
			text += "; to do: " + f.Hint
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", level, widest, f.Name, text)
	}
	fmt.Fprintf(&b, "\n%s\n", summary(count(all, Failure), count(all, Warning)))
	_, err := io.WriteString(w, b.String())
	return err
}

// colours are ECMA-48's: green, yellow, red, and none for what was not looked at.
var colours = map[Level]string{OK: "\x1b[32m", Warning: "\x1b[33m", Failure: "\x1b[31m"}

func summary(failures, warnings int) string {
	number := func(n int, of string) string {
		if n == 1 {
			return "1 " + of
		}
		return fmt.Sprintf("%d %ss", n, of)
	}
	switch {
	case failures > 0:
		return fmt.Sprintf("%s, %s: flanneld would not work here as asked.", number(failures, "failure"), number(warnings, "warning"))
	case warnings > 0:
		return fmt.Sprintf("No failure, %s: flanneld would work here.", number(warnings, "warning"))
	}
	return "All is well: flanneld would work here."
}

// Report is all findings, for a script.
type Report struct {
	// Fit is what the exit status says too.
	Fit      bool      `json:"fit"`
	Findings []Finding `json:"findings"`
}
