package lab

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Etcd is a cluster of one etcd with the v2 API, on a host of its own or
// beside other things.
type Etcd struct {
	*Process // the one that runs now, or ran last

	host *Host
	args []string
	data string
}

// etcdTimeout is how long etcd may take to answer. It needs a tenth of a second
// on an idle machine; the rest is for busy ones.
const etcdTimeout = 30 * time.Second

// Etcd starts etcd on the host, on its address and on 127.0.0.1, both with
// port 2379, and returns when it answers. The arguments are added to etcd's
// and win over those the lab gives; plain HTTP on 127.0.0.1:2379 has to stay.
// The program is [Binary]("etcd"), which [BuildEtcd] makes.
func (h *Host) Etcd(args ...string) *Etcd {
	h.lab.Helper()
	e := &Etcd{host: h, args: args, data: filepath.Join(h.Dir, "etcd.data")}
	e.Restart()
	return e
}

// Endpoint is the URL under which other hosts reach etcd.
func (e *Etcd) Endpoint() string { return fmt.Sprintf("http://%v:2379", e.host.addr) }

// Restart starts etcd again with the data it had, after stopping it if it
// runs, and returns when it answers.
func (e *Etcd) Restart() {
	e.host.lab.Helper()
	if e.Process != nil {
		e.Stop()
	}
	const peer = "http://127.0.0.1:2380"
	client := e.Endpoint()
	e.Process = e.host.Start("etcd", append([]string{Binary("etcd"),
		"--enable-v2", "--data-dir", e.data, "--log-level", "warn",
		"--listen-client-urls", client + ",http://127.0.0.1:2379", "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
		// A lone member need not wait long to find that it leads, nor for a
		// disk that is memory anyway.
		"--heartbeat-interval", "10", "--election-timeout", "100", "--unsafe-no-fsync",
	}, e.args...)...)
	client = "http://127.0.0.1:2379/health"
	err := Poll(etcdTimeout, "waiting for etcd", func() error {
		if !e.Running() {
			return nil // seen below; no use in waiting on
		}
		resp, err := e.host.HTTP().Get(client)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s answers %s: %s", client, resp.Status, strings.TrimSpace(string(body)))
		}
		return err
	})
	if err == nil && !e.Running() {
		err = fmt.Errorf("%v ended with status %d", e.Process, e.status)
	}
	if err != nil {
		e.host.lab.Fatalf("starting etcd on %s: %v; its log ends with:\n%s", e.host.Name, err, tail(e.Log(), 20))
	}
}

// Stop ends etcd and keeps its data, which it has written to its log before it
// answered. It does so at once: asked in good order, etcd first waits for the
// long polls of those that watch it, for seconds and at times without end.
func (e *Etcd) Stop() {
	e.host.lab.Helper()
	e.Kill()
}

// Wipe makes etcd lose its data, like an operator who starts over with an empty
// directory. Etcd is stopped by it; Restart starts it anew.
func (e *Etcd) Wipe() {
	e.host.lab.Helper()
	e.Stop()
	if err := os.RemoveAll(e.data); err != nil {
		e.host.lab.Fatalf("wiping etcd: %v", err)
	}
}
