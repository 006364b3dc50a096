package etcdv2_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/subnet"
	"flanneld/subnet/etcdv2"
)

// fake is an etcd whose answers are made up.
func fake(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Etcd-Index", "7")
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections) // which comes first
	return s
}

const oneLease = `{"action":"get","node":{"key":"/net/subnets","dir":true,"nodes":[
	{"key":"/net/subnets/10.1.5.0-24","value":"a","modifiedIndex":5,"expiration":"%s","ttl":3600}]}}`

// How long a lease lasts is counted from when etcd was asked, by a clock that
// nobody sets, whatever etcd's own clock says.
func TestClocks(t *testing.T) {
	for _, etcds := range []string{"1971-01-01T00:00:00Z", "2999-01-01T00:00:00Z"} {
		s := fake(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(300 * time.Millisecond)
			fmt.Fprintf(w, oneLease, etcds)
		})
		asked := time.Now()
		all, _, err := open(t, etcdv2.Options{Endpoints: []string{s.URL}, Prefix: "net"}).List(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		if late := all[0].Expires.Sub(asked.Add(time.Hour)); late < 0 || late > 450*time.Millisecond { // two answers take 600 ms
			t.Errorf("etcd's clock being at %s, a lease of an hour ends %v later than that", etcds, late)
		}
		if !strings.Contains(all[0].Expires.String(), " m=") {
			t.Errorf("%v has no monotonic reading", all[0].Expires)
		}
	}
}

// A member that falls silent in the midst of an answer is given up.
func TestStalled(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, oneLease[:40])
		w.(http.Flusher).Flush()
		<-stop
	})
	defer close(stop)
	began := time.Now()
	_, _, err := open(t, etcdv2.Options{Endpoints: []string{s.URL}, Prefix: "net"}).List(t.Context())
	if err == nil || !strings.Contains(err.Error(), s.URL+" has not answered within 5s") || time.Since(began) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// A member that takes too long is given more time at the next try, so that hosts
// which all come back at once are served in the end.
func TestOverloaded(t *testing.T) {
	t.Parallel()
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(7 * time.Second):
			fmt.Fprintf(w, oneLease, "2999-01-01T00:00:00Z")
		case <-r.Context().Done():
		}
	})
	store := open(t, etcdv2.Options{Endpoints: []string{s.URL}, Prefix: "net"})
	if _, _, err := store.List(t.Context()); err == nil {
		t.Error("it waited for 7 s at once")
	}
	if _, _, err := store.List(t.Context()); err != nil {
		t.Errorf("it did not wait any longer at the second try: %v", err)
	}
}

// A watch that is answered with nothing, as some gateway may do, is not asked for
// again as fast as can be.
func TestEmptyWatch(t *testing.T) {
	var asked atomic.Int32
	s := fake(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := open(t, etcdv2.Options{Endpoints: []string{s.URL}, Prefix: "net"}).Watch(ctx, 7).Next()
	if n := asked.Load(); err == nil || ctx.Err() != nil || n != 1 {
		t.Errorf("%v after being asked %d times", err, n)
	}
}

// A watch is on the member that has answered last, and stays there: when that
// member fails, it ends, as nobody knows whether another is as far.
func TestWatchesOneMember(t *testing.T) {
	var failing atomic.Pointer[string]
	var watched [2]atomic.Int32
	var urls []string
	for i := range 2 {
		s := fake(t, func(w http.ResponseWriter, r *http.Request) {
			watch := r.URL.Query().Get("wait") == "true"
			if watch {
				watched[i].Add(1)
			}
			if watch || "http://"+r.Host == *failing.Load() {
				http.Error(w, `{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out"}`, http.StatusInternalServerError)
				return
			}
			fmt.Fprintf(w, oneLease, "2999-01-01T00:00:00Z")
		})
		urls = append(urls, s.URL)
	}
	for i, dead := range urls {
		failing.Store(&dead)
		watched[0].Store(0)
		watched[1].Store(0)
		s := open(t, etcdv2.Options{Endpoints: []string{urls[0] + "/", urls[1]}, Prefix: "net"})
		if _, _, err := s.List(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := s.Watch(t.Context(), 7).Next()
		if err == nil || !strings.Contains(err.Error(), urls[1-i]+" answers 500 Internal Server Error: Raft Internal Error (etcdserver: request timed out)") {
			t.Errorf("the watch ended with %v", err)
		}
		if one, other := watched[1-i].Load(), watched[i].Load(); one != 1 || other != 0 {
			t.Errorf("the member that answered was watched %d times, the other %d", one, other)
		}
	}
}

// A member that has not got as far as what was seen is at fault, or of another
// history: it would be silent about what happens now.
func TestWatchOfAnotherHistory(t *testing.T) {
	e := start(t)
	s := open(t, etcdv2.Options{Endpoints: []string{e.url}, Prefix: "net"})
	_, rev, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.Watch(ctx, rev+1).Next(); !errors.Is(err, subnet.ErrWatchLost) {
		t.Errorf("one event ahead of etcd: %v", err)
	}
	if err := s.AwaitConfig(ctx, rev+1); !errors.Is(err, subnet.ErrWatchLost) {
		t.Errorf("waiting for a config, one event ahead of etcd: %v", err)
	}
}

// A list comes from one member, and only while that is part of the cluster and has
// what was seen: otherwise it is a matter for the whole cluster.
func TestListsFromOneMember(t *testing.T) {
	var asked []string
	var mu sync.Mutex
	local, refuse := "7", false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		what := path.Base(r.URL.Path)
		index := local
		if r.URL.Query().Get("quorum") == "true" {
			what += " by all"
			index = "7"
		}
		asked = append(asked, what)
		if refuse && what == "subnets" {
			http.Error(w, "not now", http.StatusBadGateway)
			return
		}
		w.Header().Set("X-Etcd-Index", index)
		fmt.Fprintf(w, oneLease, "2999-01-01T00:00:00Z")
	}))
	defer s.Close()
	store := open(t, etcdv2.Options{Endpoints: []string{s.URL}, Prefix: "net"})
	list := func(what string, want ...string) {
		t.Helper()
		mu.Lock()
		asked = nil
		mu.Unlock()
		_, index, err := store.List(t.Context())
		if mu.Lock(); err != nil || index != 7 || !slices.Equal(asked, want) {
			t.Errorf("%s: index %d, %v, after being asked for %q, want %q", what, index, err, asked, want)
		}
		mu.Unlock()
	}
	list("first", "config by all", "subnets")
	list("soon after", "subnets")
	mu.Lock()
	local = "6" // as behind a balancer, or of a member that lags behind
	mu.Unlock()
	list("from a member that has less", "subnets", "subnets by all")
	mu.Lock()
	local, refuse = "7", true
	mu.Unlock()
	list("from a member that fails", "subnets", "subnets by all")
	mu.Lock()
	refuse = false
	mu.Unlock()
	time.Sleep(4 * time.Second) // in which it may have been cut off
	list("later", "config by all", "subnets")
}
