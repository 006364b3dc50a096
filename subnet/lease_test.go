package subnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func itoa[T int | uint64](n T) string { return fmt.Sprint(n) }

func TestKey(t *testing.T) {
	for key, want := range map[string]string{
		"10.253.36.0-24": "10.253.36.0/24",
		"10.1.0.4-30":    "10.1.0.4/30",
		"0.0.0.0-0":      "0.0.0.0/0",
	} {
		p, err := ParseKey(key)
		if err != nil || p.String() != want {
			t.Errorf("ParseKey(%q) = %v, %v", key, p, err)
		}
		if FormatKey(p) != key {
			t.Errorf("FormatKey(%v) = %q, want %q", p, FormatKey(p), key)
		}
	}
	for _, key := range []string{"", "config", "10.1.5.0", "10.1.5.0/24", "10.1.5.0-", "10.1.5.0-33", "10.1.5.0--1", "10.1.5.0-024",
		"10.1.5.0-+24", "10.1.5.7-24", "10.1.5-24", "010.1.5.0-24", "fd00::-64", "10.1.5.0-24-fd00::-64", "::ffff:10.1.5.0-24"} {
		if p, err := ParseKey(key); err == nil {
			t.Errorf("ParseKey(%q) = %v", key, p)
		}
	}
}

func TestAttrs(t *testing.T) {
	// As written by the daemons in the field, and as written back.
	for value, want := range map[string]string{
		`{"PublicIP":"172.16.16.81","BackendType":"vxlan","BackendData":{"VtepMAC":"ca:4f:c9:70:58:48"}}`: "",
		`{"PublicIP":"10.4.7.21","BackendType":"host-gw"}`:                                                "",
		`{"PublicIP":"10.4.7.21"}`: `{"PublicIP":"10.4.7.21","BackendType":"udp"}`,
		`{"PublicIP":"10.4.7.21","BackendType":"host-gw","BackendData":null}`:                                                              `{"PublicIP":"10.4.7.21","BackendType":"host-gw"}`,
		`{ "PublicIP": "1.2.3.4", "PublicIPv6": null, "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "ca:4f:c9:70:58:48"} }`: `{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ca:4f:c9:70:58:48"}}`,
	} {
		if want == "" {
			want = value
		}
		a, err := DecodeAttrs(value)
		if err != nil {
			t.Errorf("%s: %v", value, err)
			continue
		}
		got, err := EncodeAttrs(a)
		if err != nil || got != want {
			t.Errorf("%s is written back as %s, %v", value, got, err)
		}
		if b, err := DecodeAttrs(got); err != nil || !a.Equal(b) {
			t.Errorf("%s does not come back equal: %+v, %+v, %v", value, a, b, err)
		}
	}
	for value, want := range map[string]string{
		``:                               "not the expected JSON",
		`hello`:                          "not the expected JSON",
		`null`:                           `PublicIP "" is not an IPv4 address`,
		`{}`:                             `PublicIP "" is not an IPv4 address`,
		`[]`:                             "not the expected JSON",
		`{"PublicIP":7}`:                 "not the expected JSON",
		`{"PublicIP":"host1"}`:           `PublicIP "host1" is not an IPv4 address`,
		`{"PublicIP":"fd00::1"}`:         `PublicIP "fd00::1" is not an IPv4 address`,
		`{"PublicIP":"0.0.0.0"}`:         "not an address a host can be reached at",
		`{"PublicIP":"224.0.0.1"}`:       "not an address a host can be reached at",
		`{"PublicIP":"255.255.255.255"}`: "not an address a host can be reached at",
	} {
		if a, err := DecodeAttrs(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want an error with %q", value, a, err, want)
		}
	}
	if (Attrs{PublicIP: netip.MustParseAddr("1.2.3.4"), BackendType: "udp"}).Equal(Attrs{PublicIP: netip.MustParseAddr("1.2.3.4"), BackendType: "vxlan"}) {
		t.Error("another backend is taken for equal")
	}
}
