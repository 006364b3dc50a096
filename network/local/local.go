// Package local is how flanneld's commands reach the daemon that runs on the same
// host, without being told anything: through a socket with a name of its own in
// the host's network namespace. Such a name (an abstract one, unix(7)) is no file:
// it goes with the process, whatever ends that, and a container with its own
// network has its own.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// name is the socket's; the @ stands for the zero byte of an abstract one.
const name = "@flanneld"

// ErrNone says that no daemon answers on this host.
var ErrNone = errors.New("flanneld does not run on this host")

// Listen takes the name. There can be one listener in a network namespace.
func Listen() (net.Listener, error) {
	l, err := net.Listen("unix", name)
	if errors.Is(err, unix.EADDRINUSE) {
		who := "another process"
		if pid, perr := Daemon(); perr == nil {
			who = fmt.Sprintf("the process %d", pid)
		}
		return nil, fmt.Errorf("%s has the socket %s already: is it another flanneld? there can be one on a host", who, name)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the socket %s, by which commands reach the daemon: %w", name, err)
	}
	return l, nil
}

// Daemon is the process ID of the daemon on this host, or ErrNone.
func Daemon() (pid int, err error) {
	conn, err := dial(context.Background())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	peer, err := credentials(conn)
	if err != nil {
		return 0, err
	}
	return int(peer.Pid), nil
}

// Get asks the daemon for a path of its own and has the answer read. It is ErrNone
// where no daemon listens.
func Get(ctx context.Context, path string, read func(io.Reader) error) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://flanneld"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if errors.Is(err, ErrNone) {
		return ErrNone
	} else if err != nil {
		return fmt.Errorf("asking the flanneld on this host: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("the flanneld on this host cannot tell: %s", strings.TrimSpace(string(why)))
	}
	if err := read(resp.Body); err != nil {
		return fmt.Errorf("the flanneld on this host gives an answer that cannot be read: %w", err)
	}
	return nil
}

// dial connects to the daemon. A name that anybody can take is believed only of
// root and of who asks.
func dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "unix", name)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrNone
	} else if err != nil {
		return nil, fmt.Errorf("connecting to the flanneld on this host: %w", err)
	}
	peer, err := credentials(conn)
	if err == nil && peer.Uid != 0 && int(peer.Uid) != os.Getuid() {
		err = fmt.Errorf("the socket %s is not root's but of the user %d (or root's outside of this user namespace), and is not to be believed", name, peer.Uid)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// credentials are those of the process that listens at the other end.
func credentials(conn net.Conn) (peer *unix.Ucred, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return nil, fmt.Errorf("finding out who listens on %s: %w", name, err)
	}
	return peer, nil
}
