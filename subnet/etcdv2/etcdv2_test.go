package etcdv2_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/subnet"
	"flanneld/subnet/etcdv2"
	"flanneld/subnet/storetest"
)

func TestMain(m *testing.M) {
	if size := os.Getenv(herdVar); size != "" {
		if err := herd(size, os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	lab.Main(m, lab.BuildEtcd(), buildHerd)
}

// etcd is a real one on a host of the lab, and a door to it on the loopback of
// this process, whose sockets are not all made on one thread.
type etcd struct {
	*lab.Etcd
	host *lab.Host
	url  string
}

func start(t *testing.T) *etcd {
	t.Helper()
	l := lab.ForTest(t)
	h := l.Host("etcd", l.Segment("a", netip.MustParsePrefix("172.30.0.0/24")))
	e := &etcd{Etcd: h.Etcd(), host: h}
	door, err := net.Listen("tcp", "127.0.0.1:0")
	l.Must(err)
	ended := make(chan struct{})
	t.Cleanup(func() {
		door.Close()
		<-ended // or it would still ask for the host, which goes next
	})
	go func() {
		defer close(ended)
		for {
			in, err := door.Accept()
			if err != nil {
				return
			}
			out, err := h.Dial(context.Background(), "tcp", netip.MustParseAddrPort("127.0.0.1:2379"))
			if err != nil {
				in.Close()
				continue
			}
			go func() { io.Copy(out, in); out.Close() }()
			go func() { io.Copy(in, out); in.Close() }()
		}
	}()
	e.url = "http://" + door.Addr().String()
	return e
}

func open(t *testing.T, o etcdv2.Options) *etcdv2.Store {
	t.Helper()
	s, err := etcdv2.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// operator is somebody with curl.
type operator struct {
	t    *testing.T
	base string
}

func (o operator) do(method, key string, form url.Values) {
	o.t.Helper()
	req, err := http.NewRequest(method, o.base+key, strings.NewReader(form.Encode()))
	if err != nil {
		o.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		o.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		o.t.Fatalf("%s %s: %s", method, key, resp.Status)
	}
}

func (o operator) SetConfig(value string) { o.do("PUT", "/config", url.Values{"value": {value}}) }
func (o operator) DeleteConfig()          { o.do("DELETE", "/config", nil) }
func (o operator) Remove(key string)      { o.do("DELETE", "/subnets/"+key, nil) }

func TestStore(t *testing.T) {
	e := start(t)
	n := 0
	storetest.Run(t, func(t *testing.T) (subnet.Store, storetest.Operator) {
		n++
		prefix := fmt.Sprintf("/suite/%d", n)
		return open(t, etcdv2.Options{Endpoints: []string{e.url}, Prefix: prefix}), operator{t, e.url + "/v2/keys" + prefix}
	})
}

// What tells a watch that it has missed something.
func TestWatchLost(t *testing.T) {
	e := start(t)
	s := open(t, etcdv2.Options{Endpoints: []string{e.url}, Prefix: "net"})
	op := operator{t, e.url + "/v2/keys/net"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Create(ctx, "10.1.5.0-24", "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	_, rev, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}

	op.do("DELETE", "/subnets?recursive=true", nil)
	if events, err := s.Watch(ctx, rev).Next(); !errors.Is(err, subnet.ErrWatchLost) {
		t.Errorf("after the whole directory was removed: %v, %v", events, err)
	}
	// etcd remembers the last 1,000 events.
	for i := range 1001 {
		op.SetConfig(fmt.Sprint(i))
	}
	if events, err := s.Watch(ctx, rev).Next(); !errors.Is(err, subnet.ErrWatchLost) {
		t.Errorf("after too many events: %v, %v", events, err)
	}
	_, rev, err = s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := s.Watch(ctx, rev).Next()
		ended <- err
	}()
	e.Stop()
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Errorf("after etcd was stopped: %v", err)
	}
}

// A watch that begins a little in the past goes on from there; from far in the
// past, a list is less work.
func TestWatchBehind(t *testing.T) {
	e := start(t)
	s := open(t, etcdv2.Options{Endpoints: []string{e.url}, Prefix: "net"})
	if _, err := s.Create(t.Context(), "10.1.5.0-24", "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	_, rev, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if _, err := s.Create(t.Context(), fmt.Sprintf("10.2.%d.0-24", i), "b", time.Hour); err != nil {
			t.Fatal(err)
		}
		_, err := s.Watch(t.Context(), rev).Next()
		if behind := errors.Is(err, subnet.ErrBehind); behind != (i > 16) || err != nil && !behind {
			t.Fatalf("behind by %d events: %v", i, err)
		}
	}
	if _, _, err = s.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Watch(t.Context(), rev+96).Next(); err != nil {
		t.Errorf("behind by 3 events: %v", err)
	}
}

// Each cause has one message, which says what was tried and what is wrong.
func TestErrors(t *testing.T) {
	notEtcd := httptest.NewServer(http.NotFoundHandler())
	defer notEtcd.Close()
	failing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "oh no", http.StatusServiceUnavailable)
	}))
	defer failing.Close()
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()

	for name, test := range map[string]struct {
		endpoints []string
		want      string
	}{
		"no etcd": {[]string{notEtcd.URL}, "reading /net/config: the answer is not one of etcd's v2 API (from version 3.4 on etcd serves that only when started with --enable-v2)"},
		"failing": {[]string{failing.URL}, "reading /net/config in etcd: " + failing.URL + " answers 503 Service Unavailable: oh no"},
		"refused": {[]string{"http://" + refused.Addr().String()}, "reading /net/config in etcd: http://" + refused.Addr().String() + ": connecting to it: connection refused"},
	} {
		_, _, err := open(t, etcdv2.Options{Endpoints: test.endpoints, Prefix: "/net/"}).Config(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s:\n got %v\nwant %s", name, err, test.want)
		}
	}
	if _, err := etcdv2.New(etcdv2.Options{Endpoints: []string{"https://127.0.0.1:2379"}, CAFile: "/nowhere/ca.pem"}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nowhere/ca.pem") {
		t.Errorf("a CA file that is not there: %v", err)
	}
}
