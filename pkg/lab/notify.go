package lab

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// notify is the service manager's end of sd_notify(3).
type notify struct {
	path string
	conn *net.UnixConn
	done chan struct{}

	mu   sync.Mutex
	got  []string
	at   []time.Time   // when each came
	more chan struct{} // closed, and made anew, when something has come
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
	n := &notify{path: path, conn: conn, done: make(chan struct{}), more: make(chan struct{})}
	go n.read()
	return n, nil
}

func (n *notify) read() {
	defer close(n.done)
	buf := make([]byte, 64<<10)
	for {
		size, err := n.conn.Read(buf)
		now := time.Now()
		msg := string(buf[:max(size, 0)])
		if err != nil || msg == over {
			return
		}
		n.mu.Lock()
		for _, line := range strings.Split(strings.Trim(msg, "\n"), "\n") {
			n.got, n.at = append(n.got, line), append(n.at, now)
		}
		close(n.more)
		n.more = make(chan struct{})
		n.mu.Unlock()
	}
}

func (n *notify) lines() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got)
}

// find says when a line came first, and if it has not, what will be closed when
// there is more to look at.
func (n *notify) find(line string) (at time.Time, more <-chan struct{}, found bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.got, line); i >= 0 {
		return n.at[i], nil, true
	}
	return time.Time{}, n.more, false
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
