package network

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// health knows whether this host's network works.
type health struct {
	mu       sync.Mutex
	isReady  bool
	problems map[string][]string // by part of the node
	notes    map[string]string   // by part
	checks   []func() error
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

func (h *health) ready() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isReady = true
}

// report says whether all is well, and lists what is wrong or to be known.
func (h *health) report() (well bool, lines []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.isReady {
		return false, []string{"not ready yet"}
	}
	for _, p := range h.problems {
		lines = append(lines, p...)
	}
	for _, f := range h.checks {
		if err := f(); err != nil {
			lines = append(lines, err.Error())
		}
	}
	slices.Sort(lines)
	well = len(lines) == 0
	if well {
		lines = []string{"ok"}
	}
	return well, append(lines, slices.Sorted(maps.Values(h.notes))...)
}

// serve answers /healthz in the group until ctx ends.
func (h *health) serve(ctx context.Context, g *errgroup.Group, addr netip.AddrPort) error {
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return fmt.Errorf("serving /healthz on %v: %w", addr, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		well, lines := h.report()
		if !well {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		for _, l := range lines {
			fmt.Fprintln(w, l)
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := srv.Serve(l); ctx.Err() == nil {
			return fmt.Errorf("serving /healthz on %v: %w", addr, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	return nil
}
