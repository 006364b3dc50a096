package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// width is the number of columns that the output keeps to.
const width = 100

// screen is where the demo prints.
type screen struct {
	w    io.Writer
	bold func(string) string
}

func newScreen(f *os.File) screen {
	plain := func(s string) string { return s }
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil || os.Getenv("TERM") == "dumb" || os.Getenv("NO_COLOR") != "" {
		return screen{f, plain} // not a terminal, or one whose user wants none of it
	}
	return screen{f, func(s string) string { return "\x1b[1m" + s + "\x1b[0m" }}
}

func (s screen) say(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

func (s screen) heading(format string, args ...any) {
	text := "--- " + fmt.Sprintf(format, args...) + " "
	s.say("\n%s", s.bold(text+strings.Repeat("-", max(0, width-len(text)))))
}

// typed shows a command as typed on a host, and what it printed. A newline in
// the command is where its line is continued.
func (s screen) typed(host, command, output string) {
	prompt := host + "# "
	line := prompt + strings.ReplaceAll(command, "\n", " \\\n"+strings.Repeat(" ", len(prompt)+2))
	s.say("%s", s.bold(line))
	if output != "" {
		s.say("%s", output)
	}
}

// columns prints lines of cells one below the other, the first line in bold.
func (s screen) columns(lines [][]string) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, cells := range lines {
		fmt.Fprintln(w, "  "+strings.Join(cells, "\t"))
	}
	w.Flush() // to memory, which does not fail
	header, rest, _ := strings.Cut(strings.TrimRight(b.String(), "\n"), "\n")
	s.say("%s\n%s", s.bold(header), rest)
}

// row is a line of the table: what containers get, beside what their hosts get
// without flanneld.
type row struct {
	backend       string
	reason        string // why there is nothing else
	hosts         string
	mtu           int
	through, bare reading
}

func (s screen) table(rows []row) {
	lines := [][]string{{"backend", "hosts", "MTU", "ping ms", "(bare)", "Gbit/s", "(bare)", "of bare wire"}}
	gbits := func(f float64) string { return fmt.Sprintf("%.2f", f) }
	for _, r := range rows {
		if r.reason != "" {
			lines = append(lines, []string{r.backend, r.reason})
			continue
		}
		lines = append(lines, []string{
			r.backend, r.hosts, strconv.Itoa(r.mtu), ms(r.through.ping), "(" + ms(r.bare.ping) + ")",
			gbits(r.through.gbits), "(" + gbits(r.bare.gbits) + ")", gbits(r.through.gbits / r.bare.gbits),
		})
	}
	s.columns(lines)
}

// machine says what the figures were measured on, and what they are worth.
func machine() string {
	var u unix.Utsname
	release := "of an unknown release"
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf(`From container to container on different hosts, and (bare) from host to host without flanneld.
Measured on Linux %s, %s, %d cores.
All hosts with their daemons, etcd, senders and receivers share this one machine, and its virtual
wires pass packets of up to 64 KB whole, as no network card does: compare the figures with each
other, not with those of real machines. The router alone cuts VXLAN packets to the MTU, which plain
ones are spared, and so is slow with them.`, release, runtime.GOARCH, runtime.NumCPU())
}
