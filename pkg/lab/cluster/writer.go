package cluster

import (
	"net/http"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Writer changes leases in etcd quickly, over connections that it keeps open:
// for networks of thousands of hosts, most of which are leases only.
type Writer struct {
	cluster     *Cluster
	client      *http.Client
	connections int
}

// Writer makes one with so many connections; it lasts as long as the lab.
func (c *Cluster) Writer(connections int) *Writer {
	client := c.Etcd.Host().HTTP()
	t := client.Transport.(*http.Transport)
	t.DisableKeepAlives, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = false, connections, connections
	return &Writer{c, client, connections}
}

// Write writes leases, those without a value by removing their keys, on all
// connections at once. It returns when etcd has answered every request.
func (w *Writer) Write(leases ...Lease) {
	w.cluster.Helper()
	var next atomic.Int64
	var g errgroup.Group
	for range min(len(leases), w.connections) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(leases) {
					return nil
				}
				if err := w.write(leases[i]); err != nil {
					return err
				}
			}
		})
	}
	w.cluster.Must(g.Wait())
}

func (w *Writer) write(l Lease) error {
	method, form := http.MethodPut, leaseForm(l.Value, l.TTL)
	if l.Value == "" {
		method, form = http.MethodDelete, nil
	}
	_, err := w.cluster.ask(w.client, method, "subnets/"+l.Key, form)
	return err
}
