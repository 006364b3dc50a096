package kernel

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/rtnl"
)

// Inspection is what a look at the kernel has shown, beside what ought to be there.
type Inspection struct {
	// Want is what the plan asks for, and Faults what of its input it left out.
	Want   State
	Faults []error
	// Device says what is wrong with Want's device; nothing where it is right, or
	// none is wanted.
	Device []string
	// Wrong are the entries that are not as they ought to be.
	Wrong []Wrong
}

// Wrong is an entry that is not as it ought to be. One of Route, Neighbour and FDB
// is that of Want that it is about; all are nil for one that ought not to be there.
type Wrong struct {
	Route     *Route
	Neighbour *Neighbour
	FDB       *FDBEntry
	// Text says what is wrong, of what.
	Text string
	// Short is Text in a word or two, for where it is plain what it is about.
	Short string
}

// Inspect compares the kernel with what a plan asks for, as Run does, and changes
// nothing. Everybody may, whatever their privileges.
func Inspect[T any](owner Owner, input T, plan Plan[T]) (Inspection, error) {
	var is Inspection
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return is, fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer handle.Close()
	socket, err := rtnl.Open()
	if err != nil {
		return is, err
	}
	defer socket.Close()
	t := table{owner: owner, handle: handle, socket: socket}
	mine, err := t.readLinks()
	if err != nil {
		return is, err
	}
	h, host, err := t.readRoutes()
	if err != nil {
		return is, err
	}
	is.Want, is.Faults = plan(input, host)
	index, wrong, err := t.inspectDevice(is.Want.Device, mine)
	if err != nil {
		return is, err
	}
	is.Device = wrong
	if index != 0 {
		if err := t.readEntries(&h, index); err != nil {
			return is, err
		}
	}
	for _, c := range diff(is.Want, &h) {
		if w, ok := c.wrong(&h); ok {
			is.Wrong = append(is.Wrong, w)
		}
	}
	return is, nil
}

// inspectDevice is ensureDevice without the changes: it says what is wrong.
func (t *table) inspectDevice(d *Device, mine []netlink.Link) (index int32, wrong []string, err error) {
	if d == nil {
		return 0, nil, nil
	}
	wrong = []string{"it is not there"}
	for _, l := range mine {
		switch {
		case l.Attrs().Name != d.Name:
		case !t.rightShape(l, d.VXLAN):
			return 0, []string{"it is a device of another kind, or has another VNI, port, interface or source address than it ought to"}, nil
		default:
			settings, err := t.wrongSettings(d, l)
			wrong = nil
			for _, s := range settings {
				wrong = append(wrong, s.is)
			}
			return int32(l.Attrs().Index), wrong, err
		}
	}
	return 0, wrong, nil
}

// wrong is what a change would put right, if it is more than a part of another.
func (c *change) wrong(h *have) (w Wrong, ok bool) {
	what := ""
	missing := func(there bool) {
		w.Short = "missing"
		if there {
			w.Short = "wrong"
		}
	}
	switch c.op {
	case setRoute:
		missing(h.routes[c.route.slot()] != nil)
		w.Route, what = c.route, fmt.Sprintf("the route %v", c.route)
	case conflict:
		w.Route, w.Short = c.route, "in the way"
		w.Text = fmt.Sprintf("%v: %v", c, c.why())
		return w, true
	case setNeigh:
		_, there := h.neighs[c.neigh.key()]
		missing(there)
		w.Neighbour, what = c.neigh, fmt.Sprintf("the neighbour %v", c.neigh)
	case setFDB:
		_, there := h.fdb[c.fdb.key()]
		missing(there)
		w.FDB, what = c.fdb, fmt.Sprintf("the FDB entry %v", c.fdb)
	case delRoute:
		w.Short, what = "surplus", fmt.Sprintf("the route %v", c.old.Route)
	case delNeigh:
		w.Short, what = "surplus", fmt.Sprintf("the neighbour %v", c.neigh)
	case delFDB:
		w.Short, what = "surplus", fmt.Sprintf("the FDB entry %v", c.fdb.MAC)
	default: // next hops are parts of routes, and an FDB entry is cleared to be set
		return w, false
	}
	switch w.Short {
	case "wrong":
		w.Text = "another entry is where " + what + " ought to be"
	case "surplus":
		w.Text = what + " ought not to be there"
	default:
		w.Text = what + " is missing"
	}
	return w, true
}
