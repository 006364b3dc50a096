package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"flanneld/pkg/nldump"
)

// ensureDevice makes the device what d says and removes those of the devices
// given, all ours, that d is not. It returns the index of the device, 0 where
// d is nil or somebody else has yet to make it, and whether it changed anything
// that may have taken routes with it. What it makes and removes it logs at the level
// given.
func (t *table) ensureDevice(d *Device, mine []netlink.Link, level klog.Level) (index int32, changed bool, err error) {
	var there netlink.Link
	for _, l := range mine {
		if d != nil && l.Attrs().Name == d.Name && t.rightShape(l, d.VXLAN) {
			there = l
			continue
		}
		klog.V(level).Infof("Removing the device %s, which is not what it ought to be", l.Attrs().Name)
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
		if there, err = t.makeVXLAN(d, level); err != nil {
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

func (t *table) makeVXLAN(d *Device, level klog.Level) (netlink.Link, error) {
	v := d.VXLAN
	link, ok := t.links.byName[v.Link]
	if !ok {
		return nil, fmt.Errorf("making the VXLAN device %s: there is no interface %s for its packets", d.Name, v.Link)
	}
	if _, taken := t.links.byName[d.Name]; taken {
		return nil, nameTaken(d)
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
		return nil, vniTaken(d)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: flanneld needs the capability NET_ADMIN", err)
	}
	if err != nil {
		return nil, fmt.Errorf("making the VXLAN device %s: %w", d.Name, err)
	}
	klog.V(level).Infof("Made the VXLAN device %s", d.Name)
	l, err := t.handle.LinkByName(d.Name)
	return l, because(err, "looking for the device %s just made", d.Name)
}

func nameTaken(d *Device) error {
	return fmt.Errorf("making the VXLAN device %s: there is a device of that name that is none; rename or remove it, or choose another VNI", d.Name)
}

func vniTaken(d *Device) error {
	return fmt.Errorf("making the VXLAN device %s: %w: another VXLAN device on this host has VNI %d and port %d; remove it or choose another VNI",
		d.Name, unix.EEXIST, d.VXLAN.VNI, d.VXLAN.Port)
}

func portTaken(d *Device, who string) error {
	return fmt.Errorf("setting the state of the device %s: %w: %s has UDP port %d; stop or remove that, or choose another Port for the whole cluster",
		d.Name, unix.EADDRINUSE, who, d.VXLAN.Port)
}

// CheckVXLAN finds out, without changing anything, what on this host would keep Run
// from making a State's VXLAN device. Devices of the owner's do not, as Run takes them
// over or removes them. Nor does it look for VXLAN in the kernel, which may be loaded
// when the device is made.
func CheckVXLAN(owner Owner, d *Device) error {
	all, _, err := nldump.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("listing the network interfaces: %w", err)
	}
	v6 := func(ip net.IP) bool { return ip != nil && ip.To4() == nil } // which has sockets of its own
	ours := false                                                      // a device of the owner's has the port, or one that shares it, and so nobody else
	for _, l := range all {
		a := l.Attrs()
		v, ok := l.(*netlink.Vxlan)
		rival := ok && v.Port == d.VXLAN.Port && !v6(v.SrcAddr) && !v6(v.Group)
		up := a.RawFlags&unix.IFF_UP != 0
		// The kernel gives devices one socket where these agree (VXLAN_F_RCV_FLAGS in
		// include/net/vxlan.h), and tells them apart by their VNIs.
		shares := ok && v.GBP == d.VXLAN.GBP && !v.FlowBased && !v.UDP6ZeroCSumRx
		switch {
		case owner.Device(a.Name, kindOf(l)):
			ours = ours || rival && up
		case a.Name == d.Name:
			return nameTaken(d)
		case rival && shares && v.VxlanId == d.VXLAN.VNI:
			return vniTaken(d)
		case rival && up && !shares:
			return portTaken(d, "the VXLAN device "+a.Name+", of another kind,")
		case rival && up:
			ours = true
		}
	}
	if who := portHolder(d.VXLAN.Port); !ours && who != "" {
		return portTaken(d, who)
	}
	return nil
}

// portHolder is a process that has a UDP port of this host's, on whatever address,
// which the socket of a VXLAN device does not go along with; empty if there is none to
// be seen. A socket of the kernel's own is nobody's, and may be that of a VXLAN device
// which was moved to another network namespace: that is shared.
func portHolder(port int) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: port})
	unix.Close(fd)
	if !errors.Is(err, unix.EADDRINUSE) {
		return ""
	}
	holds := map[string]bool{} // as the links in a process' fd directory say it
	for _, table := range []string{"udp", "udp6"} {
		text, _ := os.ReadFile("/proc/thread-self/net/" + table)
		for line := range strings.Lines(string(text)) {
			// In this order: number, local address and port, and the inode as the tenth.
			if f := strings.Fields(line); len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				holds["socket:["+f[9]+"]"] = true
			}
		}
	}
	names, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, name := range names {
		if socket, err := os.Readlink(name); err == nil && holds[socket] {
			process := filepath.Dir(filepath.Dir(name))
			comm, _ := os.ReadFile(process + "/comm")
			return fmt.Sprintf("process %s (%s)", filepath.Base(process), strings.TrimSpace(string(comm)))
		}
	}
	return ""
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
		err := w.set()
		if errors.Is(err, unix.EADDRINUSE) && d.VXLAN != nil { // the socket is opened by the device that goes up
			return true, portTaken(d, "another program or device")
		} else if err != nil {
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
