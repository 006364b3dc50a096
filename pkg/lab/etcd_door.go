package lab

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// A Door is the way to etcd for the processes of one host, and can be made to
// misbehave while others reach etcd as always. It passes plain HTTP on.
type Door struct {
	host     *Host
	addr     netip.AddrPort
	server   *http.Server
	requests atomic.Int64
	mode     atomic.Int64

	mu    sync.Mutex
	open  map[net.Conn]bool
	lis   *net.TCPListener // nil while there is none
	serve sync.WaitGroup
}

// A DoorMode is what a Door does with requests.
type DoorMode int

const (
	// DoorPass passes everything on.
	DoorPass DoorMode = iota
	// DoorClosed refuses connections.
	DoorClosed
	// DoorUnavailable answers 503 to everything.
	DoorUnavailable
	// DoorReadOnly answers 500 to what would write, and passes the rest on.
	DoorReadOnly
	// DoorSlow passes everything on after doorDelay.
	DoorSlow
)

const doorDelay = 2 * time.Second

// Door makes a door to etcd on the host, at a port of 127.0.0.1 there, that
// passes everything on. Close it before the lab goes.
func (e *Etcd) Door(h *Host, port uint16) *Door {
	h.lab.Helper()
	d := &Door{host: h, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), open: map[net.Conn]bool{}}
	etcd := netip.AddrPortFrom(e.host.addr, etcdPort)
	target := &url.URL{Scheme: "http", Host: etcd.String()}
	quiet := log.New(io.Discard, "", 0) // of connections that end, which is what a door is for
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		FlushInterval: -1, // the head of the answer to a watch comes long before the rest
		ErrorLog:      quiet,
		Transport: &http.Transport{
			DisableKeepAlives: true, // so that a connection's end is passed on as well
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return h.Dial(ctx, network, etcd)
			},
		},
	}
	d.server = &http.Server{ErrorLog: quiet, ConnState: d.track, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.requests.Add(1)
		switch mode := DoorMode(d.mode.Load()); {
		case mode == DoorUnavailable:
			refuse(w, http.StatusServiceUnavailable)
			return
		case mode == DoorReadOnly && r.Method != http.MethodGet && r.Method != http.MethodHead:
			refuse(w, http.StatusInternalServerError)
			return
		case mode == DoorSlow && pause(r.Context(), doorDelay) != nil:
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	d.listen()
	return d
}

// refuse answers like an etcd that cannot.
func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintln(w, `{"errorCode":300,"message":"Raft Internal Error","cause":"the door","index":0}`)
}

// track knows the connections there are.
func (d *Door) track(c net.Conn, s http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch s {
	case http.StateNew:
		d.open[c] = true
	case http.StateClosed, http.StateHijacked:
		delete(d.open, c)
	}
}

func (d *Door) listen() {
	d.host.lab.Helper()
	lis, err := d.host.Listen(d.addr)
	d.host.lab.Must(err)
	d.mu.Lock()
	d.lis = lis
	d.mu.Unlock()
	d.serve.Go(func() { d.server.Serve(lis) }) // until the listener is closed
}

// Endpoint is the URL under which processes on the host reach the door.
func (d *Door) Endpoint() string { return "http://" + d.addr.String() }

// Requests is how many requests have come to the door so far.
func (d *Door) Requests() int { return int(d.requests.Load()) }

// Set changes the mode, and ends all connections there are.
func (d *Door) Set(mode DoorMode) {
	d.host.lab.Helper()
	d.mode.Store(int64(mode))
	d.mu.Lock()
	if d.lis != nil && mode == DoorClosed {
		d.lis.Close()
		d.lis = nil
	}
	closed := d.lis == nil
	d.mu.Unlock()
	if mode == DoorClosed {
		d.serve.Wait() // whom it has accepted before is known by then
	}
	d.hangUp()
	if closed && mode != DoorClosed {
		d.listen()
	}
}

func (d *Door) hangUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.open {
		c.Close()
	}
}

// Close ends the door and what goes through it.
func (d *Door) Close() {
	d.server.Close()
	d.serve.Wait()
}
