//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"flanneld/pkg/lab"
)

// The server in a container listens on two ports. publishedPort of its host leads
// to webPort, which dockerd therefore lets everybody reach; nobody but flanneld
// lets other hosts reach serverPort.
const serverPort, webPort, publishedPort = 7, 80, 8080

// server is the script that busybox's nc starts for each connection, which is
// its standard input: it says where the client comes from, as the kernel of the
// container shows it, and then sends back what it gets.
const server = `i=$(/busybox readlink /proc/self/fd/0); i=${i#socket:[}; i=${i%]}
/busybox awk -v i="$i" '$10 == i { print $3 }' /proc/net/tcp /proc/net/tcp6
exec /busybox cat`

// serve is the command of a container: the script that starts the server, and
// the server as its argument.
var serve = []string{"/busybox", "sh", "-c", fmt.Sprintf(`/busybox nc -ll -p %d -e /busybox sh -c "$0" &
exec /busybox nc -ll -p %d -e /busybox sh -c "$0"`, serverPort, webPort), server}

// askTime is how long a conversation with a server may take. It stands as well
// for "there is no answer".
const askTime = 20 * time.Second

// ask has a conversation with a server, checks that what it sends comes back
// whole, and returns the address that the server sees it come from.
func ask(from *lab.Node, to netip.AddrPort) (seen netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp4", to)
	if err != nil {
		return seen, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(askTime))
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return seen, fmt.Errorf("reading what %v sees: %w", to, err)
	}
	// More than fits into one packet, less than fits into the buffers on the way.
	sent := make([]byte, 16<<10)
	rand.NewChaCha8([32]byte{byte(rand.Int())}).Read(sent) // has no errors
	if _, err := conn.Write(sent); err != nil {
		return seen, err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return seen, err
	}
	if back, err := io.ReadAll(r); err != nil || !bytes.Equal(back, sent) {
		return seen, fmt.Errorf("%d of %d bytes came back from %v, as they were sent: %t: %w", len(back), len(sent), to, bytes.HasPrefix(sent, back), err)
	}
	return parsePeer(line)
}

// parsePeer reads an address as /proc/net/tcp and tcp6 show it: the four bytes,
// in front of them what makes an IPv6 address of it, as one number of the
// machine's byte order.
func parsePeer(text string) (netip.Addr, error) {
	digits, _, _ := strings.Cut(strings.TrimSpace(text), ":")
	b, err := hex.DecodeString(digits[max(0, len(digits)-8):])
	if err != nil || len(b) != 4 {
		return netip.Addr{}, fmt.Errorf("the server says %q, which is no address of /proc/net/tcp", text)
	}
	var addr [4]byte
	binary.NativeEndian.PutUint32(addr[:], binary.BigEndian.Uint32(b))
	return netip.AddrFrom4(addr), nil
}
