package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// Clients that ask for something and never finish asking are got rid of, and take
// no more of the node's files than there is room for.
func TestHalfOpenClients(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	serveOn(ctx, g, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "ok")
	}), "the test")
	for i := range clients {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, []string{"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", "GET / HTT"}[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	c := http.Client{Timeout: 4 * reading}
	resp, err := c.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatalf("nobody else is answered: %v", err)
	}
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "ok" {
		t.Errorf("%s, %v", text, err)
	}
	resp.Body.Close()
	began := time.Now()
	stop()
	if err := g.Wait(); err != nil || time.Since(began) > reading {
		t.Errorf("it ends with %v after %v", err, time.Since(began))
	}
}
