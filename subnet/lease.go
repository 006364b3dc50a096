package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// TTL is how long a lease lasts when nobody renews it.
const TTL = 24 * time.Hour

// Attrs is what a host says about itself in its lease, for its peers to read.
type Attrs struct {
	// PublicIP is the IPv4 address at which the host's peers reach it.
	PublicIP netip.Addr
	// BackendType is the backend the host runs. Leases written without one
	// are of the oldest backend, udp; DecodeAttrs fills that in.
	BackendType string
	// BackendData is what peers need beyond PublicIP, as that backend's own
	// JSON object; nil where there is nothing more to say.
	BackendData json.RawMessage `json:",omitempty"`
}

// Equal reports whether a and b would be written as the same value.
func (a Attrs) Equal(b Attrs) bool {
	return a.PublicIP == b.PublicIP && a.BackendType == b.BackendType && bytes.Equal(a.BackendData, b.BackendData)
}

// Lease is one host's hold on one subnet, as it stands in the store.
type Lease struct {
	// Subnet is the leased prefix, host bits zero.
	Subnet netip.Prefix
	Attrs
	// Expires is when the lease ends unless renewed, on this host's own clock
	// (with its monotonic reading, so that setting the clock does not move
	// it). The zero time marks a reservation, which does not end.
	Expires time.Time
	// Revision is the store's version of the entry. A write that names it
	// succeeds only while nobody else has written the entry since.
	Revision uint64
	// Created is the Revision of when the lease was claimed. Taking it over or
	// renewing it leaves that as it is.
	Created uint64
}

// Reserved reports whether the lease is an operator's reservation: one without
// an end, which stays one whoever takes it.
func (l Lease) Reserved() bool { return l.Expires.IsZero() }

// String names the lease in messages: its subnet and who holds it.
func (l Lease) String() string {
	return fmt.Sprintf("%v (held by %v)", l.Subnet, l.PublicIP)
}

// FormatKey is the name of a subnet's entry in the store, e.g. 10.253.36.0-24.
func FormatKey(subnet netip.Prefix) string {
	return fmt.Sprintf("%v-%d", subnet.Addr(), subnet.Bits())
}

// ParseKey reads what FormatKey wrote. It accepts IPv4 only, and only a prefix
// whose host bits are zero: any other spelling would be a second name for a
// subnet that another host may hold under the first.
func ParseKey(key string) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(key, "-")
	if !ok {
		return netip.Prefix{}, errors.New("the key is not of the form <a.b.c.d>-<length>")
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || !a.Is4() {
		return netip.Prefix{}, errors.New("the key does not begin with an IPv4 address")
	}
	n, err := strconv.Atoi(bits)
	if err != nil || n < 0 || n > 32 || strconv.Itoa(n) != bits {
		return netip.Prefix{}, errors.New("the key does not end with a prefix length")
	}
	p := netip.PrefixFrom(a, n)
	if p.Masked() != p {
		return netip.Prefix{}, fmt.Errorf("the key has host bits set: the subnet would be %v", p.Masked())
	}
	return p, nil
}

// Reachable reports whether an address can be that of a host, for other hosts
// to reach it at.
func Reachable(a netip.Addr) bool { return a.Is4() && (a.IsGlobalUnicast() || a.IsLinkLocalUnicast()) }

// attrsJSON is the value of a lease as every daemon of the field writes it.
type attrsJSON struct {
	PublicIP    string
	BackendType string          `json:",omitempty"`
	BackendData json.RawMessage `json:",omitempty"`
}

// EncodeAttrs writes the value of a lease.
func EncodeAttrs(a Attrs) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // what is in the BackendData stays as it is
	if err := e.Encode(attrsJSON{a.PublicIP.String(), a.BackendType, a.BackendData}); err != nil {
		return "", fmt.Errorf("encoding the lease of %v: %w", a.PublicIP, err)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// DecodeAttrs reads the value of a lease. The BackendData comes back compact,
// so that two spellings of one object compare equal; its content is for the
// backend to judge.
func DecodeAttrs(value string) (Attrs, error) {
	var v attrsJSON
	if err := json.Unmarshal([]byte(value), &v); err != nil {
		return Attrs{}, fmt.Errorf("the value is not the expected JSON: %w", err)
	}
	ip, err := netip.ParseAddr(v.PublicIP)
	if err != nil || !ip.Is4() {
		return Attrs{}, fmt.Errorf("its PublicIP %q is not an IPv4 address", v.PublicIP)
	}
	if !Reachable(ip) {
		return Attrs{}, fmt.Errorf("its PublicIP %v is not an address a host can be reached at", ip)
	}
	if strings.ContainsFunc(v.BackendType, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return Attrs{}, fmt.Errorf("its BackendType %q is no name", v.BackendType) // nor for logs and terminals
	}
	a := Attrs{PublicIP: ip, BackendType: v.BackendType}
	if a.BackendType == "" {
		a.BackendType = "udp"
	}
	if len(v.BackendData) > 0 && string(v.BackendData) != "null" {
		a.BackendData = v.BackendData
		if bytes.ContainsAny(v.BackendData, " \t\r\n") { // JSON has no other blanks
			var compact bytes.Buffer
			if err := json.Compact(&compact, v.BackendData); err != nil {
				return Attrs{}, fmt.Errorf("its BackendData: %w", err)
			}
			a.BackendData = compact.Bytes()
		}
	}
	return a, nil
}
