package kernel

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"flanneld/pkg/rtnl"
)

// rtnlgrpNextHop is RTNLGRP_NEXTHOP of linux/rtnetlink.h, which package unix
// does not have.
const rtnlgrpNextHop = 32

// subscribe opens the socket on which the kernel tells what may concern a state
// and is not our own doing.
func subscribe(own *rtnl.Socket) (*rtnl.Notices, error) {
	return rtnl.Subscribe(own, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, rtnlgrpNextHop)
}

// news is what the kernel has told since somebody last took it.
type news struct {
	// changed says that something happened after which all tables have to be
	// read again, whatever it was.
	changed bool
	neighs  []neighNews
	fdb     []fdbNews
	// Of a link and of an address the last word counts; but a link that was down
	// has lost its routes, even if it is up again.
	links map[int32]linkNews
	addrs map[rtnl.Address]bool // whether it was deleted
}

type neighNews struct {
	rtnl.Neighbour
	deleted bool
}

type fdbNews struct {
	rtnl.FDBEntry
	deleted bool
}

type linkNews struct {
	rtnl.Link
	deleted bool
}

// enough is how many notices are kept one by one. After more than that, reading
// all again is less work.
const enough = 100_000

func (n *news) add(m rtnl.Message, device int32) {
	switch m.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, ok := rtnl.ParseRoute(m.Data)
		n.changed = n.changed || ok && r.Table == unix.RT_TABLE_MAIN
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		n.changed = true
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		// Neighbours come and go on every interface of a busy host; only those
		// of our device count.
		deleted := m.Type == unix.RTM_DELNEIGH
		if e, ok := rtnl.ParseNeighbour(m.Data); ok && e.Link == device {
			n.neighs = append(n.neighs, neighNews{e, deleted})
		} else if e, ok := rtnl.ParseFDB(m.Data); ok && e.Link == device {
			n.fdb = append(n.fdb, fdbNews{e, deleted})
		}
		n.changed = n.changed || len(n.neighs)+len(n.fdb) > enough
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if l, ok := rtnl.ParseLink(m.Data); ok {
			if n.links == nil {
				n.links = map[int32]linkNews{}
			}
			if before, told := n.links[l.Index]; told && !before.Up {
				l.Up = false
			}
			n.links[l.Index] = linkNews{l, m.Type == unix.RTM_DELLINK}
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if a, ok := rtnl.ParseAddress(m.Data); ok {
			if n.addrs == nil {
				n.addrs = map[rtnl.Address]bool{}
			}
			n.addrs[a] = m.Type == unix.RTM_DELADDR
		}
	}
	if n.changed { // nobody will look at the rest
		*n = news{changed: true}
	}
}

// empty says that nothing of interest was told.
func (n *news) empty() bool {
	return !n.changed && len(n.neighs) == 0 && len(n.fdb) == 0 && len(n.links) == 0 && len(n.addrs) == 0
}

// watcher gathers news.
type watcher struct {
	notices *rtnl.Notices
	// device is the index of the State's device, 0 for none.
	device atomic.Int32
	// bell holds a value when there are news.
	bell chan struct{}
	// writing holds a value while the tables are written, and never more than one.
	writing chan struct{}

	mu   sync.Mutex
	news news
}

// run gathers news until ctx ends, or returns the error of netlink itself, and
// closes the socket.
func (w *watcher) run(ctx context.Context) error {
	ended := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		return w.notices.Interrupt()
	})
	err := w.gather(ctx)
	close(ended)
	return errors.Join(err, g.Wait(), w.notices.Close())
}

func (w *watcher) gather(ctx context.Context) error {
	for {
		err := w.notices.Receive(func(m rtnl.Message) {
			w.mu.Lock()
			w.news.add(m, w.device.Load())
			w.mu.Unlock()
		})
		if ctx.Err() != nil {
			return nil
		}
		w.mu.Lock()
		if errors.Is(err, rtnl.ErrMissed) {
			w.news = news{changed: true}
		} else if err != nil {
			w.mu.Unlock()
			return err
		}
		quiet := w.news.empty()
		w.mu.Unlock()
		if !quiet {
			select {
			case w.bell <- struct{}{}:
			default:
			}
		}
		// Nothing is read while the tables are written: the news would be of that.
		w.writing <- struct{}{}
		<-w.writing
	}
}

// take returns the news and forgets them.
func (w *watcher) take() news {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.news
	w.news = news{}
	return n
}

// contradicts reports whether the news are of anything that is not as h and d,
// the State's device, say, so that the tables have to be read again. It takes
// note of links that come and go without being of interest.
func (n *news) contradicts(h *have, d *Device, device int32, t *table, matters func(dev string) bool) bool {
	if n.changed {
		return true
	}
	for _, e := range n.neighs {
		// Neighbours that are not permanent are the kernel's own business.
		there := h.neighs[keyOf(e.IP)]
		if e.deleted && there.permanent || !e.deleted && (e.Permanent || there.permanent) && there != (haveNeighbour{e.MAC, e.Permanent}) {
			return true
		}
	}
	for _, e := range n.fdb {
		there, ok := h.fdb[MAC(e.MAC).key()]
		if e.deleted && ok || !e.deleted && (!ok || there != fdbOf(e.FDBEntry)) {
			return true
		}
	}
	for a, deleted := range n.addrs {
		wanted := d != nil && a.Link == device && a == rtnl.Address{Link: device, Prefix: netip.PrefixFrom(d.Addr, 32)}
		if a.Link != device || deleted == wanted {
			return true // on another link, routes may have come or gone with it
		}
	}
	for index, l := range n.links {
		was, known := t.links.byIndex[index]
		now := link{name: l.Name, mine: t.owner.Device(l.Name, l.Kind), up: l.Up}
		switch {
		case l.deleted && !known:
		case d != nil && index == device:
			return true // there is more to it than is told here
		case l.deleted || was != now:
			if was.mine || now.mine || matters(now.name) || known && matters(was.name) {
				return true
			}
			t.links.forget(index)
			if !l.deleted {
				t.links.add(index, now)
			}
		}
	}
	return false
}
