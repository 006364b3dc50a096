package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"flanneld/backend"
	"flanneld/backend/table"
	"flanneld/backend/udp"
	"flanneld/network/local"
	"flanneld/network/status"
	"flanneld/pkg/extif"
	"flanneld/subnet"
)

// process is a flanneld that runs on this host; the zero value is none.
type process struct {
	pid int
	// answers says that it is one that this program can ask, and node what it says of
	// itself, without a Config if it does not say in time, or has none yet.
	answers bool
	node    status.Node
	// err is why it cannot be known whether there is one.
	err error
}

// findDaemon looks for a flanneld on this host: by asking, and among the processes,
// since an older one does not answer.
func findDaemon(ctx context.Context, isDaemon func(args []string) bool) process {
	pid, err := local.Daemon()
	if err == nil {
		node, _ := status.FromDaemon(ctx)
		return process{pid: pid, answers: true, node: node}
	}
	if errors.Is(err, local.ErrNone) {
		pid, err = local.Running(isDaemon)
	}
	if errors.Is(err, local.ErrNone) {
		return process{}
	}
	return process{pid: pid, err: err}
}

// socket is where it has its socket if it runs with the backend udp, invalid with
// another. known is false where it does not say which it runs with.
func (p process) socket() (at netip.AddrPort, known bool) {
	c, _, err := table.ParseConfig(p.node.Config)
	if err != nil {
		return at, false
	}
	b, err := c.Open(backend.Host{Interface: p.node.Interface, PublicIP: p.node.PublicIP, Network: c.Network})
	if b, is := b.(*udp.Backend); err == nil && is {
		at = b.Local()
	}
	return at, true
}

// ownDevices are the devices that a flanneld has made here.
func ownDevices() (names []string) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil // as all else that asks the kernel will say
	}
	for _, l := range links {
		if backend.Owner.Device(l.Attrs().Name, l.Type()) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

func daemon(p process, devices []string) Finding {
	const name = "flanneld"
	left := ""
	if len(devices) > 0 {
		left = fmt.Sprintf("; from an earlier run there is %s, to be taken over or removed", strings.Join(devices, ", "))
	}
	switch {
	case p.err != nil:
		return warning(name, "see which process that is", "whether one runs here cannot be known: %v", p.err)
	case p.answers:
		return ok(name, "one runs here as process %d, so what follows is about a host that takes part", p.pid)
	case p.pid != 0:
		return ok(name, "one runs here as process %d, and is of an older kind: stop it before this one is started%s", p.pid, left)
	}
	return ok(name, "none runs here%s", left)
}

// tryAdmin asks the kernel for something that wants CAP_NET_ADMIN in the user
// namespace that the network belongs to: to change an interface that is not there.
func tryAdmin() error {
	err := netlink.LinkSetMTU(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: math.MaxInt32}}, 1500)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// tryRaw opens a socket that wants CAP_NET_RAW there.
func tryRaw() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func privileges(admin, raw error) []Finding {
	const name, as = "privileges", "run this as the user that flanneld runs as, which is root unless somebody has changed that"
	switch {
	case admin != nil:
		return []Finding{failure(name, as+"; in a container, give it CAP_NET_ADMIN and CAP_NET_RAW", "CAP_NET_ADMIN is missing, without which nothing in the kernel's network can be changed: %v", admin)}
	case raw != nil:
		return []Finding{warning(name, as+"; in a container, give it CAP_NET_RAW", "CAP_NET_RAW is missing, without which iptables may refuse to work: %v", raw)}
	}
	return []Finding{ok(name, "CAP_NET_ADMIN and CAP_NET_RAW")}
}

// place judges the interface between hosts and the address that peers are told.
func place(i extif.Interface, publicIP netip.Addr, err error) []Finding {
	const name = "interface"
	if err != nil {
		return []Finding{failure(name, "choose one with --iface", "%v", err), skipped("public IP", "there is no interface")}
	}
	text := fmt.Sprintf("%s with the address %v and MTU %d, chosen by %s", i.Name, i.Addr, i.MTU, i.Chosen)
	found := []Finding{ok(name, "%s", text)}
	if !i.Up {
		found = []Finding{failure(name, "run \"ip link set "+i.Name+" up\"", "%s, is down: there is no traffic between hosts until it is up", text)}
	}
	for _, p := range i.Addrs {
		if p.Addr() == publicIP {
			return append(found, ok("public IP", "peers are told %v", publicIP))
		}
	}
	return append(found, ok("public IP", "peers are told %v, which is no address of %s: what is sent there has to reach this host", publicIP, i.Name))
}

// healthPort finds out whether /healthz can be served.
func healthPort(addr netip.AddrPort, running process) Finding {
	const name = "healthz port"
	if running.pid != 0 {
		return skipped(name, "the flanneld that runs here may have it")
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return failure(name, "choose another --healthz-port or --healthz-ip, or stop what has it (\"ss -ltnp\" shows it)", "%v", err)
	}
	l.Close()
	return ok(name, "%v is free", addr)
}

// The clock is wrong for certain when it is before this was written, and by more
// than differs between hosts that ask for the time, when it is so far from etcd's.
var writtenAfter = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const mostApart = 5 * time.Minute

// clock judges this host's clock beside those of etcd's members.
func clock(now time.Time, members []subnet.Member) Finding {
	const name = "clock"
	const hint = "set it, and have it kept by NTP: certificates for TLS are judged by it, and the times in logs are its; leases are not"
	date := now.UTC().Format(time.RFC3339)
	if now.Before(writtenAfter) {
		return warning(name, hint, "it is %s here, which is too long ago to be true", date)
	}
	var worst *subnet.Member
	for i, m := range members {
		if m.Err == nil && (worst == nil || m.Ahead.Abs() > worst.Ahead.Abs()) {
			worst = &members[i]
		}
	}
	switch {
	case worst == nil:
		return ok(name, "it is %s here; there is nothing to compare that with", date)
	case worst.Ahead.Abs() <= mostApart:
		return ok(name, "it is %s here, and within %v of that on etcd's hosts", date, mostApart)
	case worst.Ahead > 0:
		return warning(name, hint, "it is %s here, %v behind the clock of %s", date, worst.Ahead, worst.Endpoint)
	}
	return warning(name, hint, "it is %s here, %v ahead of the clock of %s", date, -worst.Ahead, worst.Endpoint)
}

// writable is why a file cannot be written whole, with its directory if that is
// missing; nil if it can.
func writable(name string) error {
	if info, err := os.Lstat(name); err == nil { // of a symbolic link it takes the place
		if kind := info.Mode().Type(); kind != 0 && kind != fs.ModeSymlink {
			return fmt.Errorf("%s is there and is no file", name)
		}
		var st unix.Statx_t // an older kernel than 5.8 does not tell
		if unix.Statx(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW, 0, &st) == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return fmt.Errorf("%s is a mount of its own, so that no other file can take its place: mount its directory", name)
		}
	}
	dir, err := writableDir(filepath.Dir(name))
	if err != nil {
		return err
	}
	// Where there is no limit it is told as 0 of 0. What is kept for root is root's.
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && (st.Blocks > 0 && st.Bfree == 0 || st.Files > 0 && st.Ffree == 0) {
		return fmt.Errorf("writing in %s: %w", dir, unix.ENOSPC)
	}
	return nil
}

// writableDir is a directory, or, where that is missing, the one that it would be made
// in; or why nothing can be made there.
func writableDir(name string) (dir string, err error) {
	for dir = name; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			if _, err := os.Lstat(dir); err == nil {
				return "", fmt.Errorf("%s is a symbolic link that leads to nothing", dir)
			}
			continue
		} else if err != nil {
			return "", err
		}
		if !info.IsDir() {
			return "", fmt.Errorf("%s is no directory", dir)
		}
		if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			return "", fmt.Errorf("writing in %s: %w", dir, err)
		}
		return dir, nil
	}
}

// loggable is why log files cannot be written in a directory, or to one file there if
// its name is not empty; nil if they can.
func loggable(dir, file string) error {
	if info, err := os.Stat(file); file != "" && err == nil {
		if info.IsDir() {
			return fmt.Errorf("%s is a directory", file)
		}
		if err := unix.Faccessat(unix.AT_FDCWD, file, unix.W_OK, unix.AT_EACCESS); err != nil {
			return fmt.Errorf("opening %s: %w", file, err)
		}
		return nil
	}
	_, err := writableDir(dir)
	return err
}

func logFiles(dir, file string, err error) Finding {
	const name = "log files"
	where := dir
	if file != "" {
		where = file
	}
	if err != nil {
		return failure(name, "choose another --log_dir or --log_file, or let flanneld write there, in the sandbox of a unit by ReadWritePaths=", "%s cannot be written: %v", where, err)
	}
	return ok(name, "%s can be written", where)
}

// subnetFile judges the file for dockerd's start-up, and what it says of the last
// run: own, or err.
func subnetFile(name string, config *table.Config, own netip.Prefix, err, writeErr error) Finding {
	const what = "subnet file"
	switch {
	case errors.Is(writeErr, unix.EROFS):
		return failure(what, "choose another --subnet-file, or, in the sandbox of a unit, add its directory as ReadWritePaths=", "%s cannot be written: %v", name, writeErr)
	case writeErr != nil:
		return failure(what, "choose another --subnet-file, or let flanneld write there: dockerd must not start without it", "%s cannot be written: %v", name, writeErr)
	case errors.Is(err, fs.ErrNotExist):
		return ok(what, "%s is not there yet, and can be written", name)
	case err != nil:
		return warning(what, "put it right if this host is to have a certain subnet; flanneld writes it anew", "%s cannot be used: %v", name, err)
	case config != nil && !config.Fits(own):
		return warning(what, "dockerd has to be started again with the new subnet, after flanneld", "%s has %v, which is none of the network's subnets: this host will get another", name, own)
	}
	return ok(what, "%s has %v, and can be written", name, own)
}

// readForwarding looks at the kernel's switch.
func readForwarding(file string) Finding {
	text, err := os.ReadFile(file)
	return forwarding(strings.TrimSpace(string(text)), err, unix.Faccessat(unix.AT_FDCWD, file, unix.W_OK, unix.AT_EACCESS))
}

func forwarding(value string, err, writeErr error) Finding {
	const name, hint = "ip_forward", "run \"sysctl -w net.ipv4.ip_forward=1\" on the host: containers reach no other host while it is off"
	switch {
	case err != nil:
		return warning(name, hint, "it cannot be read whether it is on: %v", err)
	case value == "1":
		return ok(name, "net.ipv4.ip_forward is on")
	case writeErr != nil:
		return failure(name, hint, "net.ipv4.ip_forward is off, and flanneld cannot turn it on: %v", writeErr)
	}
	return ok(name, "net.ipv4.ip_forward is off; flanneld turns it on when it starts")
}
