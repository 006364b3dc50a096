package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// udpPort is the backend's default.
const udpPort = 8285

// byHand is a peer of the udp backend on whose host the test itself takes and
// sends what flanneld would. Its inbox has the packet of each datagram.
type byHand struct {
	*lab.Host
	inbox
	t    *testing.T
	conn *net.UDPConn
}

// peerByHand adds a host that has the subnet 10.1.<n>.0/24.
func peerByHand(t *testing.T, c *cluster.Cluster, s *lab.Segment, n int) *byHand {
	t.Helper()
	p := &byHand{Host: c.Host(fmt.Sprintf("hand%d", n), s), t: t}
	fake{ip: p.Addr().String()}.put(c, "udp", n)
	conn := p.socket(t)
	p.conn = conn
	go func() {
		buf, oob := make([]byte, 1<<16), make([]byte, 256)
		for {
			size, control, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
			if err != nil {
				return // closed
			}
			p.add(arrival{packet: slices.Clone(buf[:size]), from: from, tos: tosOf(oob[:control])})
		}
	}()
	return p
}

// socket is one on the backend's port, which closes with the test.
func (p *byHand) socket(t *testing.T) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := p.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr(), udpPort)))
		return err
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		err = control(conn, func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1); err != nil {
				return err
			}
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		})
	}
	if err != nil {
		t.Fatalf("opening port %d on %s: %v", udpPort, p.Name, err)
	}
	return conn
}

func tosOf(oob []byte) byte {
	messages, _ := syscall.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS && len(m.Data) > 0 {
			return m.Data[0]
		}
	}
	return 0
}

// datagram is what a peer by hand sends: mostly a packet.
type datagram struct {
	data []byte
	tos  byte
	// parts is the size of the datagrams that data is cut into, all but the last;
	// 0 leaves it one. The receiver's kernel gets them joined.
	parts int
}

// send sends datagrams to a host, in order.
func (p *byHand) send(to netip.Addr, all ...datagram) {
	p.t.Helper()
	var failed error
	oneCPU(func() {
		for _, d := range all {
			var oob []byte
			if d.tos != 0 {
				oob = appendControl(oob, unix.IPPROTO_IP, unix.IP_TOS, binary.NativeEndian.AppendUint32(nil, uint32(d.tos)))
			}
			if d.parts != 0 {
				oob = appendControl(oob, unix.SOL_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, uint16(d.parts)))
			}
			if _, _, failed = p.conn.WriteMsgUDPAddrPort(d.data, oob, netip.AddrPortFrom(to, udpPort)); failed != nil {
				return
			}
		}
	})
	if failed != nil {
		p.t.Fatalf("sending from %s to %v: %v", p.Name, to, failed)
	}
}

// appendControl appends a control message for sendmsg.
func appendControl(oob []byte, level, typ int32, data []byte) []byte {
	at := len(oob)
	oob = append(oob, make([]byte, unix.CmsgSpace(len(data)))...)
	if unix.SizeofCmsghdr == 16 {
		binary.NativeEndian.PutUint64(oob[at:], uint64(unix.CmsgLen(len(data))))
	} else {
		binary.NativeEndian.PutUint32(oob[at:], uint32(unix.CmsgLen(len(data))))
	}
	binary.NativeEndian.PutUint32(oob[at+unix.SizeofCmsghdr-8:], uint32(level))
	binary.NativeEndian.PutUint32(oob[at+unix.SizeofCmsghdr-4:], uint32(typ))
	copy(oob[at+unix.CmsgLen(0):], data)
	return oob
}

// singly is a datagram for each packet.
func singly(packets [][]byte) (all []datagram) {
	for _, p := range packets {
		all = append(all, datagram{data: p})
	}
	return all
}

// joined is the packets in as few messages as the rules of UDP_SEGMENT allow: 64
// at most, all of one size but for the last, which may be shorter.
func joined(packets [][]byte) (all []datagram) {
	const most, bytes = 64, 65507
	for len(packets) > 0 {
		d := datagram{data: slices.Clone(packets[0])}
		n := 1
		for n < min(len(packets), most) && len(packets[n-1]) == len(packets[0]) && len(packets[n]) <= len(packets[0]) &&
			len(d.data)+len(packets[n]) <= bytes {
			d.data = append(d.data, packets[n]...)
			d.parts = len(packets[0])
			n++
		}
		all, packets = append(all, d), packets[n:]
	}
	return all
}
