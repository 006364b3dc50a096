package network

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"flanneld/network/local"
	"flanneld/network/status"
)

// self is what this node tells of itself.
type self struct {
	mu   sync.Mutex
	node status.Node
}

// tell changes it.
func (s *self) tell(change func(n *status.Node)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.node)
}

func (s *self) told() status.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

// serve answers in the group until ctx ends: who watches over this node, if there is
// an address for that, and the commands on this host. That an address is taken is an
// error; without the socket for the commands all else works.
func (n node) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", n.health.serveHealthz)
	mux.HandleFunc("/readyz", n.health.serveReadyz)
	mux.Handle("/metrics", n.metrics.Handler())
	if n.HealthAddr.IsValid() {
		l, err := net.Listen("tcp", n.HealthAddr.String())
		if err != nil {
			return fmt.Errorf("serving /healthz on %v: %w: stop what has the port, or choose another by --healthz-port", n.HealthAddr, err)
		}
		serveOn(ctx, n.group, l, mux, "/healthz on "+n.HealthAddr.String())
	}
	l, err := local.Listen()
	if err != nil {
		klog.Warningf("Going on without a socket for the commands of flanneld: %v", err)
		return nil
	}
	own := http.NewServeMux()
	own.Handle("/", mux)
	// Each of these asks etcd, and anybody on this host may ask for them.
	var turn sync.Mutex
	own.HandleFunc(status.NodePath, func(w http.ResponseWriter, r *http.Request) {
		turn.Lock()
		defer turn.Unlock()
		defer n.trim()
		_ = n.describe(r.Context()).Write(w) // who asked may have gone
	})
	own.HandleFunc(status.LeasesPath, func(w http.ResponseWriter, r *http.Request) {
		turn.Lock()
		defer turn.Unlock()
		defer n.trim()
		all, err := status.ReadNetwork(r.Context(), n.impatient, n.Prefix)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		writeJSON(w, http.StatusOK, all)
	})
	serveOn(ctx, n.group, l, own, "the commands on this host")
	return nil
}

func serveOn(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler, what string) {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	g.Go(func() error {
		if err := srv.Serve(l); ctx.Err() == nil {
			return fmt.Errorf("serving %s: %w", what, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
}

// describe is what there is to be told of this node now.
func (n node) describe(ctx context.Context) status.Node {
	members := status.Ask(ctx, n.impatient) // before the rest, as it may take a while
	is, health := n.self.told(), n.health.report()
	is.Members = members
	is.Daemon = &status.Daemon{
		Version: n.Version, PID: os.Getpid(), Started: n.started,
		Ready: health.Ready, Problems: health.Problems, Notes: health.Notes,
	}
	return is
}
