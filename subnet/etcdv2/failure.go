package etcdv2

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// A memberError is what one member, or the way to it, is at fault for. Its text
// does not name the member, so that the same thing of several is said once.
type memberError struct {
	root string
	said string
	// ours says that what is to be put right is in how the two are set up, and not
	// that the member is away for a while.
	ours bool
	err  error
}

func (e *memberError) Error() string { return e.root + ": " + e.said }
func (e *memberError) Unwrap() error { return e.err }

// cause is the same for what differs only in when it was noticed.
func (e *memberError) cause() string { return dates.ReplaceAllString(e.said, "") }

// dates are those that date writes.
var dates = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)

// failure makes one of an error of a request to a member, or a connection to it.
// New is a member that has not answered since the start.
func (f tlsFiles) failure(root string, err error, new bool) error {
	var local fileError
	if errors.As(err, &local) {
		return local
	}
	e := &memberError{root: root, err: err}
	if e.said = f.tls(root, err); e.said != "" {
		e.ours = true
		return e
	}
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		var no *os.SyscallError
		switch {
		case errors.As(err, &no):
			e.said = "connecting to it: " + no.Err.Error()
		case op.Timeout():
			e.said = fmt.Sprintf("connecting to it: no answer within %v", dialTimeout)
		default:
			e.said = "connecting to it: " + op.Err.Error()
		}
	case new && hungUp(err):
		// etcd does so when it is spoken to in the wrong way.
		other := "with TLS, write https://"
		if strings.HasPrefix(root, "https://") {
			other = "without TLS, write http://"
		}
		e.said = fmt.Sprintf("it hangs up: %v (if etcd is served there %s in --etcd-endpoints)", err, other)
	default:
		e.said = err.Error()
	}
	return e
}

// hungUp reports whether the other side has ended a connection, or said something
// that is no HTTP.
func hungUp(err error) bool {
	text := err.Error()
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		strings.HasSuffix(text, "EOF") || strings.Contains(text, "malformed HTTP")
}

// tls is what is wrong where this side or the other does not take the other's
// certificate, and empty if that is not it.
func (f tlsFiles) tls(root string, err error) string {
	var verify *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &verify):
		var cert *x509.Certificate
		if len(verify.UnverifiedCertificates) > 0 {
			cert = verify.UnverifiedCertificates[0]
		}
		return f.untrusted(root, cert, verify.Err)
	case errors.As(err, &header):
		return "it does not speak TLS (if etcd is served there without TLS, write http:// in --etcd-endpoints)"
	}
	switch alert(err) {
	case "":
		return ""
	case "certificate required":
		return f.refused("")
	case "bad certificate", "unknown certificate", "unsupported certificate", "certificate revoked":
		return f.refused("takes it for bad")
	case "expired certificate":
		return f.refused("says that it has expired")
	case "unknown certificate authority":
		return f.refused("does not trust who issued it")
	}
	return "it refuses TLS: " + alert(err)
}

// untrusted is why this side does not take etcd's certificate.
func (f tlsFiles) untrusted(root string, cert *x509.Certificate, err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown) && f.ca == "":
		return fmt.Sprintf("its certificate%s is of none of the CAs that this system trusts; name the file with etcd's CA with --etcd-cafile", issued(cert))
	case errors.As(err, &unknown):
		return fmt.Sprintf("its certificate%s is of none of the CAs in %s; put the certificate of etcd's CA there, or name another file with --etcd-cafile", issued(cert), f.ca)
	case errors.As(err, &name):
		return fmt.Sprintf("its certificate is for %s and not for %s; use one of its names in --etcd-endpoints, or have one issued that has this name", names(name.Certificate), name.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		what := "its certificate"
		if c := invalid.Cert; c != nil && c != cert {
			what, cert = fmt.Sprintf("the CA of its certificate, %q,", c.Subject.CommonName), c
		}
		if cert != nil && time.Now().Before(cert.NotBefore) {
			return fmt.Sprintf("%s is valid only from %s on; see to the clock of this host, where it is %s", what, date(cert.NotBefore), date(time.Now()))
		} else if cert != nil {
			return fmt.Sprintf("%s has expired, at %s; renew it", what, date(cert.NotAfter))
		}
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "its certificate is not one for servers; have one issued with the extended key usage serverAuth"
	}
	return "its certificate is not to be trusted: " + err.Error()
}

// refused is why etcd does not take this side's certificate, of which it says little.
func (f tlsFiles) refused(says string) string {
	leaf := f.leaf()
	switch {
	case leaf == nil:
		return "it wants a client certificate; give --etcd-certfile and --etcd-keyfile, of a CA that it trusts"
	case time.Now().After(leaf.NotAfter):
		return fmt.Sprintf("it refuses the client certificate in %s, which has expired, at %s; renew it", f.cert, date(leaf.NotAfter))
	case time.Now().Before(leaf.NotBefore):
		return fmt.Sprintf("it refuses the client certificate in %s, which is valid only from %s on; see to the clocks", f.cert, date(leaf.NotBefore))
	case says == "says that it has expired":
		return fmt.Sprintf("it refuses the client certificate in %s and %s, which by this host's clock is only so from %s on; see to the clocks", f.cert, says, date(leaf.NotAfter))
	case says == "does not trust who issued it":
		return fmt.Sprintf("it refuses the client certificate in %s%s and %s; use one of a CA in its --trusted-ca-file", f.cert, issued(leaf), says)
	case says == "":
		says = "has not got it"
	}
	return fmt.Sprintf("it refuses the client certificate in %s%s and %s; use one for clients, of a CA in its --trusted-ca-file (etcd's log says more)", f.cert, issued(leaf), says)
}

// alert is what the other side has ended TLS with, empty if it has not.
func alert(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	// The transport may have made a text of it.
	_, text, _ := strings.Cut(err.Error(), "remote error: tls: ")
	return text
}

func issued(cert *x509.Certificate) string {
	if cert == nil {
		return ""
	}
	return fmt.Sprintf(", issued by %q,", cert.Issuer.CommonName)
}

// names are what a certificate is for.
func names(cert *x509.Certificate) string {
	all := cert.DNSNames
	for _, ip := range cert.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a.Unmap().String())
		}
	}
	if len(all) == 0 {
		return "no name or address at all"
	}
	return strings.Join(all, ", ")
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }
