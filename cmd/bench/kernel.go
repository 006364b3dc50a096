package main

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/nldump"
)

// entry is a route, neighbour or FDB entry of flanneld's in the kernel: what it
// is for, and where that leads. Without a value it says that there is none.
type entry struct{ key, value string }

func routeEntry(dst netip.Prefix, via netip.Addr) entry {
	return entry{"route " + dst.String(), via.String()}
}
func neighEntry(ip netip.Addr, mac string) entry { return entry{"neigh " + ip.String(), mac} }
func fdbEntry(mac string, dst netip.Addr) entry  { return entry{"fdb " + mac, dst.String()} }

// entries are what the kernel ought to have for leases.
func entries(k kind, leases []lease) map[string]string {
	all := make(map[string]string, 3*len(leases))
	for _, l := range leases {
		for _, e := range k.entries(l) {
			all[e.key] = e.value
		}
	}
	return all
}

// difference is what has to happen in the kernel when leases become others.
func difference(k kind, before, after []lease) map[string]string {
	have, changes := entries(k, before), entries(k, after)
	for key, value := range have {
		switch changes[key] {
		case "":
			changes[key] = ""
		case value:
			delete(changes, key)
		}
	}
	return changes
}

// parse reads a netlink message, of a dump or a notification. What cannot be
// flanneld's is not ok: routes that are marked otherwise, learned neighbours.
func parse(m syscall.NetlinkMessage) (e entry, ok bool) {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		e, ok = parseRoute(m.Data)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		e, ok = parseNeighbour(m.Data, m.Header.Type == unix.RTM_NEWNEIGH)
	}
	if m.Header.Type == unix.RTM_DELROUTE || m.Header.Type == unix.RTM_DELNEIGH {
		e.value = ""
	}
	return e, ok
}

func parseRoute(data []byte) (entry, bool) {
	if len(data) < unix.SizeofRtMsg {
		return entry{}, false
	}
	msg := nl.DeserializeRtMsg(data)
	if msg.Protocol != protocol {
		return entry{}, false
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return entry{}, false
	}
	var dst, via netip.Addr
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_GATEWAY:
			via, _ = netip.AddrFromSlice(a.Value)
		}
	}
	return routeEntry(netip.PrefixFrom(dst, int(msg.Dst_len)), via), dst.IsValid()
}

func parseNeighbour(data []byte, added bool) (entry, bool) {
	n, err := netlink.NeighDeserialize(data)
	if err != nil {
		return entry{}, false
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	ip = ip.Unmap()
	switch {
	case n.Family == unix.AF_BRIDGE:
		return fdbEntry(n.HardwareAddr.String(), ip), len(n.HardwareAddr) > 0
	case added && n.State != unix.NUD_PERMANENT:
		return entry{}, false
	}
	// One that is deleted has no state of use and no MAC any more.
	return neighEntry(ip, n.HardwareAddr.String()), true
}

// dump reads from the kernel what there is of flanneld's on a host.
func dump(h *lab.Host) (map[string]string, error) {
	var raw [][]byte
	var types []uint16
	// Taken whole before any of it is parsed: it is to show one moment.
	read := func(get, answer uint16, body nl.NetlinkRequestData) error {
		msgs, _, err := nldump.Whole(func() ([][]byte, error) {
			req := nl.NewNetlinkRequest(int(get), unix.NLM_F_DUMP)
			req.AddData(body)
			return req.Execute(unix.NETLINK_ROUTE, answer)
		})
		for _, m := range msgs {
			raw, types = append(raw, m), append(types, answer)
		}
		return err
	}
	err := h.Do(func() error {
		return errors.Join(
			read(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: unix.AF_BRIDGE}),
			read(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: unix.AF_INET}),
			read(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET}}),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's tables on %s: %w", h.Name, err)
	}
	all := make(map[string]string, len(raw))
	for i, m := range raw {
		if e, ok := parse(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: types[i]}, Data: m}); ok {
			all[e.key] = e.value
		}
	}
	return all, nil
}

// lacking compares what ought to be in the kernel with what is, nil if all of
// it is there.
func lacking(want, have map[string]string) error {
	missing, example := 0, ""
	for key, value := range want {
		if have[key] != value {
			missing++
			example = fmt.Sprintf("%s has %q instead of %q", key, have[key], value)
		}
	}
	if missing == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d entries are not as they ought to be, among them: %s", missing, len(want), example)
}
