package udp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/pkg/gso"
)

const tunNode = "/dev/net/tun"

// device is the TUN device, open for reading and writing. It is persistent: it
// stays, with its address and routes, while no daemon has it open, so that
// connections of containers survive a restart of the daemon instead of meeting
// "network unreachable".
//
// One goroutine may read while another writes. Neither call waits.
type device struct {
	fd int
	// datagrams tells that datagrams, too, come and go as super-packets.
	datagrams bool

	// What one write gives to the kernel.
	header [gso.HeaderLen]byte
	pieces [1 + gso.MaxPackets]unix.Iovec
}

// checkTUN finds out whether TUN devices can be opened at all.
func checkTUN() error {
	fd, err := openTUNNode()
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func openTUNNode() (int, error) {
	fd, err := unix.Open(tunNode, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		return fd, nil
	}
	hint := "the daemon needs read and write access to it"
	switch {
	case errors.Is(err, unix.ENOENT):
		hint = "run \"modprobe tun\"; in a container, pass the device in, as with --device=" + tunNode
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		hint = "the kernel has no TUN support: run \"modprobe tun\""
	case errors.Is(err, unix.EPERM):
		hint = "in a container, pass the device in, as with --device=" + tunNode
	}
	return -1, fmt.Errorf("the udp backend needs TUN devices: opening %s: %w (%s)", tunNode, err, hint)
}

// openDevice opens the TUN device of the given name, and makes it first if
// there is none. A multi-queue one, which cannot be used, is replaced if nobody has
// it open. Nothing is configured, it may be down.
func openDevice(name string) (*device, error) {
	fd, err := attach(name)
	if errors.Is(err, unix.EINVAL) {
		// There is a device of that name, but no TUN device, or a TAP or
		// multi-queue one (tun_set_iff in drivers/net/tun.c). Anything else that
		// a TUN device may be set to is set anew by attaching to it.
		if err = removeUnused(name); err != nil {
			return nil, err
		}
		fd, err = attach(name)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("opening TUN device %s: %w: %s has it open, probably another flanneld; stop that first", name, err, describe(holders(name)))
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("opening TUN device %s: %w (the daemon needs CAP_NET_ADMIN)", name, err)
	case err != nil:
		return nil, fmt.Errorf("opening TUN device %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making TUN device %s persistent: %w", name, err)
	}
	// The size a virtio-net header has unless somebody asks for a later
	// revision; an earlier owner may have.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, gso.HeaderLen); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("setting the header size of TUN device %s: %w", name, err)
	}
	if err := setQueueLength(name); err != nil {
		unix.Close(fd)
		return nil, err
	}
	d := &device{fd: fd, datagrams: true}
	if err := d.offload(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("setting the offloads of TUN device %s: %w", name, err)
	}
	return d, nil
}

// queueLength is how many packets may wait to be read. It is what the kernel gives
// most devices (DEFAULT_TX_QUEUE_LEN in include/net/pkt_sched.h), and twice what it
// gives TUN devices (TUN_READQ_SIZE in drivers/net/tun.c), which is less than the
// packets that the kernel may cut from one super-packet and queue at once.
const queueLength = 1000

func setQueueLength(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil && link.Attrs().TxQLen < queueLength {
		err = netlink.LinkSetTxQLen(link, queueLength)
	}
	if err != nil {
		return fmt.Errorf("setting the queue length of TUN device %s: %w", name, err)
	}
	return nil
}

// Super-packets of datagrams, both of which have to be asked for at once (Linux
// 6.2, include/uapi/linux/if_tun.h). IPv6 never gets as far as here.
const (
	tunUSO4 = 0x20
	tunUSO6 = 0x40
)

// offload tells the kernel what it may leave to us: checksums and the cutting of
// super-packets.
func (d *device) offload() error {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
	err := unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, tcp|tunUSO4|tunUSO6)
	if errors.Is(err, unix.EINVAL) {
		d.datagrams = false
		err = unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, tcp)
	}
	return err
}

// attach opens the device as one that exchanges whole IP packets, each with a
// virtio-net header, by which the kernel passes TCP data of up to 64 KiB as one
// packet and leaves checksums to us.
func attach(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	fd, err := openTUNNode()
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// checkDevice finds out whether openDevice could make do with what has the device's
// name, if anything has.
func checkDevice(name string) error {
	link, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	} else if err != nil {
		return fmt.Errorf("looking up device %s: %w", name, err)
	}
	if tuntap, ok := link.(*netlink.Tuntap); ok && tuntap.Mode == netlink.TUNTAP_MODE_TUN && tuntap.Flags&netlink.TUNTAP_MULTI_QUEUE == 0 {
		return nil
	}
	return replaceable(link)
}

// replaceable is an error unless a link is a TUN device that nobody has open.
func replaceable(link netlink.Link) error {
	name := link.Attrs().Name
	tuntap, ok := link.(*netlink.Tuntap)
	if !ok || tuntap.Mode == netlink.TUNTAP_MODE_TAP {
		kind := link.Type()
		if ok {
			kind = "TAP"
		}
		return fmt.Errorf("device %s is there, but is a %s device and not TUN: if nothing needs it, run \"ip link delete %s\"", name, kind, name)
	}
	if by := holders(name); len(by) > 0 || tuntap.Queues > 0 {
		return fmt.Errorf("device %s is a multi-queue TUN device, and %s has it open: stop that first", name, describe(by))
	}
	return nil
}

// removeUnused deletes a TUN device that nobody has open.
func removeUnused(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking up device %s: %w", name, err)
	}
	if err := replaceable(link); err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("deleting device %s, which is a multi-queue TUN device: %w", name, err)
	}
	return nil
}

// holders lists the processes that have the TUN device open, as far as /proc
// shows: those of this network namespace, as others may have a device of the
// same name.
func holders(name string) []string {
	var found []string
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil
	}
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, info := range infos {
		process := filepath.Dir(filepath.Dir(info))
		node, err := os.Readlink(filepath.Join(process, "fd", filepath.Base(info)))
		if err != nil || node != tunNode {
			continue
		}
		if there, err := os.Readlink(process + "/ns/net"); err != nil || there != here {
			continue
		}
		text, err := os.ReadFile(info)
		// tun_chr_show_fdinfo writes "iff:", a tab and the name.
		if err != nil || !slices.Contains(strings.Fields(string(text)), name) {
			continue
		}
		comm, _ := os.ReadFile(process + "/comm")
		who := fmt.Sprintf("process %s (%s)", filepath.Base(process), strings.TrimSpace(string(comm)))
		if filepath.Base(process) == strconv.Itoa(os.Getpid()) {
			who = "this process"
		}
		if !slices.Contains(found, who) {
			found = append(found, who)
		}
	}
	return found
}

func describe(holders []string) string {
	if len(holders) == 0 {
		return "some process"
	}
	return strings.Join(holders, " and ")
}

// read reads one packet into buf, behind its virtio-net header. Without one to be
// had at once it is unix.EAGAIN; when the device is gone, errDeviceLost.
func (d *device) read(buf []byte) (n int, err error) {
	for {
		r, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(d.fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, unix.EAGAIN
		case unix.EBADFD: // tun_chr_read_iter
			return 0, errDeviceLost
		}
		return 0, os.NewSyscallError("read", errno)
	}
}

// write writes a packet that lies in pieces. When the device is gone it is
// errDeviceLost.
func (d *device) write(h gso.Header, pieces [][]byte) error {
	h.Put(d.header[:])
	d.pieces[0].Base = &d.header[0]
	d.pieces[0].SetLen(len(d.header))
	for i, b := range pieces {
		d.pieces[1+i].Base = unsafe.SliceData(b)
		d.pieces[1+i].SetLen(len(b))
	}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(d.fd), uintptr(unsafe.Pointer(&d.pieces)), uintptr(1+len(pieces)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.EBADFD:
			return errDeviceLost
		}
		return os.NewSyscallError("writev", errno)
	}
}

func (d *device) close() error { return unix.Close(d.fd) }
