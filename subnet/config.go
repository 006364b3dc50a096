package subnet

import (
	"fmt"
	"net/netip"
	"strings"

	"flanneld/pkg/jsonfields"
	"flanneld/pkg/prefix"
)

// Config is the network config every host of a cluster shares.
type Config struct {
	// Network is the prefix that all subnets lie in, host bits zero.
	Network netip.Prefix
	// SubnetLen is the prefix length of every subnet.
	SubnetLen int
	// SubnetMin and SubnetMax are the first and the last subnet that may be
	// leased.
	SubnetMin, SubnetMax netip.Prefix
	// BackendType is the backend's name in lower case.
	BackendType string
	// Backend holds the backend's own fields, for the backend to read.
	Backend *jsonfields.Object

	fields *jsonfields.Object
}

// Bounds of the config table.
const (
	smallestNetwork   = 28 // longest prefix a Network may have
	longestSubnetLen  = 30 // leaves a subnet two usable addresses
	defaultSubnetLen  = 24
	defaultLenNetwork = 22 // longest Network that defaultSubnetLen is for
	subnetLenMargin   = 2  // bits between Network and SubnetLen: at least four subnets
)

// ParseConfig reads a network config as operators write it and checks all but
// the backend's own fields. Its errors name the field and show its value. It
// does not see fields that nobody knows: once the backend has read its own,
// Unknown lists them.
func ParseConfig(text string) (Config, error) {
	fields, err := jsonfields.Parse([]byte(text))
	if err != nil {
		return Config{}, err
	}
	c := Config{fields: fields}
	for _, read := range []func(*Config) error{readNetwork, readSubnetLen, readRange, readBackend} {
		if err := read(&c); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

func readNetwork(c *Config) error {
	const name = "Network"
	s, err := c.fields.String(name, "")
	if err != nil {
		return err
	}
	if !c.fields.Has(name) {
		return c.fields.Errorf(name, `is missing: give the IPv4 prefix that all subnets are taken from, like "10.1.0.0/16"`)
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return c.fields.Errorf(name, `must be an IPv4 prefix like "10.1.0.0/16"`)
	case !p.Addr().Is4():
		return c.fields.Errorf(name, "must be an IPv4 prefix, IPv6 is not supported")
	case p.Bits() > smallestNetwork:
		return c.fields.Errorf(name, "is too small, a network is a /%d at least", smallestNetwork)
	case p.Bits() == 0:
		return c.fields.Errorf(name, "would take in every address there is")
	}
	c.Network = p.Masked()
	for _, unusable := range []string{"127.0.0.0/8", "224.0.0.0/4"} { // RFC 1122 3.2.1.3, RFC 5771
		if c.Network.Overlaps(netip.MustParsePrefix(unusable)) {
			return c.fields.Errorf(name, "overlaps %s, whose addresses no host can have", unusable)
		}
	}
	return nil
}

func readSubnetLen(c *Config) error {
	least := c.Network.Bits() + subnetLenMargin
	def := least
	if c.Network.Bits() <= defaultLenNetwork {
		def = defaultSubnetLen
	}
	var err error
	c.SubnetLen, err = c.fields.Int("SubnetLen", def, least, longestSubnetLen)
	return err
}

func readRange(c *Config) error {
	last := prefix.Count(c.Network, c.SubnetLen) - 1
	var err error
	if c.SubnetMin, err = c.bound("SubnetMin", 1); err != nil {
		return err
	}
	if c.SubnetMax, err = c.bound("SubnetMax", last); err != nil {
		return err
	}
	if c.SubnetMax.Addr().Less(c.SubnetMin.Addr()) {
		if c.fields.Has("SubnetMax") {
			return c.fields.Errorf("SubnetMax", "lies below SubnetMin, which is %v", c.SubnetMin.Addr())
		}
		return c.fields.Errorf("SubnetMin", "lies above SubnetMax, which is %v", c.SubnetMax.Addr())
	}
	return nil
}

// bound reads SubnetMin or SubnetMax; where it is not given, it is the subnet
// with def others before it.
func (c *Config) bound(name string, def uint64) (netip.Prefix, error) {
	s, err := c.fields.String(name, "")
	if err != nil {
		return netip.Prefix{}, err
	}
	if !c.fields.Has(name) {
		return prefix.Nth(c.Network, c.SubnetLen, def), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Prefix{}, c.fields.Errorf(name, `must be an IPv4 address like "%v"`, prefix.Nth(c.Network, c.SubnetLen, def).Addr())
	}
	if !c.Network.Contains(a) {
		return netip.Prefix{}, c.fields.Errorf(name, "lies outside Network, which is %v", c.Network)
	}
	p := netip.PrefixFrom(a, c.SubnetLen)
	if p.Masked() != p {
		return netip.Prefix{}, c.fields.Errorf(name, "is not where a subnet of length %d begins, the nearest one below begins at %v", c.SubnetLen, p.Masked().Addr())
	}
	return p, nil
}

func readBackend(c *Config) error {
	if !c.fields.Has("Backend") {
		_, err := c.fields.Object("Backend") // so that a null counts as known
		if err != nil {
			return err
		}
		c.BackendType = "udp"
		empty, err := jsonfields.Parse([]byte(`{"Backend": {}}`))
		if err != nil {
			return err
		}
		c.Backend, err = empty.Object("Backend")
		return err
	}
	var err error
	if c.Backend, err = c.fields.Object("Backend"); err != nil {
		return err
	}
	t, err := c.Backend.String("Type", "")
	if err != nil {
		return err
	}
	if !c.Backend.Has("Type") {
		return c.Backend.Errorf("Type", `is missing: name the backend, like {"Type": "vxlan"}`)
	}
	c.BackendType = strings.ToLower(t)
	return nil
}

// Unknown lists the fields that neither ParseConfig nor the backend has asked
// for.
func (c Config) Unknown() []string {
	return append(c.fields.Unknown(), c.Backend.Unknown()...)
}

// Differences says what is otherwise in c than in before, field by field; nothing
// where the two are the same network, however they are written.
func (c Config) Differences(before Config) []string {
	var all []string
	differ := func(name string, is, was any) {
		if is != was {
			all = append(all, fmt.Sprintf("%s is %v instead of %v", name, is, was))
		}
	}
	differ("Network", c.Network, before.Network)
	differ("SubnetLen", c.SubnetLen, before.SubnetLen)
	differ("SubnetMin", c.SubnetMin.Addr(), before.SubnetMin.Addr())
	differ("SubnetMax", c.SubnetMax.Addr(), before.SubnetMax.Addr())
	differ("Backend.Type", c.BackendType, before.BackendType)
	for _, d := range c.Backend.Differences(before.Backend) {
		if !strings.HasPrefix(d, "Backend.Type ") { // there, the case and the default count
			all = append(all, d)
		}
	}
	return all
}

// Subnets is how many subnets may be leased.
func (c Config) Subnets() uint64 {
	return prefix.Index(c.Network, c.SubnetMax) - prefix.Index(c.Network, c.SubnetMin) + 1
}

// Free is how many of Subnets overlap none of these leases.
func (c Config) Free(leases []*Lease) uint64 { return newTaken(c, leases).free() }

// Nth is the subnet with n others before it among those that may be leased. n
// must be less than Subnets().
func (c Config) Nth(n uint64) netip.Prefix {
	return prefix.Nth(c.Network, c.SubnetLen, prefix.Index(c.Network, c.SubnetMin)+n)
}

// Fits reports whether p is one of the subnets that may be leased.
func (c Config) Fits(p netip.Prefix) bool {
	return p.IsValid() && p.Bits() == c.SubnetLen && p.Masked() == p && c.Network.Contains(p.Addr()) &&
		!p.Addr().Less(c.SubnetMin.Addr()) && !c.SubnetMax.Addr().Less(p.Addr())
}

// String shows the config in the words of its fields.
func (c Config) String() string {
	return fmt.Sprintf("Network %v, SubnetLen %d, SubnetMin %v, SubnetMax %v, Backend %s",
		c.Network, c.SubnetLen, c.SubnetMin.Addr(), c.SubnetMax.Addr(), c.BackendType)
}
