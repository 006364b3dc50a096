package network

import (
	"context"
	"fmt"
	"io"
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
}

func newHealth() *health { return &health{problems: map[string][]string{}} }

// set replaces what is known to be wrong with a part.
func (h *health) set(part string, problems []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.problems, part)
	for _, err := range problems {
		h.problems[part] = append(h.problems[part], part+": "+err.Error())
	}
}

func (h *health) ready() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isReady = true
}

// reasons lists what is wrong, nothing when all is well.
func (h *health) reasons() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.isReady {
		return []string{"not ready yet"}
	}
	var all []string
	for _, p := range h.problems {
		all = append(all, p...)
	}
	slices.Sort(all)
	return all
}

// serve answers /healthz in the group until ctx ends.
func (h *health) serve(ctx context.Context, g *errgroup.Group, addr netip.AddrPort) error {
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return fmt.Errorf("serving /healthz on %v: %w", addr, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		reasons := h.reasons()
		if len(reasons) == 0 {
			io.WriteString(w, "ok\n")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, r := range reasons {
			fmt.Fprintln(w, r)
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
