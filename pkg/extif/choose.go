package extif

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"k8s.io/klog/v2"
)

// snapshot is what there is to choose from.
type snapshot struct {
	links []link // as the kernel lists them
	// defaults are the IPv4 default routes as the kernel lists them.
	defaults []defaultRoute
	// reach is the index of the interface that the kernel sends to CanReach
	// through, reachErr why there is none.
	reach    int
	reachErr error
}

type link struct {
	name     string
	index    int
	mtu      int
	mac      string
	up       bool
	loopback bool
	port     bool // of a bridge, a bond or the like
	addrs    []address
}

type address struct {
	prefix    netip.Prefix // host bits kept
	secondary bool
	global    bool // by the scope it was given
}

type defaultRoute struct {
	index  int // of the interface; that of the first next hop where there are several
	metric int
}

// choose makes the choice. regexes are those of opts, compiled.
func choose(opts Options, regexes []*regexp.Regexp, host snapshot) (Interface, error) {
	var failed []string
	take := func(asked string, l *link, addr netip.Addr) (Interface, error) {
		for _, f := range failed {
			klog.V(1).Infof("%s; going by %s", f, asked)
		}
		if !l.up {
			klog.Warningf("%s chose interface %s, which is down: no traffic between hosts until it is up (ip link set %s up)", asked, l.name, l.name)
		}
		i := Interface{Name: l.name, Index: l.index, MTU: l.mtu, MAC: l.mac, Addr: addr, Up: l.up, Chosen: asked}
		for _, a := range l.addrs {
			i.Addrs = append(i.Addrs, a.prefix)
		}
		return i, nil
	}

	for _, want := range opts.Ifaces {
		if want == "" {
			continue
		}
		asked := "--iface=" + want
		if addr, err := netip.ParseAddr(want); err == nil {
			if l := host.withAddr(addr); l != nil {
				return take(asked, l, addr)
			}
			failed = append(failed, asked+": no interface has this address")
			continue
		}
		l := host.named(want)
		switch {
		case l == nil:
			failed = append(failed, asked+": no such interface")
		case len(l.addrs) == 0:
			failed = append(failed, asked+": the interface has no IPv4 address")
		default:
			return take(asked, l, l.prefer(opts.PublicIP, nil))
		}
	}

	for _, re := range regexes {
		asked := "--iface-regex=" + re.String()
		links := host.loopbackLast()
		for _, l := range links {
			if addr := l.prefer(opts.PublicIP, re); addr.IsValid() {
				return take(asked, l, addr)
			}
		}
		var without []string
		for _, l := range links {
			if !re.MatchString(l.name) {
				continue
			}
			if len(l.addrs) > 0 {
				return take(asked, l, l.prefer(opts.PublicIP, nil))
			}
			without = append(without, l.name)
		}
		if len(without) > 0 {
			failed = append(failed, fmt.Sprintf("%s: matches only interfaces that have no IPv4 address (%s)", asked, strings.Join(without, ", ")))
		} else {
			failed = append(failed, asked+": matches no IPv4 address and no name of an interface")
		}
	}

	if opts.CanReach.IsValid() {
		asked := "--iface-can-reach=" + opts.CanReach.String()
		l := host.indexed(host.reach)
		switch {
		case host.reachErr != nil:
			failed = append(failed, fmt.Sprintf("%s: the kernel has no route to it (%v)", asked, host.reachErr))
		case l == nil:
			failed = append(failed, fmt.Sprintf("%s: the kernel's route to it leads through interface number %d, which is gone", asked, host.reach))
		case l.loopback:
			failed = append(failed, asked+": is an address of this host itself; it must be one of another host")
		case len(l.addrs) == 0:
			failed = append(failed, fmt.Sprintf("%s: is reached through %s, which has no IPv4 address", asked, l.name))
		default:
			return take(asked, l, l.prefer(opts.PublicIP, nil))
		}
	}

	if len(failed) == 0 {
		const asked = "the IPv4 default route"
		l, hint := host.byDefault()
		switch {
		case l == nil:
			failed = append(failed, "there is no IPv4 default route to choose the interface by; name it with --iface")
		case len(l.addrs) == 0:
			failed = append(failed, fmt.Sprintf("%s%s leads through %s, which has no IPv4 address; name another interface with --iface", asked, hint, l.name))
		default:
			return take(asked+hint, l, l.prefer(opts.PublicIP, nil))
		}
	}
	return Interface{}, errors.New(strings.Join(failed, "; ") + "; there are: " + host.String())
}

// prefer is the address of l that stands for the host: public where l has it,
// else the first global one that is not secondary, else the next best. With a
// regular expression only addresses that match it count. It is the zero Addr
// when there is none.
func (l *link) prefer(public netip.Addr, re *regexp.Regexp) netip.Addr {
	var best netip.Addr
	bestRank := 0
	for _, a := range l.addrs {
		addr := a.prefix.Addr()
		if re != nil && !re.MatchString(addr.String()) {
			continue
		}
		if addr == public {
			return addr
		}
		var rank int
		switch {
		case addr.IsLoopback():
			rank = 1
		case !a.global || addr.IsLinkLocalUnicast():
			rank = 2
		case a.secondary:
			rank = 3
		default:
			rank = 4
		}
		if rank > bestRank {
			best, bestRank = addr, rank
		}
	}
	return best
}

func (s *snapshot) find(is func(l *link) bool) *link {
	for i := range s.links {
		if is(&s.links[i]) {
			return &s.links[i]
		}
	}
	return nil
}

func (s *snapshot) named(name string) *link {
	return s.find(func(l *link) bool { return l.name == name })
}

func (s *snapshot) indexed(index int) *link {
	return s.find(func(l *link) bool { return l.index == index })
}

func (s *snapshot) withAddr(addr netip.Addr) *link {
	return s.find(func(l *link) bool {
		return slices.ContainsFunc(l.addrs, func(a address) bool { return a.prefix.Addr() == addr })
	})
}

// loopbackLast is all links with the loopback behind the others: a regular
// expression such as "1.*" matches its address too, and hardly means it.
func (s *snapshot) loopbackLast() []*link {
	var links, last []*link
	for i := range s.links {
		if s.links[i].loopback {
			last = append(last, &s.links[i])
		} else {
			links = append(links, &s.links[i])
		}
	}
	return append(links, last...)
}

// byDefault is the interface of the default route that the kernel prefers, the
// one of lowest metric, with a remark on which that was if there are several.
func (s *snapshot) byDefault() (*link, string) {
	var best *link
	metric, n := 0, 0
	for _, route := range s.defaults {
		l := s.indexed(route.index)
		if l == nil || l.loopback {
			continue
		}
		n++
		if best == nil || route.metric < metric {
			best, metric = l, route.metric
		}
	}
	if n > 1 {
		return best, fmt.Sprintf(" of lowest metric (%d)", metric)
	}
	return best, ""
}

// String lists the interfaces with their addresses, for error messages. Ports
// without an address cannot be meant, and of the others without one a host of
// many containers has hundreds, so that only a few are named.
func (s *snapshot) String() string {
	const maxBare = 8
	var list []string
	bare := 0
	for _, l := range s.links {
		var addrs []string
		for _, a := range l.addrs {
			addrs = append(addrs, a.prefix.Addr().String())
		}
		what := strings.Join(addrs, ", ")
		if len(addrs) == 0 {
			if l.port {
				continue
			}
			if bare++; bare > maxBare {
				continue
			}
			what = "no IPv4 address"
		}
		if !l.up {
			what += ", down"
		}
		list = append(list, l.name+" ("+what+")")
	}
	if bare > maxBare {
		list = append(list, fmt.Sprintf("and %d more without an IPv4 address", bare-maxBare))
	}
	if len(list) == 0 {
		return "no interfaces at all"
	}
	return strings.Join(list, ", ")
}
