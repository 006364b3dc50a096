package etcdv2

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// Through a proxy, too, a client certificate that is renewed is shown at the next
// connection, and one that cannot be read is said to be so.
func TestRenewedThroughProxy(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ca, err := lab.NewCA("ca")
	must(err)
	files := tlsFiles{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")}
	must(os.WriteFile(files.ca, ca.PEM, 0o600))
	renew := func(name string) {
		t.Helper()
		c, err := ca.Issue(name, time.Now().Add(time.Hour))
		must(err)
		must(os.WriteFile(files.cert, c.Cert, 0o600))
		must(os.WriteFile(files.key, c.Key, 0o600))
	}

	etcd := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	issued, err := ca.Issue("etcd", time.Now().Add(time.Hour), netip.MustParseAddr("127.0.0.1"))
	must(err)
	pair, err := tls.X509KeyPair(issued.Cert, issued.Key)
	must(err)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca.PEM)
	etcd.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted}
	etcd.StartTLS()
	defer etcd.Close()
	proxy := httptest.NewServer(http.HandlerFunc(connect))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	must(err)

	m := newMembers(files, "/net/config")
	m.http.Proxy = http.ProxyURL(at) // the environment's is never used for this address
	renew("old")
	m.http.TLSClientConfig, err = files.config()
	must(err)
	ask := func() (string, error) {
		m.http.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, etcd.URL, nil)
		must(err)
		resp, err := m.answer(etcd.URL, req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	for _, name := range []string{"old", "new"} {
		renew(name)
		if got, err := ask(); err != nil || got != name {
			t.Errorf("etcd sees the certificate of %q, %v, want that of %q", got, err, name)
		}
	}
	must(os.Remove(files.key))
	want := "reading the key of the client certificate for etcd: open " + files.key + ": no such file or directory; put the file there, or name another with --etcd-keyfile"
	if got, err := ask(); err == nil || err.Error() != want {
		t.Errorf("without a key: %q,\n got %v\nwant %s", got, err, want)
	}
}

// connect is what a proxy does to carry TLS.
func connect(w http.ResponseWriter, r *http.Request) {
	there, err := net.Dial("tcp", r.Host)
	if err != nil || r.Method != http.MethodConnect {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer there.Close()
	w.WriteHeader(http.StatusOK)
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	go func() { io.Copy(there, here); there.Close() }()
	io.Copy(here, there)
}
