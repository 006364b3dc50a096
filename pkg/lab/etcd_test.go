package lab

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// put writes a key as a host would, and says how it was answered.
func put(client *http.Client, endpoint, value string) error {
	req, err := http.NewRequest(http.MethodPut, endpoint+"/v2/keys/x", strings.NewReader(url.Values{"value": {value}}.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return answered(client.Do(req))
}

// read reads that key with a majority behind it.
func read(client *http.Client, endpoint string) error {
	return answered(client.Get(endpoint + "/v2/keys/x?quorum=true"))
}

func answered(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode >= 300 {
		return fmt.Errorf("%s: %s %w", resp.Status, body, err)
	}
	return nil
}

// works waits until a request is answered, and fails is for one that is not.
func works(t *testing.T, what string, f func() error) {
	t.Helper()
	Eventually(t, within, what, f)
}

func fails(t *testing.T, what string, f func() error, with string) {
	t.Helper()
	if err := f(); err == nil || !strings.Contains(err.Error(), with) {
		t.Fatalf("%s: %v; want an error with %q", what, err, with)
	}
}

func TestEtcdMembers(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h := l.Host("h", s)
	m := StartEtcd(l.Host("e1", s), l.Host("e2", s), l.Host("e3", s))
	client := h.HTTP()
	client.Timeout = 2 * time.Second
	leads := func(what string, among EtcdMembers) (leader *Etcd) {
		t.Helper()
		works(t, what, func() (err error) { leader, err = among.Leader(); return err })
		return leader
	}
	first := leads("a leader", m)
	others := m.Others(first)
	if len(others) != 2 || slices.Contains(others, first) {
		t.Fatalf("%d others", len(others))
	}
	for _, e := range m {
		works(t, "a write at the start", func() error { return put(client, e.Endpoint(), "a") })
	}

	first.Stop()
	second := leads("another leader", m)
	works(t, "a write to two of three", func() error { return put(client, others[0].Endpoint(), "b") })
	second.Stop()
	last := m.Others(first, second)[0]
	works(t, "a member alone that answers nothing", func() error {
		if put(client, last.Endpoint(), "c") == nil {
			return fmt.Errorf("it has written")
		}
		return nil
	})
	EtcdMembers{first, second}.Restart()
	for _, e := range m {
		works(t, "a write after all", func() error { return put(client, e.Endpoint(), "d") })
	}

	follower := m.Others(leads("a leader again", m))[0]
	m.Lead(follower)
	if now := leads("the leader that was asked for", m); now != follower {
		t.Errorf("%s leads", now.Host().Name)
	}

	// From the others only: it is there, but has nobody to agree with.
	leader := leads("a leader before the cut", m)
	leader.Partition()
	others = m.Others(leader)
	leads("a leader of the rest", others)
	works(t, "a write to the rest", func() error { return put(client, others[0].Endpoint(), "e") })
	if err := answered(client.Get(leader.Endpoint() + "/version")); err != nil {
		t.Errorf("the member that is cut off from its peers: %v", err)
	}
	fails(t, "a read of that member", func() error { return read(client, leader.Endpoint()) }, "")
	leader.Mend()
	works(t, "a read of that member, mended", func() error { return read(client, leader.Endpoint()) })

	// From everybody: it says nothing at all.
	others[0].Isolate()
	fails(t, "a request to a member that is cut off", func() error { return answered(client.Get(others[0].Endpoint() + "/version")) }, "Timeout")
	if _, err := others[0].Ask(http.MethodGet, "/version", nil); err != nil {
		t.Errorf("on its own host: %v", err)
	}
	others[0].Mend()
	works(t, "a write to that member", func() error { return put(client, others[0].Endpoint(), "f") })
}

func TestSilence(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h1, h2, h3 := l.Host("h1", s), l.Host("h2", s), l.Host("h3", s)
	ping := func(from, to *Host) error {
		_, err := from.Ping(to.Addr(), Echo{Timeout: 200 * time.Millisecond})
		return err
	}
	end := h1.Silence(h2.Addr(), 0)
	fails(t, "there", func() error { return ping(h1, h2) }, "") // not even sent
	fails(t, "back", func() error { return ping(h2, h1) }, "no answer")
	l.Must(ping(h1, h3))
	end()
	l.Must(ping(h1, h2))
	l.Must(ping(h2, h1))
}

func TestDoor(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h := l.Host("h", s)
	e := l.Host("etcd", s).Etcd()
	d := e.Door(h, 4001)
	defer d.Close()
	client := h.HTTP()
	write := func() error { return put(client, d.Endpoint(), "x") }
	get := func() error { return read(client, d.Endpoint()) }
	l.Must(write())
	l.Must(get())
	if d.Requests() != 2 {
		t.Errorf("%d requests are counted", d.Requests())
	}

	// A watch has the head of its answer at once, and ends with each change.
	for _, mode := range []DoorMode{DoorReadOnly, DoorPass, DoorClosed} {
		watching, err := client.Get(d.Endpoint() + "/v2/keys/x?wait=true")
		l.Must(err)
		d.Set(mode)
		if _, err := io.ReadAll(watching.Body); err == nil {
			t.Errorf("mode %d: the watch goes on", mode)
		}
		watching.Body.Close()
	}
	fails(t, "closed", get, "connection refused")
	d.Set(DoorUnavailable)
	fails(t, "unavailable", get, "503")
	d.Set(DoorReadOnly)
	fails(t, "read-only", write, "500")
	l.Must(get())
	d.Set(DoorSlow)
	began := time.Now()
	l.Must(get())
	if took := time.Since(began); took < doorDelay {
		t.Errorf("slow answers take %v", took)
	}
	d.Set(DoorPass)
	l.Must(write())
}

func TestEtcdTLS(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h := l.Host("h", s)
	ca, err := NewCA("ca")
	l.Must(err)
	other, err := NewCA("other")
	l.Must(err)
	e := l.Host("etcd", s).EtcdTLS(ca)
	issue := func(ca *CA, until time.Time) tls.Certificate {
		t.Helper()
		c, err := ca.Issue("client", until)
		l.Must(err)
		pair, err := tls.X509KeyPair(c.Cert, c.Key)
		l.Must(err)
		return pair
	}
	get := func(trusted *CA, certs ...tls.Certificate) func() error {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(trusted.PEM)
		return func() error {
			client := h.HTTP()
			client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, Certificates: certs}
			return answered(client.Get(e.Endpoint() + "/version"))
		}
	}
	good := issue(ca, time.Now().Add(time.Hour))
	l.Must(get(ca, good)())
	fails(t, "no certificate", get(ca), "certificate required")
	fails(t, "an expired one", get(ca, issue(ca, time.Now().Add(-time.Second))), "expired certificate")
	fails(t, "one of another CA", get(ca, issue(other, time.Now().Add(time.Hour))), "tls: ")
	fails(t, "the wrong CA for etcd", get(other, good), "unknown authority")
	e.Certify(other)
	e.Restart()
	fails(t, "the CA it had for etcd", get(ca, good), "unknown authority")
	l.Must(get(other, good)())
	if _, err := e.Ask(http.MethodGet, "/version", nil); err != nil {
		t.Errorf("on its own host: %v", err)
	}
	name := filepath.Join(h.Dir, "x")
	l.Must(Replace(name, []byte("x")))
	l.Must(Replace(name, []byte("y")))
}

func TestEtcdAuth(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h := l.Host("h", s)
	e := l.Host("etcd", s).Etcd()
	e.EnableAuth()
	e.SetUser("host", "old", "x")
	get := func(name, password string) func() error {
		return func() error {
			req, err := http.NewRequest(http.MethodGet, e.Endpoint()+"/v2/keys/x/y?quorum=true", nil)
			l.Must(err)
			if name != "" {
				req.SetBasicAuth(name, password)
			}
			return answered(h.HTTP().Do(req))
		}
	}
	fails(t, "the right password", get("host", "old"), "404") // it is let in, and there is nothing
	fails(t, "no password", get("", ""), "401")
	fails(t, "a wrong one", get("host", "new"), "401")
	e.SetUser("host", "new", "x")
	fails(t, "the new one", get("host", "new"), "404")
	fails(t, "the old one", get("host", "old"), "401")
}
