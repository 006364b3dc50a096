// Package extif chooses the interface that carries traffic between hosts, and
// the address of it that stands for this host.
//
// Choose does it all. It takes one look at the kernel (netlink.go) and decides
// from that alone (choose.go), so that each rule of the choice can be read and
// tested without a kernel. It changes nothing, and does not watch: an interface
// that changes later is the business of whoever uses it.
package extif

import (
	"fmt"
	"net/netip"
	"regexp"
)

// Interface is the chosen interface with the address that stands for it.
type Interface struct {
	Name  string
	Index int
	// MTU is in bytes, without the link-layer header.
	MTU int
	// Addr is the interface's IPv4 address that peers are told.
	Addr netip.Addr
	// Addrs are all IPv4 addresses of the interface, each with its on-link prefix.
	Addrs []netip.Prefix
	// MAC is empty on interfaces without a link-layer address.
	MAC string
	// Up says that it was up when it was chosen.
	Up bool
	// Chosen is what it was chosen by, such as "--iface=eth0" or "the IPv4 default
	// route".
	Chosen string
}

// Options say how to choose. What is named first wins: Ifaces in their order,
// then Regexes, then CanReach. With none of them it is the interface of the
// IPv4 default route.
type Options struct {
	// Ifaces are names or IPv4 addresses of interfaces. Empty ones are ignored,
	// since units in the field expand variables that may be empty.
	Ifaces []string
	// Regexes are searched for in the interfaces' IPv4 addresses and then in
	// their names, each in all interfaces before the next. Empty ones are
	// ignored.
	Regexes []string
	// CanReach is an address that the kernel would send to through the
	// interface; the zero Addr is none.
	CanReach netip.Addr
	// PublicIP becomes the interface's Addr where the interface has it and no
	// address was named in Ifaces. It does not choose the interface. The zero
	// Addr is none.
	PublicIP netip.Addr
}

// Validate tells what is wrong with the options whatever the host is like: a
// regular expression that is none, an address that is not IPv4.
func (o Options) Validate() error {
	_, err := o.compile()
	return err
}

// compile is Validate with the regular expressions that come of it.
func (o Options) compile() ([]*regexp.Regexp, error) {
	for _, want := range o.Ifaces {
		if addr, err := netip.ParseAddr(want); err == nil && !addr.Is4() {
			return nil, fmt.Errorf("--iface=%s is not an IPv4 address", want)
		}
	}
	var regexes []*regexp.Regexp
	for _, text := range o.Regexes {
		if text == "" {
			continue
		}
		re, err := regexp.Compile(text)
		if err != nil {
			return nil, fmt.Errorf("--iface-regex=%s is not a regular expression: %w", text, err)
		}
		regexes = append(regexes, re)
	}
	if o.CanReach.IsValid() && !o.CanReach.Is4() {
		return nil, fmt.Errorf("--iface-can-reach=%s is not an IPv4 address", o.CanReach)
	}
	if o.PublicIP.IsValid() && !o.PublicIP.Is4() {
		return nil, fmt.Errorf("--public-ip=%s is not an IPv4 address", o.PublicIP)
	}
	return regexes, nil
}

// Choose returns the interface that opts ask for in the network namespace it is
// called in. Its error says for each thing that was asked for why there is no
// such interface, and which interfaces there are. An interface that is named is
// chosen even when it is down; the log has a warning then.
func Choose(opts Options) (Interface, error) {
	regexes, err := opts.compile()
	if err != nil {
		return Interface{}, err
	}
	host, err := look(opts.CanReach)
	if err != nil {
		return Interface{}, fmt.Errorf("choosing the interface for traffic between hosts: %w", err)
	}
	return choose(opts, regexes, host)
}
