package etcdv2

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// tlsFiles are the files for TLS, each empty where it is not used. Their errors
// name the file, and never show what is in it.
type tlsFiles struct{ ca, cert, key string }

func (f tlsFiles) any() bool { return f != tlsFiles{} }

// A fileError is about a file of this host's own, whichever member is connected to.
type fileError struct{ error }

func (e fileError) Unwrap() error { return e.error }

// config reads the files.
func (f tlsFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if c.RootCAs, err = f.authorities(); err != nil {
		return nil, fileError{err}
	}
	if _, err := f.pair(); err != nil { // which not every etcd asks for
		return nil, fileError{err}
	}
	// Asked for by the handshake, it is shown whatever CAs etcd says it trusts: etcd's
	// refusal then says more than that there was no certificate. It is read anew, as
	// through a proxy one config is for all connections.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := f.pair()
		if err != nil {
			return nil, fileError{err}
		}
		return pair, nil
	}
	return c, nil
}

// authorities are the CAs that etcd's certificate may be of; nil are the system's.
func (f tlsFiles) authorities() (*x509.CertPool, error) {
	if f.ca == "" {
		return nil, nil
	}
	text, err := read(f.ca, "the CA certificates for etcd", "--etcd-cafile")
	if err != nil {
		return nil, err
	}
	pool, found, bad := x509.NewCertPool(), false, error(nil)
	for _, block := range blocks(text) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		// One among others that cannot be read, as there are in bundles of a whole
		// system, does no harm.
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			bad = err
			continue
		}
		pool.AddCert(cert)
		found = true
	}
	switch {
	case found:
		return pool, nil
	case bad != nil:
		return nil, fmt.Errorf("reading the CA certificates for etcd: the certificate in %s is broken: %w; copy it anew, or name another file with --etcd-cafile", f.ca, bad)
	}
	return nil, fmt.Errorf("reading the CA certificates for etcd: %s; name the file with the CA's certificate with --etcd-cafile", lacks(f.ca, text, "certificate"))
}

// pair is the client certificate with its key. What stands for none is empty, as
// TLS wants it.
func (f tlsFiles) pair() (*tls.Certificate, error) {
	if f.cert == "" {
		return &tls.Certificate{}, nil
	}
	const doing = "reading the client certificate for etcd"
	cert, err := read(f.cert, "the client certificate for etcd", "--etcd-certfile")
	if err != nil {
		return nil, err
	}
	if !has(cert, "CERTIFICATE") {
		hint := ""
		if has(cert, "PRIVATE KEY") {
			hint = ": is it the one for --etcd-keyfile?"
		}
		return nil, fmt.Errorf("%s: %s%s; name the file with the certificate with --etcd-certfile", doing, lacks(f.cert, cert, "certificate"), hint)
	}
	key, err := read(f.key, "the key of the client certificate for etcd", "--etcd-keyfile")
	if err != nil {
		return nil, err
	}
	const doingKey = "reading the key of the client certificate for etcd"
	if encrypted(key) {
		return nil, fmt.Errorf("%s: the key in %s is encrypted, and there is nobody to ask for its passphrase; write it without one (openssl pkey -in %s -out <new file>) and name that with --etcd-keyfile", doingKey, f.key, f.key)
	}
	if !has(key, "PRIVATE KEY") {
		return nil, fmt.Errorf("%s: %s; name the file with the key with --etcd-keyfile", doingKey, lacks(f.key, key, "private key"))
	}
	pair, err := tls.X509KeyPair(cert, key)
	switch {
	case err == nil:
		return &pair, nil
	case strings.Contains(err.Error(), "does not match"):
		return nil, fmt.Errorf("%s: the key in %s does not belong to the certificate in %s; name two that were made together with --etcd-certfile and --etcd-keyfile", doingKey, f.key, f.cert)
	case broken(cert):
		return nil, fmt.Errorf("%s: the certificate in %s is broken: %w; copy it anew", doing, f.cert, err)
	}
	return nil, fmt.Errorf("%s: the key in %s is broken: %w; copy it anew", doingKey, f.key, err)
}

// leaf is the client certificate itself, nil where there is none to be read.
func (f tlsFiles) leaf() *x509.Certificate {
	pair, err := f.pair()
	if err != nil || len(pair.Certificate) == 0 {
		return nil
	}
	leaf, _ := x509.ParseCertificate(pair.Certificate[0])
	return leaf
}

// read reads a file that a flag names.
func read(name, what, flag string) ([]byte, error) {
	text, err := os.ReadFile(name)
	switch {
	case err == nil:
		return text, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("reading %s: %w; put the file there, or name another with %s", what, err, flag)
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0:
		// As in the sandbox of a systemd unit, to who takes root for one who may.
		return nil, fmt.Errorf("reading %s: %w; flanneld is root without the right to pass over permissions: make it root's own or readable to all, and the directories above it, or give the unit CAP_DAC_READ_SEARCH (CapabilityBoundingSet=)", what, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("reading %s: %w; let the user that flanneld runs as read it and the directories above it", what, err)
	}
	return nil, fmt.Errorf("reading %s: %w; name a file that can be read with %s", what, err, flag)
}

func blocks(text []byte) (all []*pem.Block) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return all
		}
		all = append(all, b)
	}
}

// has reports whether there is something of a kind in a file; there are several
// kinds of private keys, such as EC PRIVATE KEY.
func has(text []byte, kind string) bool {
	for _, b := range blocks(text) {
		if b.Type == kind || strings.HasSuffix(b.Type, " "+kind) {
			return true
		}
	}
	return false
}

// encrypted reports whether a key wants a passphrase, in one of the two ways there
// are: PKCS #8 (RFC 5958), and OpenSSL's older one (RFC 1421).
func encrypted(text []byte) bool {
	for _, b := range blocks(text) {
		if b.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED") {
			return true
		}
	}
	return false
}

// broken reports whether the first certificate in a file cannot be parsed.
func broken(text []byte) bool {
	for _, b := range blocks(text) {
		if b.Type == "CERTIFICATE" {
			_, err := x509.ParseCertificate(b.Bytes)
			return err != nil
		}
	}
	return true
}

// lacks says what is in a file in place of what is looked for.
func lacks(name string, text []byte, wanted string) string {
	marker := "-----BEGIN " + strings.ToUpper(wanted) + "-----"
	switch all := blocks(text); {
	case len(all) > 0:
		return fmt.Sprintf("there is no %s in %s, but a block of the type %q", wanted, name, all[0].Type)
	case len(bytes.TrimSpace(text)) == 0:
		return fmt.Sprintf("%s is empty", name)
	}
	return fmt.Sprintf("there is no %s in %s: it is not in PEM, which has a line %s", wanted, name, marker)
}
