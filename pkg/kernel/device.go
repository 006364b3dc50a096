package kernel

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"flanneld/pkg/nldump"
)

// ensureDevice makes the device what d says and removes those of the devices
// given, all ours, that d is not. It returns the index of the device, 0 where
// d is nil or somebody else has yet to make it, and whether it changed anything
// that may have taken routes with it.
func (t *table) ensureDevice(d *Device, mine []netlink.Link) (index int32, changed bool, err error) {
	var there netlink.Link
	for _, l := range mine {
		if d != nil && l.Attrs().Name == d.Name && t.rightShape(l, d.VXLAN) {
			there = l
			continue
		}
		klog.Infof("Removing the device %s, which is not what it ought to be", l.Attrs().Name)
		if err := t.handle.LinkDel(l); gone(err) != nil {
			return 0, changed, fmt.Errorf("removing the device %s: %w", l.Attrs().Name, err)
		}
		t.links.forget(int32(l.Attrs().Index)) // or its name would stand for two devices
		changed = true
	}
	switch {
	case d == nil:
		return 0, changed, nil
	case there == nil && d.VXLAN == nil:
		return 0, changed, nil
	case there == nil:
		if there, err = t.makeVXLAN(d); err != nil {
			return 0, changed, err
		}
		changed = true
	}
	index = int32(there.Attrs().Index)
	t.links.add(index, link{name: d.Name, mine: true, up: true})
	configured, err := t.configure(d, there)
	return index, changed || configured, err
}

// rightShape reports whether all that cannot be changed on a device is right. If
// the interface that carries the tunnel is not there by its name, because it was
// renamed perhaps, a device that works is not given up for one that cannot be
// made.
func (t *table) rightShape(l netlink.Link, want *VXLAN) bool {
	if want == nil {
		return kindOf(l) == "tun"
	}
	v, ok := l.(*netlink.Vxlan)
	link, there := t.links.byName[want.Link]
	return ok && v.VxlanId == want.VNI && v.Port == want.Port && (!there || int32(v.VtepDevIndex) == link) &&
		v.SrcAddr.Equal(want.Source.AsSlice()) && v.GBP == want.GBP && v.Group == nil &&
		!v.Learning && !v.L2miss && !v.L3miss && !v.Proxy && !v.FlowBased
}

func (t *table) makeVXLAN(d *Device) (netlink.Link, error) {
	v := d.VXLAN
	link, ok := t.links.byName[v.Link]
	if !ok {
		return nil, fmt.Errorf("making the VXLAN device %s: there is no interface %s for its packets", d.Name, v.Link)
	}
	if _, taken := t.links.byName[d.Name]; taken {
		return nil, fmt.Errorf("making the VXLAN device %s: there is a device of that name that is none; rename or remove it, or choose another VNI", d.Name)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = d.Name, d.MTU, v.MAC[:]
	err := t.handle.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: v.VNI, Port: v.Port, VtepDevIndex: int(link), SrcAddr: v.Source.AsSlice(), GBP: v.GBP,
		Learning: false, // the kernel's default is on
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("%w: this kernel has no VXLAN; try `modprobe vxlan`", err)
	case errors.Is(err, unix.EEXIST):
		err = fmt.Errorf("%w: another VXLAN device on this host has VNI %d and port %d; remove it or choose another VNI", err, v.VNI, v.Port)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: flanneld needs the capability NET_ADMIN", err)
	}
	if err != nil {
		return nil, fmt.Errorf("making the VXLAN device %s: %w", d.Name, err)
	}
	klog.Infof("Made the VXLAN device %s", d.Name)
	l, err := t.handle.LinkByName(d.Name)
	return l, because(err, "looking for the device %s just made", d.Name)
}

func macOf(hw net.HardwareAddr) (m MAC) {
	copy(m[:], hw)
	return m
}

func because(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// setting is something of a device that can be changed and is not as it ought to
// be.
type setting struct {
	name string
	// is says what is wrong with it.
	is  string
	set func() error
}

// configure sets what can be changed on a device and reports whether anything
// had to be.
func (t *table) configure(d *Device, l netlink.Link) (changed bool, err error) {
	wrong, err := t.wrongSettings(d, l)
	for _, w := range wrong {
		if err := w.set(); err != nil {
			return true, fmt.Errorf("setting the %s of the device %s: %w", w.name, d.Name, err)
		}
	}
	return len(wrong) > 0, err
}

// wrongSettings compares what can be changed on a device. With an error it is as
// far as it got.
func (t *table) wrongSettings(d *Device, l netlink.Link) (wrong []setting, err error) {
	add := func(name string, set func() error, is string, args ...any) {
		wrong = append(wrong, setting{name, fmt.Sprintf(is, args...), set})
	}
	a := l.Attrs()
	if d.VXLAN != nil && macOf(a.HardwareAddr) != d.VXLAN.MAC {
		add("MAC", func() error { return t.handle.LinkSetHardwareAddr(l, d.VXLAN.MAC[:]) }, "its MAC is %v and not %v", a.HardwareAddr, d.VXLAN.MAC)
	}
	if a.MTU != d.MTU {
		add("MTU", func() error { return t.handle.LinkSetMTU(l, d.MTU) }, "its MTU is %d and not %d", a.MTU, d.MTU)
	}
	addrs, torn, err := nldump.Whole(func() ([]netlink.Addr, error) { return t.handle.AddrList(l, netlink.FAMILY_V4) })
	t.torn = t.torn || torn
	if err != nil {
		return wrong, fmt.Errorf("reading the addresses of the device %s: %w", d.Name, err)
	}
	want := &net.IPNet{IP: d.Addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
	// Peer is nil where the kernel names the address itself as the peer.
	right := func(a netlink.Addr) bool { return a.IPNet.String() == want.String() && a.Peer == nil }
	if !slices.ContainsFunc(addrs, right) {
		add("address", func() error { return t.handle.AddrReplace(l, &netlink.Addr{IPNet: want}) }, "it does not have the address %v", want)
	}
	for _, addr := range addrs { // after the new one is there: without any, routes would go
		if !right(addr) {
			add("address", func() error { return t.handle.AddrDel(l, &addr) }, "it has the address %v", addr.IPNet)
		}
	}
	if a.MasterIndex != 0 { // it would get frames, not packets
		add("independence", func() error { return t.handle.LinkSetNoMaster(l) }, "it is part of another device, such as a bridge")
	}
	if a.Flags&net.FlagUp == 0 {
		add("state", func() error { return t.handle.LinkSetUp(l) }, "it is down")
	}
	return wrong, nil
}
