package network

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// health knows whether this host's network works.
type health struct {
	mu       sync.Mutex
	isReady  bool
	waiting  string              // for what, until it is ready
	problems map[string][]string // by part of the node
	notes    map[string]string   // by part
	checks   []func() error
	remarks  []func() string
}

func newHealth() *health { return &health{problems: map[string][]string{}, notes: map[string]string{}} }

// set replaces what is known to be wrong with a part.
func (h *health) set(part string, problems []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.problems, part)
	for _, err := range problems {
		h.problems[part] = append(h.problems[part], part+": "+err.Error())
	}
}

// note replaces what is to be known of a part that works.
func (h *health) note(part, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.notes, part)
	if text != "" {
		h.notes[part] = part + ": " + text
	}
}

// check adds something that is found out each time somebody asks.
func (h *health) check(f func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, f)
}

// remark adds a note that is found out each time somebody asks, empty for none.
func (h *health) remark(f func() string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remarks = append(h.remarks, f)
}

// wait says what the node waits for before it is ready.
func (h *health) wait(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting = what
}

func (h *health) ready() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isReady = true
}

// state is what is known at one moment, as /healthz says it in JSON.
type state struct {
	Healthy bool `json:"healthy"`
	// Ready says that the service manager was told so.
	Ready    bool     `json:"ready"`
	Problems []string `json:"problems"`
	Notes    []string `json:"notes"`
}

// report says whether all is well, and lists what is wrong or to be known.
func (h *health) report() state {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := state{Ready: h.isReady, Problems: []string{}, Notes: slices.AppendSeq([]string{}, maps.Values(h.notes))}
	if !h.isReady {
		s.Problems = append(s.Problems, h.notReady())
	} else {
		for _, p := range h.problems {
			s.Problems = append(s.Problems, p...)
		}
		for _, f := range h.checks {
			if err := f(); err != nil {
				s.Problems = append(s.Problems, err.Error())
			}
		}
	}
	for _, f := range h.remarks {
		if text := f(); text != "" {
			s.Notes = append(s.Notes, text)
		}
	}
	slices.Sort(s.Problems)
	slices.Sort(s.Notes)
	s.Healthy = len(s.Problems) == 0
	return s
}

func (h *health) notReady() string {
	if h.waiting == "" {
		return "not ready yet"
	}
	return "not ready yet: waiting for " + h.waiting
}

// serveHealthz answers whether this host's network works.
func (h *health) serveHealthz(w http.ResponseWriter, r *http.Request) {
	s := h.report()
	status := http.StatusOK
	if !s.Healthy {
		status = http.StatusServiceUnavailable
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		writeJSON(w, status, s)
		return
	}
	w.WriteHeader(status)
	if s.Healthy {
		fmt.Fprintln(w, "ok")
	}
	for _, lines := range [][]string{s.Problems, s.Notes} {
		for i, line := range lines {
			if i == mostLines {
				fmt.Fprintf(w, "and %d more\n", len(lines)-i)
				break
			}
			fmt.Fprintln(w, line)
		}
	}
}

// mostLines is how many problems, and how many notes, /healthz lists as text: one
// cause may have thousands. In JSON it lists them all.
const mostLines = 50

// serveReadyz answers whether the service manager was told that this node is ready.
func (h *health) serveReadyz(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.isReady {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, h.notReady())
		return
	}
	fmt.Fprintln(w, "ok")
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who asked may have gone
}
