package etcdv2

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// Where the other side refuses a certificate and hangs up, a request that is written
// by then fails with that reason, and not with a broken pipe.
func TestOutspoken(t *testing.T) {
	ca, err := lab.NewCA("ca")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue("etcd", time.Now().Add(time.Hour), netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.Cert, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { c.(*tls.Conn).Handshake(); c.Close() }()
		}
	}()
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca.PEM)
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{RootCAs: trusted, ServerName: "127.0.0.1"})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 30*time.Second, "nobody takes what is written", func() error {
		if _, err = (outspoken{conn}).Write([]byte("GET / HTTP/1.1\r\n")); err != nil {
			return nil
		}
		return net.ErrClosed
	})
	if alert(err) != "certificate required" {
		t.Errorf("writing fails with %v", err)
	}
}
