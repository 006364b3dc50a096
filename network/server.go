package network

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	"k8s.io/klog/v2"

	"flanneld/network/local"
	"flanneld/network/status"
)

const (
	// clients is how many may be connected at once, to each of the two places where
	// this node answers, so that none of them takes the files that it needs itself.
	clients = 64
	// reading is how long a client may take for its question, writing for the answer,
	// and idling how long one may stay that asks no more.
	reading, writing, idling = 5 * time.Second, 30 * time.Second, time.Minute
	// listenAgain is how often the commands' socket is tried for that another process
	// had at the start.
	listenAgain = 10 * time.Second
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
	own := http.NewServeMux()
	own.Handle("/", mux)
	n.tellCommands(ctx, own)
	l, err := local.Listen()
	if err == nil {
		serveOn(ctx, n.group, l, own, "the commands on this host")
		return nil
	}
	klog.Warningf("Going on without a socket for the commands of flanneld, which is tried for again: %v", err)
	n.group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(listenAgain):
			}
			if l, err := local.Listen(); err == nil {
				klog.Info("Got the socket for the commands of flanneld")
				serveOn(ctx, n.group, l, own, "the commands on this host")
				return nil
			}
		}
	})
	return nil
}

// tellCommands answers what the commands on this host ask. For each question etcd is
// asked, and anybody on this host may ask; so those who ask at the same time get one
// answer, and nobody waits for how fast another reads it.
func (n node) tellCommands(ctx context.Context, mux *http.ServeMux) {
	var asking singleflight.Group
	answer := func(path string, find func() (any, error), write func(w http.ResponseWriter, found any)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case found := <-asking.DoChan(path, find):
				if found.Err != nil {
					http.Error(w, found.Err.Error(), http.StatusBadGateway)
					return
				}
				write(w, found.Val)
				n.trim()
			}
		})
	}
	answer(status.NodePath,
		func() (any, error) { return n.describe(ctx), nil },
		func(w http.ResponseWriter, found any) { _ = found.(status.Node).Write(w) }) // who asked may have gone
	answer(status.LeasesPath,
		func() (any, error) { return status.ReadNetwork(ctx, n.impatient, n.Prefix) },
		func(w http.ResponseWriter, found any) { writeJSON(w, http.StatusOK, found) })
}

func serveOn(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler, what string) {
	srv := &http.Server{
		Handler: h, ReadTimeout: reading, WriteTimeout: writing, IdleTimeout: idling,
		ErrorLog: log.New(serverLog{}, "", 0),
	}
	g.Go(func() error {
		if err := srv.Serve(netutil.LimitListener(l, clients)); ctx.Err() == nil {
			return fmt.Errorf("serving %s: %w", what, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
}

// serverLog takes what an HTTP server has to say, mostly of its clients, of whom
// there may be many.
type serverLog struct{}

func (serverLog) Write(text []byte) (int, error) {
	klog.V(1).Infof("Serving: %s", bytes.TrimSpace(text))
	return len(text), nil
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
