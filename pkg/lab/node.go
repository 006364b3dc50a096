package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Node is a network namespace with a name: what hosts, containers and the
// router have in common. Commands inside the lab reach it by its name too, as
// in `ip netns exec h1` or `nsenter --net=/run/netns/h1`.
type Node struct {
	Name string
	Dir  string // a directory for its files, where its processes start

	lab  *Lab
	nsMu sync.RWMutex // of ns, which a dial that nobody waits for any more may still ask for
	ns   netns.NsHandle
	nl   *netlink.Handle
	addr netip.Addr
}

// A Place is something with a namespace: a [Node], [Host] or [Container].
type Place interface{ node() *Node }

func (n *Node) node() *Node { return n }

// Addr is the node's own address: of eth0, unless it was made with another.
// The router has several and so none.
func (n *Node) Addr() netip.Addr { return n.addr }

// NS is the namespace's handle, for netlink.NewHandleAt and its like. It is
// valid until the lab goes.
func (n *Node) NS() netns.NsHandle { return n.ns }

func (l *Lab) newNode(name string) (*Node, error) {
	n := &Node{Name: name, Dir: filepath.Join(l.dir, name), lab: l, ns: netns.None()}
	if strings.ContainsAny(name, "/ \n") || name == "" || name[0] == '.' {
		return nil, fmt.Errorf("%q is no name for a node", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := n.makeNS(); err != nil {
		return nil, fmt.Errorf("making namespace %s: %w", name, err)
	}
	l.nodes = append(l.nodes, n) // from here on close takes care of it
	if err := os.Mkdir(n.Dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if n.nl, err = netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("opening netlink in %s: %w", name, err)
	}
	// A new namespace takes over IPv4 settings of the machine, where a
	// distribution or dockerd may have changed them: back to the kernel's own
	// defaults. IPv6 goes before any link comes up, as its announcements
	// would only add noise and delay.
	for _, s := range [][2]string{
		{"net/ipv4/ip_forward", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv6/conf/default/disable_ipv6", "1"},
	} {
		err := n.sysctl(s[0], s[1])
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s[0], "net/ipv6/") {
			continue // a kernel without IPv6 is as quiet
		} else if err != nil {
			return nil, err
		}
	}
	lo, err := n.nl.LinkByName("lo")
	if err == nil {
		err = n.nl.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("setting lo up in %s: %w", name, err)
	}
	return n, nil
}

func (n *Node) nsPath() string { return filepath.Join(netnsDir, n.Name) }

// makeNS makes the namespace and gives it a name in /run/netns.
func (n *Node) makeNS() error {
	f, err := os.OpenFile(n.nsPath(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrExist) {
		return errors.New("this name is taken, by a node of this lab or of another that is still open")
	} else if err != nil {
		return err
	}
	f.Close()
	err = keepThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if n.ns, err = netns.Get(); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", n.nsPath(), "", unix.MS_BIND, ""); err != nil {
			n.ns.Close()
			return err
		}
		return nil
	})
	if err != nil {
		os.Remove(n.nsPath())
	}
	return err
}

// close ends what still runs in the namespace and lets go of it; the kernel
// then removes its devices.
func (n *Node) close() error {
	return errors.Join(n.evict(), n.leave())
}

// leave lets go of the namespace, whatever still runs in it.
func (n *Node) leave() error {
	if n.nl != nil {
		n.nl.Close()
	}
	n.nsMu.Lock()
	defer n.nsMu.Unlock()
	if err := errors.Join(unix.Unmount(n.nsPath(), unix.MNT_DETACH), os.Remove(n.nsPath()), n.ns.Close()); err != nil {
		return fmt.Errorf("removing namespace %s: %w", n.Name, err)
	}
	return nil
}

// evict kills the processes in the namespace that are not ours to wait for:
// those that a process we started has started and left behind.
func (n *Node) evict() error {
	var want unix.Stat_t
	if err := unix.Fstat(int(n.ns), &want); err != nil {
		return err
	}
	return Poll(10*time.Second, "ending the processes left in "+n.Name, func() error {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		var left []int
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			var have unix.Stat_t
			if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &have) == nil && have.Dev == want.Dev && have.Ino == want.Ino {
				unix.Kill(pid, unix.SIGKILL)
				left = append(left, pid)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("still there: %v", left)
		}
		return nil
	})
}

// Do runs f in the namespace: sockets that f makes are there, and stay there
// when f has returned, and processes that f starts inherit it. This holds for
// f's own goroutine, not for others that it starts.
func (n *Node) Do(f func() error) error {
	return keepThread(func() error {
		n.nsMu.RLock()
		err := netns.Set(n.ns)
		n.nsMu.RUnlock()
		if err != nil {
			return fmt.Errorf("entering namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

// keepThread runs f, which may change the thread's network namespace, on a
// thread of its own and brings the thread back to where it was.
func keepThread(f func() error) (err error) {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening the current namespace: %w", err)
	}
	// Deferred, as f may end by a panic or by a test's FailNow.
	defer func() {
		defer before.Close()
		if e := netns.Set(before); e != nil {
			// The thread stays locked, so that it ends with its goroutine
			// and nothing else runs in a namespace it does not expect.
			err = errors.Join(err, fmt.Errorf("returning to the previous namespace: %w", e))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// sysctl writes a setting of the namespace; key is a path below /proc/sys.
func (n *Node) sysctl(key, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
			return fmt.Errorf("setting sysctl in %s: %w", n.Name, err)
		}
		return nil
	})
}

// Sysctl sets a sysctl such as net.ipv4.ip_forward, so that a test need not
// have the command. Slashes may stand in place of dots.
func (n *Node) Sysctl(key, value string) {
	n.lab.Helper()
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	n.lab.Must(n.sysctl(key, value))
}

// Exec runs a command in the namespace, in Dir, and returns what it printed on
// both outputs, without space at the ends; the error repeats the output.
func (n *Node) Exec(argv ...string) (string, error) {
	if err := known(argv[0]); err != nil {
		return "", err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = n.Dir
	// A daemon that the command leaves behind may hold on to the outputs.
	cmd.WaitDelay = time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	text := strings.TrimSpace(out.String())
	if err != nil {
		return text, fmt.Errorf("%s in %s: %w: %s", strings.Join(argv, " "), n.Name, err, text)
	}
	return text, nil
}

// Run is [Node.Exec] for commands that have to work: it fails the lab, with
// their output, when they do not.
func (n *Node) Run(argv ...string) string {
	n.lab.Helper()
	out, err := n.Exec(argv...)
	n.lab.Must(err)
	return out
}

// Dial connects from the namespace to an address, like [net.Dialer].
func (n *Node) Dial(ctx context.Context, network string, addr netip.AddrPort) (conn net.Conn, err error) {
	err = n.Do(func() error {
		d := net.Dialer{FallbackDelay: -1} // one address, so one socket, made on this thread
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, network, addr.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("from %s: %w", n.Name, err)
	}
	return conn, nil
}

// Listen makes a TCP listener in the namespace; port 0 picks a free one.
func (n *Node) Listen(addr netip.AddrPort) (lis *net.TCPListener, err error) {
	err = n.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(context.Background(), "tcp4", addr.String())
		if err == nil {
			lis = l.(*net.TCPListener)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", n.Name, err)
	}
	return lis, nil
}

// HTTP is a client whose requests leave from the namespace; it takes numeric
// addresses only and keeps no connection open.
func (n *Node) HTTP() *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				ap, err := netip.ParseAddrPort(addr)
				if err != nil {
					return nil, err
				}
				return n.Dial(ctx, network, ap)
			},
		},
	}
}

// remove takes a node out of the lab before its time, and ends all in it.
func (l *Lab) remove(n *Node) error {
	l.forget(n)
	return errors.Join(n.close(), os.RemoveAll(n.Dir))
}

// forget ends what the lab has started in a node, and has the lab know it no
// more.
func (l *Lab) forget(n *Node) {
	l.mu.Lock()
	var rest, mine []*Process
	for _, p := range l.processes {
		if p.node == n {
			mine = append(mine, p)
		} else {
			rest = append(rest, p)
		}
	}
	l.processes = rest
	l.nodes = slices.DeleteFunc(l.nodes, func(o *Node) bool { return o == n })
	l.mu.Unlock()
	for _, p := range mine {
		p.Kill()
	}
}
