package subnet_test

import (
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"flanneld/pkg/prefix"
	"flanneld/subnet"
)

// The configs that are in the field.
var fieldConfigs = []string{
	`{"Network": "172.7.0.0/16", "Backend": {"Type": "host-gw"}}`,
	`{"Network": "172.7.0.0/16", "Backend": {"Type": "vxlan","Directrouting": true}}`,
	`{"Network": "172.17.0.1/16","SubnetMin": "172.17.0.0", "SubnetMax": "172.17.254.0","Backend":{"Type":"vxlan"}}`,
	`{"Network":"172.17.0.1/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}`,
	`{"Network":"172.17.0.0/16","SubnetLen":24,"SubnetMin":"172.17.0.0","SubnetMax":"172.17.254.0","Backend":{"Type":"udp","Port":7890}}`,
	`{"Network":"10.253.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}`,
	`{ "Network": "10.1.0.0/16" }`,
	`{"Network": "192.168.0.1/16","SubnetLen": 24,"Backend": {"Type": "host-gw"}}`,
}

// oneLine fails unless an error can stand in one line of a log, and says
// something there.
func oneLine(t *testing.T, err error) {
	t.Helper()
	if strings.TrimSpace(err.Error()) == "" || strings.ContainsFunc(err.Error(), unicode.IsControl) {
		t.Errorf("the message %q", err)
	}
}

// Whatever is written as the config, flanneld does not fall over it: it is
// refused in one line, or is a config by which every host counts the same
// subnets. addr and bits are a subnet that may be one of them.
func FuzzParseConfig(f *testing.F) {
	for _, text := range append(fieldConfigs,
		`{"Network": "10.0.0.0/8", "SubnetLen": 30, "SubnetMin": "10.0.0.0", "SubnetMax": "10.255.255.252"}`,
		`{"Network": "10.1.0.240/28"}`, `{"Network": "128.0.0.0/2", "SubnetLen": 4, "SubnetMin": "128.0.0.0"}`, `{"Network": "0.0.0.0/2"}`,
		`{"network": "10.1.0.0/16", "SUBNETLEN": 25, "subnetmin": "10.1.0.128", "Subnetmax": "10.1.1.0", "bAckend": {"tYPE": "VXLAN"}, "Backends": null}`,
		`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.9.0", "SubnetMax": "10.1.8.0"}`, `{"Network": "10.1.0.0/16", "SubnetMin": "10.1.5.7"}`,
		`{"Network": "10.1.0.0/16", "SubnetLen": 1e2}`, `{"Network": 10}`, `{"Network": "fd00::/48"}`, `{"Network": "10.1.0.0/16", "Backend": {}}`,
		`{"Network": "10.1.0.0/16", "network": "10.2.0.0/16"}`, ``, `null`, `[]`, `{"Network`, "\n", `{}{}`,
		`{"A\nB":1,"a\nb":2}`, "{\"Network\": \"10.1.0.0/16\", \"Backend\": {\"x\\u001b[31m\": 1, \"X\\u001b[31m\": 1}}",
	) {
		f.Add(text, uint32(10<<24|1<<16|5<<8), uint8(24))
	}
	f.Fuzz(func(t *testing.T, text string, addr uint32, bits uint8) {
		c, err := subnet.ParseConfig(text)
		if err != nil {
			oneLine(t, err)
			return
		}
		inNetwork := func(p netip.Prefix) bool {
			return p.Addr().Is4() && p.Bits() == c.SubnetLen && p.Masked() == p && prefix.Contains(c.Network, p)
		}
		if n := c.Network; !n.Addr().Is4() || n.Masked() != n || n.Bits() < 1 || n.Bits() > 28 {
			t.Errorf("the network %v", n)
		}
		if c.SubnetLen < c.Network.Bits()+2 || c.SubnetLen > 30 {
			t.Errorf("subnets of length %d in %v", c.SubnetLen, c.Network)
		}
		if !inNetwork(c.SubnetMin) || !inNetwork(c.SubnetMax) || c.SubnetMax.Addr().Less(c.SubnetMin.Addr()) {
			t.Errorf("subnets of length %d from %v to %v in %v", c.SubnetLen, c.SubnetMin, c.SubnetMax, c.Network)
		}
		if c.Backend == nil || c.BackendType != strings.ToLower(c.BackendType) {
			t.Errorf("the backend %q, %v", c.BackendType, c.Backend)
		}
		c.Unknown()
		if t.Failed() {
			return // what follows makes no sense then
		}

		// Reckoned in numbers here, not by prefixes.
		first, last, size := uint64(prefix.Uint(c.SubnetMin.Addr())), uint64(prefix.Uint(c.SubnetMax.Addr())), uint64(1)<<(32-c.SubnetLen)
		if want := (last-first)/size + 1; c.Subnets() != want {
			t.Errorf("%v: %d subnets, want %d", c, c.Subnets(), want)
		}
		for _, n := range []uint64{0, uint64(addr) % c.Subnets(), c.Subnets() - 1} {
			want := netip.PrefixFrom(prefix.FromUint(uint32(first+n*size)), c.SubnetLen)
			if got := c.Nth(n); got != want || !c.Fits(got) {
				t.Errorf("%v: the subnet number %d is %v, want %v; it fits: %t", c, n, got, want, c.Fits(got))
			}
		}
		// The one that was given, the same with this network's length, and those
		// just beyond both ends.
		for _, p := range []netip.Prefix{
			netip.PrefixFrom(prefix.FromUint(addr), int(bits%33)),
			netip.PrefixFrom(prefix.FromUint(addr), c.SubnetLen).Masked(),
			netip.PrefixFrom(prefix.FromUint(uint32(first-size)), c.SubnetLen),
			netip.PrefixFrom(prefix.FromUint(uint32(last+size)), c.SubnetLen),
		} {
			at := uint64(prefix.Uint(p.Addr()))
			want := p.Bits() == c.SubnetLen && at >= first && at <= last && (at-first)%size == 0
			if got := c.Fits(p); got != want {
				t.Errorf("%v: %v fits: %t, want %t", c, p, got, want)
			}
		}
	})
}

// A key is read only where it is just the one name of a subnet, so that no two
// hosts can hold one subnet under two names; and each subnet's name is read.
func FuzzParseKey(f *testing.F) {
	for _, key := range []string{
		"10.253.36.0-24", "10.1.0.4-30", "0.0.0.0-0", "255.255.255.255-32", "10.1.5.7-24", "10.1.5.0/24", "10.1.5.0-024", "10.1.5.0-+24",
		"10.1.5.0--1", "010.1.5.0-24", "10.1.5.0-33", "fd00::-64", "::ffff:10.1.5.0-24", "10.1.5.0-24-fd00::-64", "10.1.5.0%eth0-24", "10.1.5.0-24 ", "config", "",
	} {
		f.Add(key, uint32(10<<24|1<<16|5<<8), uint8(24))
	}
	f.Fuzz(func(t *testing.T, key string, addr uint32, bits uint8) {
		if p, err := subnet.ParseKey(key); err != nil {
			oneLine(t, err)
		} else if !p.IsValid() || !p.Addr().Is4() || p.Masked() != p || subnet.FormatKey(p) != key {
			t.Errorf("%q is read as %v, whose key is %q", key, p, subnet.FormatKey(p))
		}
		p := netip.PrefixFrom(prefix.FromUint(addr), int(bits%33)).Masked()
		if got, err := subnet.ParseKey(subnet.FormatKey(p)); err != nil || got != p {
			t.Errorf("the key of %v is %q, read as %v, %v", p, subnet.FormatKey(p), got, err)
		}
	})
}

// Whatever stands in a lease, flanneld does not fall over it: it is refused in
// one line, or names an address that hosts can have, and means the same when it
// is written again.
func FuzzDecodeAttrs(f *testing.F) {
	for _, value := range []string{
		`{"PublicIP":"172.16.16.81","BackendType":"vxlan","BackendData":{"VtepMAC":"ca:4f:c9:70:58:48"}}`,
		`{"PublicIP":"10.4.7.21","BackendType":"host-gw"}`, `{"PublicIP":"10.4.7.21"}`, `{"PublicIP":"10.4.7.21","BackendType":"host-gw","BackendData":null}`,
		`{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ca:4f:c9:70:58:48"}}`,
		`{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ca:4f:c9:70:58:48"},"BackendV6Data":null}`,
		`{ "PublicIP": "1.2.3.4",` + "\n\t" + `"BackendType": "wireguard", "BackendData": { "PublicKey": "a+/=", "x": [ 1, "ä\u00e4 ", -1.5e3 ] } }`,
		`{"publicip":"1.2.3.4","PublicIP":"1.2.3.5","BackendType":""}`, `{"PublicIP":"169.254.1.1"}`, `{"PublicIP":"0.0.0.0"}`, `{"PublicIP":"224.0.0.1"}`,
		`{"PublicIP":"127.0.0.1"}`, `{"PublicIP":"255.255.255.255"}`, `{"PublicIP":"::ffff:1.2.3.4"}`, `{"PublicIP":"fd00::1%eth0"}`, `{"PublicIP":"host\n1"}`, `{"PublicIP":7}`,
		`{}`, `null`, `[]`, `hello`, ``, `{"PublicIP":"1.2.3.4","BackendData":"x"}`, `{"PublicIP":"1.2.3.4"} }`,
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		a, err := subnet.DecodeAttrs(value)
		if err != nil {
			oneLine(t, err)
			return
		}
		if !a.Equal(a) {
			t.Errorf("%+v is not equal to itself", a)
		}
		if !subnet.Reachable(a.PublicIP) || a.BackendType == "" {
			t.Errorf("%q is read as %+v", value, a)
		}
		written, err := subnet.EncodeAttrs(a)
		if err != nil {
			t.Fatalf("%q cannot be written again: %v", value, err)
		}
		if b, err := subnet.DecodeAttrs(written); err != nil || !a.Equal(b) || !b.Equal(a) {
			t.Errorf("%q is read as %+v; written again, %q, it is read as %+v, %v", value, a, written, b, err)
		}
	})
}
