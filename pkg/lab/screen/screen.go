// Package screen is where programs that drive a lab print what people read:
// headings, commands with their output, tables, and what machine it was.
package screen

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// width is the number of columns that the output keeps to.
const width = 100

// Screen is a terminal, a file or a pipe.
type Screen struct {
	w    io.Writer
	bold func(string) string
}

// New is the Screen that prints to f, in bold here and there if f is a terminal.
func New(f *os.File) Screen {
	plain := func(s string) string { return s }
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil || os.Getenv("TERM") == "dumb" || os.Getenv("NO_COLOR") != "" {
		return Screen{f, plain} // not a terminal, or one whose user wants none of it
	}
	return Screen{f, func(s string) string { return "\x1b[1m" + s + "\x1b[0m" }}
}

// Say prints a line.
func (s Screen) Say(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

// Heading begins something new.
func (s Screen) Heading(format string, args ...any) {
	text := "--- " + fmt.Sprintf(format, args...) + " "
	s.Say("\n%s", s.bold(text+strings.Repeat("-", max(0, width-len(text)))))
}

// Typed shows a command as typed on a host, and what it printed. A newline in
// the command is where its line is continued.
func (s Screen) Typed(host, command, output string) {
	prompt := host + "# "
	line := prompt + strings.ReplaceAll(command, "\n", " \\\n"+strings.Repeat(" ", len(prompt)+2))
	s.Say("%s", s.bold(line))
	if output != "" {
		s.Say("%s", output)
	}
}

// Columns prints lines of cells one below the other, the first line in bold.
func (s Screen) Columns(lines [][]string) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, cells := range lines {
		fmt.Fprintln(w, "  "+strings.Join(cells, "\t"))
	}
	w.Flush() // to memory, which does not fail
	header, rest, _ := strings.Cut(strings.TrimRight(b.String(), "\n"), "\n")
	s.Say("%s\n%s", s.bold(header), rest)
}
