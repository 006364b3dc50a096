package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/rtnl"
)

// Clear removes all that is the owner's, whatever State it was for: devices with
// all that is on them, routes and next hops. It asks also of each route that bears
// nobody's mark and leads through a gateway whether that goes too. A dry Clear
// changes nothing.
//
// It says what it has removed, or a dry one would, a phrase for each but for what
// goes with a device. left are next hops of the owner's that stay, as routes of others
// go through them. What cannot be removed does not keep the rest from going, and is in
// failed.
func Clear(owner Owner, also func(Route) bool, dry bool) (removed, left []string, failed []error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, []error{fmt.Errorf("opening a netlink socket: %w", err)}
	}
	defer handle.Close()
	socket, err := rtnl.Open()
	if err != nil {
		return nil, nil, []error{err}
	}
	defer socket.Close()
	t := table{owner: owner, handle: handle, socket: socket}
	mine, err := t.readLinks()
	if err != nil {
		return nil, nil, []error{err}
	}
	have, _, err := t.readRoutes()
	if err != nil {
		return nil, nil, []error{err}
	}

	changes := diff(State{}, &have)
	for _, first := range have.routes {
		for r := first; r != nil; r = r.next {
			if r.claim == free && r.Via.IsValid() && r.raw.NextHop == 0 && r.raw.Type == unix.RTN_UNICAST && also(r.Route) {
				changes = append(changes, change{op: delRoute, old: r})
			}
		}
	}
	goes := map[*hop]bool{}
	for i := range changes {
		goes[changes[i].hop] = true
	}
	for _, is := range have.hops.ours {
		if !goes[is] {
			left = append(left, is.what())
		}
	}
	slices.Sort(left)
	slices.SortFunc(changes, func(a, b change) int {
		return cmp.Or(cmp.Compare(a.op, b.op), cmp.Compare(a.entry().key, b.entry().key))
	})
	// What is on a device goes one by one, too: the kernel takes longer to find it when
	// the device goes.
	refused := map[*change]error{}
	if !dry {
		if _, err := t.apply(changes, &have, 0, func(c *change, err error) { refused[c] = err }); err != nil {
			return nil, nil, []error{err}
		}
	}
	for i := range changes {
		c := &changes[i]
		switch {
		case t.links.byIndex[t.links.byName[c.dev()]].mine:
		case refused[c] != nil:
			failed = append(failed, refused[c])
		default:
			removed = append(removed, c.what())
		}
	}
	for _, l := range mine {
		name := l.Attrs().Name
		if !dry {
			if err := gone(handle.LinkDel(l)); err != nil {
				failed = append(failed, fmt.Errorf("removing the device %s: %w", name, err))
				continue
			}
		}
		removed = append(removed, "the device "+name)
	}
	if t.torn {
		failed = append(failed, errors.New("the kernel's tables change faster than they can be read, so that something may have been missed"))
	}
	return removed, left, failed
}

// dev is the interface of what a change of Clear's deletes, empty if it has none.
func (c *change) dev() string {
	if c.op == delHop {
		return c.hop.dev
	}
	return c.old.Dev
}

// what names what a change of Clear's deletes.
func (c *change) what() string {
	if c.op == delHop {
		return c.hop.what()
	}
	// One that leads nowhere, or several ways, has no interface.
	return "the route " + strings.TrimSuffix(c.old.Route.String(), " dev ")
}

// what names a next hop of ours.
func (is *hop) what() string {
	if is.way == (way{}) { // a group, or another that no route here wants
		return fmt.Sprintf("the next hop %d", is.id)
	}
	return fmt.Sprintf("the next hop %d via %v dev %s", is.id, is.via.addr(), is.dev)
}
