package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offloads says how packets cross between the host and its segments. With
// offloads, which is how hosts are made, up to 64 KB of a connection cross in
// one piece and without a checksum, as between virtual machines on one computer.
// Without them all that crosses has the MTU at most and a checksum, as on a
// cable: each end cuts what it sends and joins what it gets (GRO). That goes for
// both ends of the wires that the host has now, and not for those of other
// hosts, so tell all hosts between which packets are to be cut.
//
// It is `ethtool -K <device> tx <on> tso <on> gso <on> gro <not on>`. Programs
// may look at what a device can do when they open a socket, so start them
// afterwards.
func (h *Host) Offloads(on bool) {
	h.lab.Helper()
	for i := range h.attached {
		dev := fmt.Sprintf("eth%d", i)
		h.lab.Must(h.offloads(dev, on))
		h.lab.Must(h.lab.Router.offloads(h.Name+"-"+dev, on))
	}
}

func (n *Node) offloads(dev string, on bool) error {
	settings := []struct {
		name     string // as ethtool(8) has it
		set, get uint32
		on       bool
	}{
		// The first is what the next two need to be on.
		{"tx", unix.ETHTOOL_STXCSUM, unix.ETHTOOL_GTXCSUM, on},
		{"tso", unix.ETHTOOL_STSO, unix.ETHTOOL_GTSO, on},
		{"gso", unix.ETHTOOL_SGSO, unix.ETHTOOL_GGSO, on},
		{"gro", unix.ETHTOOL_SGRO, unix.ETHTOOL_GGRO, !on},
	}
	for _, s := range settings {
		var wanted uint32
		if s.on {
			wanted = 1
		}
		_, err := n.ethtool(dev, s.set, wanted)
		if err == nil {
			// The kernel takes wishes that it does not fulfil.
			var got uint32
			got, err = n.ethtool(dev, s.get, 0)
			if err == nil && got != wanted {
				err = errors.New("the kernel has left it as it was")
			}
		}
		if err != nil {
			return fmt.Errorf("turning %s of %s in %s to %d: %w", s.name, dev, n.Name, wanted, err)
		}
	}
	return nil
}

// ethtool gives a command of linux/ethtool.h that has one number, and returns
// what that is then. Labs do without the program of that name, as few machines
// have it.
func (n *Node) ethtool(dev string, command, value uint32) (uint32, error) {
	// struct ethtool_value, and struct ifreq around it, whose union is as large
	// as struct ifmap.
	data := struct{ command, value uint32 }{command, value}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}{data: unsafe.Pointer(&data)}
	if len(dev) >= len(request.name) {
		return 0, fmt.Errorf("%q is too long for a device's name", dev)
	}
	copy(request.name[:], dev)
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return os.NewSyscallError("ioctl", errno)
		}
		return nil
	})
	runtime.KeepAlive(&data)
	return data.value, err
}

// Frames are what a device has sent: how many, and how many bytes, which
// are those of Ethernet's header of 14 and of the packet. What crosses in one
// piece counts as one.
type Frames struct{ Count, Bytes uint64 }

// Since are those sent after before was read.
func (f Frames) Since(before Frames) Frames {
	return Frames{f.Count - before.Count, f.Bytes - before.Bytes}
}

// Mean is how many bytes a frame has, 0 if there is none. When a connection
// sends in bulk, nearly all of them are as large as may be, so that no more than
// the MTU and 14 tells that nothing larger was among them.
func (f Frames) Mean() float64 {
	if f.Count == 0 {
		return 0
	}
	return float64(f.Bytes) / float64(f.Count)
}

// Frames are those that the host has sent by eth0 so far, and those that its
// segment has sent to it.
func (h *Host) Frames() (out, in Frames, err error) {
	out, err = h.frames("eth0")
	if err == nil {
		in, err = h.lab.Router.frames(h.Name + "-eth0")
	}
	return out, in, err
}

func (n *Node) frames(dev string) (Frames, error) {
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return Frames{}, fmt.Errorf("finding %s in %s: %w", dev, n.Name, err)
	}
	s := link.Attrs().Statistics
	if s == nil {
		return Frames{}, fmt.Errorf("the kernel tells no statistics of %s in %s", dev, n.Name)
	}
	return Frames{s.TxPackets, s.TxBytes}, nil
}
