package lab

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
)

// notify is the service manager's end of sd_notify(3).
type notify struct {
	path string
	conn *net.UnixConn
	done chan struct{}

	mu  sync.Mutex
	got []string
}

// over is what close sends to its own socket to end the reader. It comes after
// all that the process has sent, so nothing of that is lost.
const over = "\x00over"

func listenNotify(path string) (*notify, error) {
	os.Remove(path) // of an earlier process of this name
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listening for sd_notify messages: %w", err)
	}
	n := &notify{path: path, conn: conn, done: make(chan struct{})}
	go n.read()
	return n, nil
}

func (n *notify) read() {
	defer close(n.done)
	buf := make([]byte, 64<<10)
	for {
		size, err := n.conn.Read(buf)
		msg := string(buf[:max(size, 0)])
		if err != nil || msg == over {
			return
		}
		n.mu.Lock()
		n.got = append(n.got, strings.Split(strings.Trim(msg, "\n"), "\n")...)
		n.mu.Unlock()
	}
}

func (n *notify) lines() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got)
}

// close reads what is still queued and closes the socket. A nil notify is
// that of a process without.
func (n *notify) close() {
	if n == nil {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(over))
		conn.Close()
	}
	if err != nil {
		n.conn.Close() // ends the reader too
	}
	<-n.done
	n.conn.Close()
}
