package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A CA issues certificates.
type CA struct {
	// PEM is its own certificate.
	PEM []byte

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA that is good for a day.
func NewCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template(name, time.Now().Add(24*time.Hour))
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &CA{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert: cert, key: key}, err
}

// template is what certificates have in common. They are valid from a day ago,
// so that one can be made that has expired.
func template(name string, until time.Time) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) // fails only where there is no randomness
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-24 * time.Hour),
		NotAfter:     until,
	}
}

// A Certificate is one with its key, both as PEM.
type Certificate struct{ Cert, Key []byte }

// Issue makes a certificate for servers at the addresses and for clients, valid
// until some time, which may be over.
func (ca *CA) Issue(name string, until time.Time, addrs ...netip.Addr) (c Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	t := template(name, until)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, a := range addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key.Public(), ca.key)
	if err != nil {
		return c, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	return Certificate{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}, err
}

// Replace writes a file in the way that tools which renew certificates do: it
// is there as a whole, the old one or the new one.
func Replace(name string, text []byte) error {
	half := name + ".new"
	if err := os.WriteFile(half, text, 0o600); err != nil {
		return err
	}
	return os.Rename(half, name)
}

// EtcdTLS is [Host.Etcd] for an etcd that other hosts reach by TLS only, and
// only with a certificate that the CA has issued. Its own is the CA's too.
func (h *Host) EtcdTLS(ca *CA, args ...string) *Etcd {
	h.lab.Helper()
	e := h.newEtcd(args...)
	e.useTLS(ca)
	e.Restart()
	return e
}

// StartEtcdTLS is [StartEtcd] for members that are each like [Host.EtcdTLS]'s, and
// that talk to each other by TLS with the same certificates.
func StartEtcdTLS(ca *CA, hosts ...*Host) EtcdMembers {
	var m EtcdMembers
	for _, h := range hosts {
		h.lab.Helper()
		e := h.newEtcd()
		e.useTLS(ca)
		e.peerTLS = true
		e.args = append(e.args, "--peer-cert-file", e.file("server.pem"), "--peer-key-file", e.file("server-key.pem"),
			"--peer-client-cert-auth", "--peer-trusted-ca-file", e.file("clients-ca.pem"))
		m = append(m, e)
	}
	m.found()
	return m
}

func (e *Etcd) file(name string) string { return filepath.Join(e.host.Dir, name) }

func (e *Etcd) useTLS(ca *CA) {
	e.host.lab.Helper()
	e.tls = true
	e.args = append([]string{"--cert-file", e.file("server.pem"), "--key-file", e.file("server-key.pem"),
		"--client-cert-auth", "--trusted-ca-file", e.file("clients-ca.pem")}, e.args...)
	e.host.lab.Must(Replace(e.file("clients-ca.pem"), ca.PEM))
	e.Certify(ca)
}

// Certify gives an etcd with TLS a certificate of another CA's for itself; that
// of its clients stays. Restart makes it count for all connections.
func (e *Etcd) Certify(ca *CA) {
	e.host.lab.Helper()
	c, err := ca.Issue("etcd", time.Now().Add(time.Hour), e.host.addr)
	e.host.lab.Must(err)
	e.Present(c)
}

// Present is [Etcd.Certify] for a certificate as it should not be. It counts for
// connections that are made from then on.
func (e *Etcd) Present(c Certificate) {
	e.host.lab.Helper()
	e.host.lab.Must(Replace(e.file("server.pem"), c.Cert))
	e.host.lab.Must(Replace(e.file("server-key.pem"), c.Key))
}

// EnableAuth makes etcd's v2 API demand user and password of everybody, from
// then on also of the lab's own requests, which are root's.
func (e *Etcd) EnableAuth() {
	e.host.lab.Helper()
	const name, password = "root", "the lab's own"
	e.must(http.MethodPut, "/v2/auth/users/"+name, map[string]any{"user": name, "password": password})
	e.must(http.MethodPut, "/v2/auth/enable", nil)
	e.auth = [2]string{name, password}
	// Those who give no name are guests, who may do all until that is taken away.
	e.must(http.MethodDelete, "/v2/auth/roles/guest", nil)
}

// EnableAuth is [Etcd.EnableAuth] for all members.
func (m EtcdMembers) EnableAuth() {
	m[0].host.lab.Helper()
	m[0].EnableAuth()
	for _, e := range m {
		e.auth = m[0].auth
	}
}

// SetUser makes a user who may read and write all below a prefix, or gives one
// who is there another password.
func (e *Etcd) SetUser(name, password, prefix string) {
	e.host.lab.Helper()
	if _, err := e.Ask(http.MethodGet, "/v2/auth/users/"+name, nil); err != nil {
		below := []string{"/" + strings.Trim(prefix, "/") + "/*"}
		e.SetRole(name, below, below)
		e.must(http.MethodPut, "/v2/auth/users/"+name, map[string]any{"user": name, "password": password, "roles": []string{name}})
		return
	}
	e.must(http.MethodPut, "/v2/auth/users/"+name, map[string]any{"user": name, "password": password})
}

// SetRole says what the user of a name may read and write, in place of what that
// was: keys, or all that begin like what comes before a *.
func (e *Etcd) SetRole(name string, read, write []string) {
	e.host.lab.Helper()
	if _, err := e.Ask(http.MethodGet, "/v2/auth/roles/"+name, nil); err == nil {
		e.must(http.MethodDelete, "/v2/auth/roles/"+name, nil)
	}
	none := func(keys []string) []string { return append([]string{}, keys...) } // an empty list and not null
	e.must(http.MethodPut, "/v2/auth/roles/"+name, map[string]any{"role": name,
		"permissions": map[string]any{"kv": map[string]any{"read": none(read), "write": none(write)}}})
}

func (e *Etcd) must(method, path string, send any) {
	e.host.lab.Helper()
	if _, err := e.Ask(method, path, send); err != nil {
		e.host.lab.Fatalf("etcd on %s: %v", e.host.Name, err)
	}
}

// Authorize makes a request one that etcd takes, once EnableAuth was called.
func (e *Etcd) Authorize(req *http.Request) {
	if e.auth[0] != "" {
		req.SetBasicAuth(e.auth[0], e.auth[1])
	}
}
