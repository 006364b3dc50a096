package kernel

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"flanneld/pkg/nldump"
	"flanneld/pkg/rtnl"
)

// Owner says by which marks the caller's entries are known.
type Owner struct {
	// Protocol is the protocol number of routes and next hops (rtnetlink(7),
	// rtm_protocol): one that nobody else on the host uses.
	Protocol uint8
	// Device reports whether a device of this name and kind ("vxlan", "tun")
	// is the caller's, if only from a run under another config. Such a device
	// is removed when the State has another or none.
	Device func(name, kind string) bool

	// plain is for tests: it makes do without next-hop objects.
	plain bool
}

// table reads and writes the kernel's tables through netlink.
type table struct {
	owner  Owner
	handle *netlink.Handle // for links and addresses
	socket *rtnl.Socket    // for all else
	links  links
	// torn says that something was read that changes faster than it can be read.
	torn bool
}

// links are the host's interfaces.
type links struct {
	byIndex map[int32]link
	byName  map[string]int32
}

type link struct {
	name string
	mine bool // it is one of ours
	up   bool
}

func (l links) add(index int32, is link) {
	l.byIndex[index], l.byName[is.name] = is, index
}

func (l links) forget(index int32) {
	if name := l.byIndex[index].name; l.byName[name] == index {
		delete(l.byName, name)
	}
	delete(l.byIndex, index)
}

// readLinks notes the interfaces and returns those that are ours.
func (t *table) readLinks() (mine []netlink.Link, err error) {
	all, torn, err := nldump.Whole(t.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing the network interfaces: %w", err)
	}
	t.torn = t.torn || torn
	t.links = links{map[int32]link{}, map[string]int32{}}
	for _, l := range all {
		a := l.Attrs()
		is := link{name: a.Name, mine: t.owner.Device(a.Name, kindOf(l)), up: a.RawFlags&unix.IFF_UP != 0}
		if is.mine {
			mine = append(mine, l)
		}
		t.links.add(int32(a.Index), is)
	}
	return mine, nil
}

// kindOf is the link's kind in the kernel's words, but for a TAP device, which the
// kernel calls "tun" as well. The library calls both "tuntap".
func kindOf(l netlink.Link) string {
	t, ok := l.(*netlink.Tuntap)
	switch {
	case !ok:
		return l.Type()
	case t.Mode == netlink.TUNTAP_MODE_TAP:
		return "tap"
	}
	return "tun"
}

// readRoutes reads the main table and the next hops: those that are ours and
// those in their slots into have, the rest into a Host.
func (t *table) readRoutes() (have, Host, error) {
	var hops hops
	err := t.whole(func() error {
		hops = newHops()
		if t.owner.plain {
			hops.none = true
			return nil
		}
		err := t.socket.NextHops(func(n rtnl.NextHop) { t.addHop(&hops, n) })
		if errors.Is(err, unix.EOPNOTSUPP) { // before Linux 5.3
			hops.none = true
			return nil
		}
		return err
	})
	if err != nil {
		return have{}, Host{}, fmt.Errorf("reading the next hops: %w", err)
	}
	var h have
	var host Host
	err = t.whole(func() error {
		h, host = newHave(hops), NewHost()
		for _, is := range hops.ours {
			is.users = 0
		}
		return t.socket.Routes(unix.RT_TABLE_MAIN, func(r rtnl.Route) { t.addRoute(&h, host, r) })
	})
	if err != nil {
		return h, host, fmt.Errorf("reading the routing table: %w", err)
	}
	return h, host, nil
}

// whole reads something, again if it was torn.
func (t *table) whole(read func() error) error {
	_, torn, err := nldump.Whole(func() (any, error) { return nil, read() })
	t.torn = t.torn || torn
	return err
}

func (t *table) addHop(hops *hops, n rtnl.NextHop) {
	switch {
	case n.Protocol != t.owner.Protocol || n.IPv6: // ours are for IPv4
		hops.taken[n.ID] = n
	case n.Other || !n.Gateway.IsValid():
		hops.ours[n.ID] = &hop{id: n.ID} // whose way no route can want
	default:
		hops.add(n.ID, way{t.links.byIndex[n.Link].name, keyOf(n.Gateway), n.OnLink})
	}
}

func (t *table) addRoute(h *have, host Host, r rtnl.Route) {
	hr := &haveRoute{raw: r}
	if r.NextHop != 0 {
		hr.hop = h.hops.ours[r.NextHop]
		// Where net.ipv4.nexthop_compat_mode is off, the kernel shows no more of a
		// route than the number of its next hop.
		if n, ok := h.hops.taken[r.NextHop]; ok {
			r.Gateway, r.Link, r.Multipath = n.Gateway, n.Link, r.Multipath || n.Other
		}
	}
	link := t.links.byIndex[r.Link]
	hr.Route = Route{Dst: r.Dst, Via: r.Gateway, Dev: link.name, OnLink: r.OnLink}
	if hr.hop != nil {
		hr.Via, hr.Dev, hr.OnLink = hr.hop.via.addr(), hr.hop.dev, hr.hop.onLink
	}
	marked := r.Protocol == t.owner.Protocol
	hr.odd = !marked || r.Other || r.Multipath || r.Dead || r.Type != unix.RTN_UNICAST || r.NextHop != 0 && hr.hop == nil
	switch {
	case marked || link.mine && r.Protocol != unix.RTPROT_KERNEL:
		hr.claim = ours
	case r.Protocol == unix.RTPROT_BOOT || r.Protocol == unix.RTPROT_UNSPEC:
		hr.claim = free
	default:
		hr.claim = foreign
	}
	switch {
	case r.Metric == 0 && r.TOS == 0:
		h.addRoute(hr)
	case hr.claim == ours:
		h.addSurplus(hr)
	}
	if hr.claim == ours || r.TOS != 0 { // packets that routes are asked about here have none
		return
	}
	onLink := r.Type == unix.RTN_UNICAST && !r.Multipath && !r.Gateway.IsValid() && !r.Via && link.name != ""
	host.add(HostRoute{Dst: r.Dst, Dev: link.name, OnLink: onLink, Metric: int(r.Metric)})
	if onLink && hr.claim == foreign {
		h.addLink(r.Dst)
	}
}

// readEntries reads the neighbour and FDB entries of a device into h.
func (t *table) readEntries(h *have, device int32) error {
	err := t.whole(func() error {
		h.neighs = map[ip4]haveNeighbour{}
		return t.socket.Neighbours(device, func(n rtnl.Neighbour) { h.neighs[keyOf(n.IP)] = haveNeighbour{n.MAC, n.Permanent} })
	})
	if err != nil {
		return fmt.Errorf("reading the neighbour table: %w", err)
	}
	err = t.whole(func() error {
		h.fdb = map[mac48]haveFDB{}
		return t.socket.FDB(device, h.addFDB)
	})
	if err != nil {
		return fmt.Errorf("reading the FDB: %w", err)
	}
	return nil
}

// apply makes the changes, in order, and brings h up to date. device is the
// index of the State's device. It calls failed with each change that the kernel
// refuses, and returns an error if netlink itself fails; what has become of the
// rest is not known then.
func (t *table) apply(changes []change, h *have, device int32, failed func(*change, error)) (done map[op]int, err error) {
	done = map[op]int{}
	var batch rtnl.Batch
	noHop := map[*hop]error{} // next hops that could not be made
	for len(changes) > 0 {
		row := changes
		if n := slices.IndexFunc(changes, func(c change) bool { return c.op != changes[0].op }); n > 0 {
			row = changes[:n]
		}
		changes = changes[len(row):]

		errs := make([]error, len(row))
		at := make([]int, 0, len(row)) // which of the row each request is for
		batch.Reset()
		for i := range row {
			if errs[i] = t.request(&batch, &row[i], device, noHop); errs[i] == nil {
				at = append(at, i)
			}
		}
		if err := t.socket.Do(&batch, func(i int, err error) { errs[at[i]] = err }); err != nil {
			return done, fmt.Errorf("writing to the kernel's tables: %w", err)
		}
		for i := range row {
			c, err := &row[i], errs[i]
			if c.deletes() {
				err = gone(err)
			}
			if c.op == delRoute && c.old.hop != nil && errors.Is(err, unix.EINVAL) {
				err = nil // it has gone with its next hop
			}
			switch {
			case err == nil:
				t.note(h, c)
				c.made = true
				done[c.op]++
				if klog.V(2).Enabled() {
					klog.Infof("%v", c)
				}
			case c.op == setRoute && c.hop != nil && c.hop.users > 0 && errors.Is(err, unix.EINVAL):
				// The next hop has gone since it was read, and the route with it.
				h.hops.drop(c.hop)
				t.torn = true
			case c.op == addHop:
				// The routes that want it fail for the same reason, and say so.
				h.hops.drop(c.hop)
				noHop[c.hop] = err
			default:
				failed(c, fmt.Errorf("%v: %w", c, err))
			}
		}
	}
	return done, nil
}

// request adds a change to a batch, or returns why it cannot be made.
func (t *table) request(b *rtnl.Batch, c *change, device int32, noHop map[*hop]error) error {
	switch c.op {
	case setRoute:
		if err := noHop[c.hop]; err != nil {
			return err
		}
		r, err := t.rawRoute(c)
		if err != nil {
			return err
		}
		b.ReplaceRoute(r)
	case conflict:
		return c.why()
	case delRoute:
		b.DeleteRoute(c.old.raw)
	case addHop:
		link, ok := t.links.byName[c.route.Dev]
		if !ok {
			return fmt.Errorf("there is no interface %s", c.route.Dev)
		}
		b.AddNextHop(rtnl.NextHop{ID: c.hop.id, Protocol: t.owner.Protocol, Gateway: c.route.Via, Link: link, OnLink: c.route.OnLink})
	case delHop:
		b.DeleteNextHop(c.hop.id)
	case setNeigh:
		b.ReplaceNeighbour(rtnl.Neighbour{Link: device, IP: c.neigh.IP, MAC: c.neigh.MAC})
	case delNeigh:
		b.DeleteNeighbour(device, c.neigh.IP)
	case setFDB:
		b.ReplaceFDB(rtnl.FDBEntry{Link: device, MAC: c.fdb.MAC, Dst: c.fdb.Dst})
	case clearFDB, delFDB:
		b.DeleteFDB(rtnl.FDBEntry{Link: device, MAC: c.fdb.MAC})
	}
	return nil
}

// rawRoute is the route that a change sets, as the kernel is told.
func (t *table) rawRoute(c *change) (rtnl.Route, error) {
	r := rtnl.Route{Dst: c.route.Dst, Table: unix.RT_TABLE_MAIN, Protocol: t.owner.Protocol, Type: unix.RTN_UNICAST}
	if c.hop != nil {
		r.NextHop = c.hop.id
		return r, nil
	}
	link, ok := t.links.byName[c.route.Dev]
	if !ok {
		return r, fmt.Errorf("there is no interface %s", c.route.Dev)
	}
	r.Link, r.Gateway, r.OnLink = link, c.route.Via, c.route.OnLink
	if !c.route.Via.IsValid() {
		r.Scope = unix.RT_SCOPE_LINK
	}
	return r, nil
}

// note brings h up to date with a change that was made.
func (t *table) note(h *have, c *change) {
	switch c.op {
	case setRoute:
		raw, _ := t.rawRoute(c) // it was made, so there is no error
		h.replaceRoute(&haveRoute{Route: *c.route, claim: ours, hop: c.hop, raw: raw})
	case delRoute:
		h.dropRoute(c.old)
	case delHop:
		h.hops.drop(c.hop)
	case setNeigh:
		h.neighs[keyOf(c.neigh.IP)] = haveNeighbour{c.neigh.MAC, true}
	case delNeigh:
		delete(h.neighs, keyOf(c.neigh.IP))
	case setFDB:
		h.fdb[c.fdb.MAC.key()] = haveFDB{dst: keyOf(c.fdb.Dst)}
	case clearFDB, delFDB:
		delete(h.fdb, c.fdb.MAC.key())
	}
}

// gone takes it for done when what is to be deleted is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
