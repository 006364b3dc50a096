package etcdv2_test

import (
	"bytes"
	"crypto/aes"
	"encoding/pem"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/subnet/etcdv2"
)

// What is wrong with a file for TLS is said before anything is asked of etcd: which
// file, what of it, and what to do. What is in the file is not shown.
func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, text []byte) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	ca, err := lab.NewCA("ca")
	if err != nil {
		t.Fatal(err)
	}
	issue := func() lab.Certificate {
		t.Helper()
		c, err := ca.Issue("host", time.Now().Add(time.Hour), netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, another := issue(), issue()
	block := func(kind string, headers map[string]string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Headers: headers, Bytes: bytes.Repeat([]byte{7}, aes.BlockSize)})
	}
	caFile, cert, key := file("ca.pem", ca.PEM), file("client.pem", one.Cert), file("client-key.pem", one.Key)
	missing := filepath.Join(dir, "missing.pem")
	garbage := file("garbage.pem", []byte("c3RlYWwgbWU=\n"))
	empty := file("empty.pem", nil)
	brokenCert := file("broken.pem", block("CERTIFICATE", nil))
	brokenKey := file("broken-key.pem", block("EC PRIVATE KEY", nil))
	otherKey := file("other-key.pem", another.Key)
	pkcs8 := file("pkcs8.pem", block("ENCRYPTED PRIVATE KEY", nil))
	openssl := file("openssl.pem", block("RSA PRIVATE KEY", map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}))
	secret := file("secret.pem", one.Key)
	if err := os.Chmod(secret, 0); err != nil {
		t.Fatal(err)
	}
	unreadable := "let the user that flanneld runs as read it and the directories above it"
	if os.Geteuid() == 0 {
		unreadable = "flanneld is root without the right to pass over permissions: make it root's own or readable to all, and the directories above it, or give the unit CAP_DAC_READ_SEARCH (CapabilityBoundingSet=)"
	}
	bundle := file("bundle.pem", append(block("CERTIFICATE", nil), ca.PEM...))

	for _, test := range []struct {
		name, ca, cert, key string
		want                string // without what os or crypto/tls say
	}{
		{name: "no CA file", ca: missing, want: "reading the CA certificates for etcd: open " + missing + ": no such file or directory; put the file there, or name another with --etcd-cafile"},
		{name: "a directory for a CA file", ca: dir, want: "reading the CA certificates for etcd: read " + dir + ": is a directory; name a file that can be read with --etcd-cafile"},
		{name: "an empty CA file", ca: empty, want: "reading the CA certificates for etcd: " + empty + " is empty; name the file with the CA's certificate with --etcd-cafile"},
		{name: "a CA file not in PEM", ca: garbage, want: "reading the CA certificates for etcd: there is no certificate in " + garbage + ": it is not in PEM, which has a line -----BEGIN CERTIFICATE-----; name the file with the CA's certificate with --etcd-cafile"},
		{name: "a key for a CA file", ca: key, want: "reading the CA certificates for etcd: there is no certificate in " + key + `, but a block of the type "PRIVATE KEY"; name the file with the CA's certificate with --etcd-cafile`},
		{name: "a broken CA", ca: brokenCert, want: "reading the CA certificates for etcd: the certificate in " + brokenCert + " is broken: "},
		{name: "no certificate", ca: caFile, cert: missing, key: key, want: "reading the client certificate for etcd: open " + missing + ": no such file or directory; put the file there, or name another with --etcd-certfile"},
		{name: "certificate and key exchanged", ca: caFile, cert: key, key: cert, want: "reading the client certificate for etcd: there is no certificate in " + key + `, but a block of the type "PRIVATE KEY": is it the one for --etcd-keyfile?; name`},
		{name: "a broken certificate", cert: brokenCert, key: key, want: "reading the client certificate for etcd: the certificate in " + brokenCert + " is broken: "},
		{name: "no key", ca: caFile, cert: cert, key: missing, want: "reading the key of the client certificate for etcd: open " + missing + ": no such file or directory; put the file there, or name another with --etcd-keyfile"},
		{name: "a key that may not be read", ca: caFile, cert: cert, key: secret, want: "reading the key of the client certificate for etcd: open " + secret + ": permission denied; " + unreadable},
		{name: "a key not in PEM", ca: caFile, cert: cert, key: garbage, want: "reading the key of the client certificate for etcd: there is no private key in " + garbage + ": it is not in PEM, which has a line -----BEGIN PRIVATE KEY-----; name the file with the key with --etcd-keyfile"},
		{name: "an encrypted key", ca: caFile, cert: cert, key: pkcs8, want: "reading the key of the client certificate for etcd: the key in " + pkcs8 + " is encrypted, and there is nobody to ask for its passphrase; write it without one (openssl pkey -in " + pkcs8 + " -out <new file>) and name that with --etcd-keyfile"},
		{name: "a key encrypted in the old way", ca: caFile, cert: cert, key: openssl, want: "reading the key of the client certificate for etcd: the key in " + openssl + " is encrypted, "},
		{name: "a broken key", ca: caFile, cert: cert, key: brokenKey, want: "reading the key of the client certificate for etcd: the key in " + brokenKey + " is broken: "},
		{name: "another's key", ca: caFile, cert: cert, key: otherKey, want: "reading the key of the client certificate for etcd: the key in " + otherKey + " does not belong to the certificate in " + cert + "; name two that were made together with --etcd-certfile and --etcd-keyfile"},

		{name: "all well", ca: caFile, cert: cert, key: key},
		{name: "no client certificate", ca: caFile},
		{name: "a bundle with a broken one in it", ca: bundle},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := powerless(t, func() error {
				_, err := etcdv2.New(etcdv2.Options{Endpoints: []string{"http://127.0.0.1:1", "https://127.0.0.1:2"}, Prefix: "net", CAFile: test.ca, CertFile: test.cert, KeyFile: test.key})
				return err
			})
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want == "":
			case err == nil:
				t.Error("nothing is said")
			case !strings.HasPrefix(err.Error(), test.want) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "c3RlYWwgbWU"):
				t.Errorf("\n got %v\nwant %s", err, test.want)
			}
		})
	}
	if _, err := etcdv2.New(etcdv2.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "net", CAFile: missing}); err != nil {
		t.Errorf("with a file that is not used: %v", err)
	}
}

// powerless runs f without root's right to read every file.
func powerless(t *testing.T, f func() error) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capset(&header, &data[0]); err != nil {
			result <- errors.Join(errors.New("giving up capabilities"), err)
			return
		}
		result <- f()
	}()
	return <-result
}
