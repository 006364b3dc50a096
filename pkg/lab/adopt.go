package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Adopt adds a node for a namespace that is there already: that of a process
// with this number, as of a container that a real dockerd has made. addr is the
// address the node is known by. [Lab.Release] lets go of it, as the lab does in
// the end. It is an error if the process has ended, as that of a container that is
// restarted; nothing is left of the node then.
func (l *Lab) Adopt(name string, pid int, addr netip.Addr) (*Node, error) {
	n := &Node{Name: name, Dir: filepath.Join(l.dir, name), lab: l, ns: netns.None(), addr: addr}
	if err := n.adopt(pid); err != nil {
		return nil, fmt.Errorf("adopting the namespace of process %d as %s: %w", pid, name, err)
	}
	return n, nil
}

func (n *Node) adopt(pid int) (err error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	f, err := os.OpenFile(n.nsPath(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	f.Close()
	defer func() {
		if err != nil {
			unix.Unmount(n.nsPath(), unix.MNT_DETACH) // if it was mounted at all
			os.Remove(n.nsPath())
			n.ns.Close()
		}
	}()
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", pid), n.nsPath(), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if n.ns, err = netns.GetFromPath(n.nsPath()); err != nil {
		return err
	}
	if n.nl, err = netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return err
	}
	n.lab.nodes = append(n.lab.nodes, n)
	return nil
}

// Release takes a node that [Lab.Adopt] made out of the lab, so that its name is
// free for another. What runs in the namespace goes on, unless the lab has
// started it.
func (l *Lab) Release(n *Node) {
	l.Helper()
	l.forget(n)
	if err := errors.Join(n.leave(), os.RemoveAll(n.Dir)); err != nil {
		l.Fatalf("releasing %s: %v", n.Name, err)
	}
}
