package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Etcd is an etcd with the v2 API, on a host of its own or beside other things:
// a cluster of one, or a member of one that [StartEtcd] made.
type Etcd struct {
	*Process // the one that runs now, or ran last

	host    *Host
	args    []string
	data    string
	members string    // as --initial-cluster wants them; empty for a cluster of one
	tls     bool      // other hosts come in by TLS
	peerTLS bool      // members do among themselves
	auth    [2]string // name and password to come in with; no name for none
	mended  func()    // undoes Isolate and Partition
}

const (
	etcdPort     = 2379
	etcdPeerPort = 2380
	// etcdTimeout is how long etcd may take to answer. It needs a tenth of a second
	// on an idle machine; the rest is for busy ones.
	etcdTimeout = 30 * time.Second
	// etcdLocal is where processes on etcd's own host reach it, with TLS or without.
	etcdLocal = "http://127.0.0.1:2379"
)

// Etcd starts etcd on the host, on its address and on 127.0.0.1, both with
// port 2379, and returns when it answers. The arguments are added to etcd's
// and win over those the lab gives; plain HTTP on 127.0.0.1:2379 has to stay.
// The program is [Binary]("etcd"), which [BuildEtcd] makes.
func (h *Host) Etcd(args ...string) *Etcd {
	h.lab.Helper()
	e := h.newEtcd(args...)
	e.Restart()
	return e
}

func (h *Host) newEtcd(args ...string) *Etcd {
	return &Etcd{host: h, args: args, data: filepath.Join(h.Dir, "etcd.data")}
}

// Host is where etcd runs.
func (e *Etcd) Host() *Host { return e.host }

// Endpoint is the URL under which other hosts reach etcd.
func (e *Etcd) Endpoint() string {
	scheme := "http"
	if e.tls {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%v:%d", scheme, e.host.addr, etcdPort)
}

// Local is the URL under which etcd's own host reaches it. That way works too
// while others are cut off, and never wants a certificate.
func (e *Etcd) Local() string { return etcdLocal }

// Restart starts etcd again with the data it had, after stopping it if it
// runs, and returns when it answers.
func (e *Etcd) Restart() {
	e.host.lab.Helper()
	e.Start()
	e.Await()
}

// Start is [Etcd.Restart] without waiting for an answer, which a member does not
// give before there is a majority.
func (e *Etcd) Start() {
	e.host.lab.Helper()
	if e.Process != nil {
		e.Stop()
	}
	client := e.Endpoint()
	args := []string{Binary("etcd"),
		"--enable-v2", "--data-dir", e.data, "--log-level", "warn",
		"--listen-client-urls", client + "," + etcdLocal, "--advertise-client-urls", client,
		// There is no need to wait for a disk that is memory anyway.
		"--unsafe-no-fsync",
	}
	if e.members == "" {
		const peer = "http://127.0.0.1:2380"
		args = append(args, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer,
			// A lone member need not wait long to find that it leads.
			"--heartbeat-interval", "10", "--election-timeout", "100")
	} else {
		args = append(args, "--name", e.host.Name, "--listen-peer-urls", e.peerURL(), "--initial-advertise-peer-urls", e.peerURL(), "--initial-cluster", e.members,
			// A busy machine may keep a member from its turn for a tenth of a second.
			"--heartbeat-interval", "50", "--election-timeout", "500")
	}
	e.Process = e.host.Start("etcd", append(args, e.args...)...)
}

func (e *Etcd) peerURL() string {
	scheme := "http"
	if e.peerTLS {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%v:%d", scheme, e.host.addr, etcdPeerPort)
}

// Await waits until etcd answers, and as a member of several knows its leader.
func (e *Etcd) Await() {
	e.host.lab.Helper()
	err := Poll(etcdTimeout, "waiting for etcd", func() error {
		if !e.Running() {
			return nil // seen below; no use in waiting on
		}
		_, err := e.Ask(http.MethodGet, "/health", nil)
		return err
	})
	if err == nil && !e.Running() {
		err = fmt.Errorf("%v ended with status %d", e.Process, e.status)
	}
	if err != nil {
		e.host.lab.Fatalf("starting etcd on %s: %v; its log ends with:\n%s", e.host.Name, err, tail(e.Log(), 20))
	}
}

// Ask makes a request from etcd's own host and returns the body of the answer,
// which is an error if its status is. What is sent, if not nil, is sent as JSON.
func (e *Etcd) Ask(method, path string, send any) (body []byte, err error) {
	target := etcdLocal + path
	text := []byte{}
	if send != nil {
		if text, err = json.Marshal(send); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequest(method, target, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	e.Authorize(req)
	resp, err := e.host.HTTP().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s answers %s: %s", method, target, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
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
