package status

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// few is how many peers are listed one by one without being asked for: a screen.
const few = 20

// How a text is to be shown.
const (
	plain  = ""
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// Text is how to write for a person.
type Text struct {
	// Colour is for a terminal.
	Colour bool
	// All lists all peers, however many there are.
	All bool
}

// cell is a text in a table.
type cell struct{ text, colour string }

func (t Text) paint(c cell) string {
	if !t.Colour || c.colour == plain || c.text == "" {
		return c.text
	}
	return "\x1b[" + c.colour + "m" + c.text + "\x1b[0m"
}

// columns writes rows with their cells below each other.
func (t Text) columns(w io.Writer, indent string, rows [][]cell) {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, c := range row {
			b.WriteString(t.paint(c))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(indent+b.String(), " "))
	}
}

// Write writes a report.
func (t Text) Write(to io.Writer, r Report) error {
	w := &strings.Builder{}
	var rows [][]cell
	row := func(name, text, colour string) { rows = append(rows, []cell{{name, plain}, {text, colour}}) }
	switch d := r.Daemon; {
	case r.hangs:
		row("flanneld", "does not answer", red)
	case d == nil:
		row("flanneld", "does not run", red)
	case !d.Ready:
		row("flanneld", fmt.Sprintf("%s, process %d, not ready yet", d.Version, d.PID), red)
	default:
		row("flanneld", fmt.Sprintf("%s, process %d, up for %s", d.Version, d.PID, span(time.Since(d.Started))), plain)
	}
	switch l := r.Lease; {
	case l == nil:
		row("lease", "none", red)
	case l.Reserved:
		row("lease", fmt.Sprintf("%v, reserved: it does not end", l.Subnet), plain)
	default:
		left := time.Duration(*l.RemainingSeconds * float64(time.Second))
		row("lease", fmt.Sprintf("%v, ends in %s unless renewed", l.Subnet, span(left)), plain)
	}
	if r.Interface.Name != "" {
		row("interface", fmt.Sprintf("%s, %v, MTU %d", r.Interface.Name, r.Interface.Addr, r.Interface.MTU), plain)
	}
	if r.PublicIP.IsValid() && r.PublicIP != r.Interface.Addr {
		row("public IP", r.PublicIP.String(), plain)
	}
	if c := r.Config; c != nil {
		row("config", fmt.Sprintf("Network %v, SubnetLen %d, SubnetMin %v, SubnetMax %v", c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax), plain)
	}
	backend := r.Backend
	if d := r.Device; d != nil {
		backend = fmt.Sprintf("%s, device %s, %v, MTU %d", backend, d.Name, d.Addr, d.MTU)
	}
	if backend != "" {
		row("backend", backend, plain)
	}
	for i, m := range r.Etcd.Members {
		name := ""
		if i == 0 {
			name = "etcd"
		}
		switch {
		case !m.Answers:
			row(name, fmt.Sprintf("%s: %s", m.Endpoint, m.Error), yellow)
		case m.InUse:
			row(name, fmt.Sprintf("%s answers in %s, in use", m.Endpoint, millis(m.Seconds)), plain)
		default:
			row(name, fmt.Sprintf("%s answers in %s", m.Endpoint, millis(m.Seconds)), plain)
		}
	}
	t.columns(w, "", rows)
	t.peers(w, r)
	t.lines(w, "note", yellow, r.Notes)
	t.lines(w, "problem", red, r.Problems)
	if r.Well {
		fmt.Fprintln(w, t.paint(cell{"all is well", green}))
	}
	_, err := io.WriteString(to, w.String())
	return err
}

// lines writes texts of one kind, a line each, and of many some.
func (t Text) lines(w io.Writer, kind, colour string, texts []string) {
	for i, text := range texts {
		if left := len(texts) - i; i == few && left > 1 && !t.All {
			text = fmt.Sprintf("there are %d more (--all lists them all)", left)
			fmt.Fprintln(w, t.paint(cell{kind + ": " + text, colour}))
			return
		}
		fmt.Fprintln(w, t.paint(cell{kind + ": " + printable(text), colour}))
	}
}

// printable makes a text visible in which there is what a terminal would obey.
func printable(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// peers writes how the peers are: how many, then all of a few, and of many some
// that something is wrong with.
func (t Text) peers(w io.Writer, r Report) {
	fmt.Fprintln(w)
	if r.Lease == nil {
		return
	}
	rows := [][]cell{{{"SUBNET", bold}, {"PUBLIC IP", bold}, {"REACHED", bold}, {"ROUTE", bold}, {"NEIGHBOUR", bold}, {"FDB", bold}, {"ANSWERS", bold}}}
	var why []string
	left, leftWrong := 0, 0 // out, as there are too many
	for _, p := range r.Peers {
		trouble := p.troubles()
		switch {
		case t.All || len(r.Peers) <= few:
		case len(trouble) == 0:
			left++
			continue
		case len(rows) > few:
			left++
			leftWrong++
			continue
		}
		rows = append(rows, []cell{{p.Subnet.String(), plain}, {p.PublicIP.String(), plain}, reached(p), entry(p.Route), entry(p.Neighbour), entry(p.FDB), answers(p)})
		for _, text := range trouble {
			why = append(why, fmt.Sprintf("%v (%v): %s", p.Subnet, p.PublicIP, text))
		}
	}
	summary := fmt.Sprintf("%s: %d right, %d wrong", count(r.Summary.Peers, "peer"), r.Summary.Peers-r.Summary.Wrong, r.Summary.Wrong)
	switch silent := r.Summary.Silent; {
	case silent == nil:
	case *silent > 0:
		summary += fmt.Sprintf(", %d silent", *silent)
	case r.Summary.Peers > 0 && !slices.ContainsFunc(r.Peers, func(p Peer) bool { return p.Probe == nil }):
		summary += ", all answer"
	}
	if left > 0 {
		summary += " (--all lists them all)"
	}
	fmt.Fprintln(w, summary)
	if len(rows) > 1 {
		t.columns(w, "", rows)
	}
	fmt.Fprintln(w)
	if leftWrong > 0 {
		why = append(why, fmt.Sprintf("there is trouble with %s that are not listed", count(leftWrong, "more peer")))
	}
	t.lines(w, "problem", red, why)
}

// troubles are a peer's problems, that it does not answer among them.
func (p *Peer) troubles() []string {
	if p.Probe == nil || p.Probe.Answers {
		return p.Problems
	}
	return append(slices.Clone(p.Problems), fmt.Sprintf("asking %v: %s", p.Probe.Addr, p.Probe.Error))
}

func reached(p Peer) cell {
	if p.Reached == "" {
		return cell{"not", red}
	}
	return cell{p.Reached, plain}
}

func entry(how string) cell {
	if how == right || how == none {
		return cell{how, plain}
	}
	return cell{how, red}
}

func answers(p Peer) cell {
	switch {
	case p.Probe == nil:
		return cell{none, plain}
	case !p.Probe.Answers:
		return cell{"no", red}
	}
	return cell{millis(p.Probe.Seconds), plain}
}

// span is a duration of which the larger parts matter.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

func millis(seconds float64) string {
	return strconv.FormatFloat(seconds*1000, 'f', 2, 64) + " ms"
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
