package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// Which packets go in one message, and how many in each.
func TestSenderGroups(t *testing.T) {
	for _, tc := range []struct {
		name  string
		hosts string // one letter a packet, a capital for one that is not to be fragmented
		sizes []int
		tos   string // one letter a packet
		want  string
	}{
		{"none", "", nil, "", ""},
		{"one", "a", []int{100}, "0", "1"},
		{"same size", "aaa", []int{100, 100, 100}, "000", "3"},
		{"shorter last", "aaaa", []int{100, 100, 50, 50}, "0000", "3 1"},
		{"shorter, then as large as the first", "aaa", []int{100, 50, 100}, "000", "2 1"},
		{"larger", "aa", []int{50, 100}, "00", "1 1"},
		{"two hosts", "aabba", []int{100, 100, 100, 100, 100}, "00000", "2 2 1"},
		{"two TOS", "aaaa", []int{100, 100, 100, 100}, "0011", "2 2"},
		{"some not to be fragmented", "aAAa", []int{100, 100, 100, 100}, "0000", "1 2 1"},
		{"as many as can be", strings.Repeat("a", 129), slices.Repeat([]int{100}, 129), strings.Repeat("0", 129), "64 64 1"},
		{"as large as can be", "aaaaa", slices.Repeat([]int{13101}, 5), "00000", "5"}, // 65505
		{"65507 bytes", "aa", []int{32754, 32753}, "00", "2"},
		{"65508 bytes", "aa", []int{32754, 32754}, "00", "1 1"},
		{"one of the largest", "aa", []int{65535, 20}, "00", "1 1"},
	} {
		for _, cuts := range []bool{true, false} {
			out := newSender(&socket{fd: -1, cuts: cuts}, new(counters))
			var all [][]byte
			for i, size := range tc.sizes {
				p := make([]byte, size)
				if strings.ToUpper(tc.hosts)[i] == tc.hosts[i] {
					p[6] = dontFragment
				}
				p[1] = tc.tos[i]
				binary.BigEndian.PutUint16(p[2:], uint16(i))
				all = append(all, p)
				header := min(20+i%2*(size-20), size) // some in one piece
				out.add(uint32(tc.hosts[i]|0x20), tc.tos[i], p[:header], p[header:])
			}
			var got []string
			var again [][]byte
			for _, m := range out.messages[:out.used] {
				got = append(got, fmt.Sprint(m.n))
				sum := 0
				for k := range m.n {
					p := append(bytes.Clone(piece(out.pieces[2*(m.first+k)])), piece(out.pieces[2*(m.first+k)+1])...)
					again = append(again, p)
					sum += len(p)
					if p[1] != m.tos || uint32(tc.hosts[len(again)-1]|0x20) != m.host || (p[6] != 0) != m.whole {
						t.Errorf("%s: packet %d is in a message with %+v", tc.name, len(again)-1, m)
					}
					if k == 0 && len(p) != m.size || k == m.n-1 && len(p) != m.last {
						t.Errorf("%s: %d bytes, but the message is %+v", tc.name, len(p), m)
					}
				}
				if sum != m.bytes {
					t.Errorf("%s: %d bytes, but the message is %+v", tc.name, sum, m)
				}
			}
			want := tc.want
			if !cuts {
				want = strings.TrimSpace(strings.Repeat("1 ", min(len(tc.sizes), sendMessages)))
				if len(tc.sizes) > sendMessages {
					continue // it would have sent some
				}
			}
			if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
				t.Errorf("%s, cuts %v (-want +got):\n%s", tc.name, cuts, diff)
			}
			if !slices.EqualFunc(all, again, bytes.Equal) {
				t.Errorf("%s, cuts %v: packets have changed", tc.name, cuts)
			}
		}
	}
}

// sendBench is a sender on a host with an MTU of 1500 on its loopback interface,
// and receivers there.
type sendBench struct {
	*sender
	t         *testing.T
	count     counters
	receivers map[string]*receiver // by host
	large     []string             // what tooLarge was called for, in order
}

// onSmallLoopback calls f on a host whose loopback interface has an MTU of 1500 and
// that has no route to anywhere else than its segment.
func onSmallLoopback(t *testing.T, f func(h *lab.Host)) {
	t.Helper()
	if err := lab.Tools("ip"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	h := l.Host("h1", l.Segment("a", netip.MustParsePrefix("172.30.0.0/24")))
	h.Run("sh", "-ec", `
		ip link set lo up mtu 1500
		ip route del default`)
	l.Must(h.Do(func() error {
		onOneProcessor(t)
		f(h)
		return nil
	}))
}

func newSendBench(t *testing.T, offload bool) *sendBench {
	addrs := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	sockets := loopbackSockets(t, addrs...)
	closeAtEnd(t, sockets...)
	sockets[0].cuts = sockets[0].cuts && offload
	b := &sendBench{t: t, receivers: map[string]*receiver{}}
	for i, a := range addrs {
		b.receivers[a] = testReceiver(t, sockets[i])
	}
	b.sender = newSender(sockets[0], &b.count)
	b.tooLarge = func(host uint32, header, payload []byte) {
		b.large = append(b.large, addrOf(host).String()+" "+string(header)+string(payload))
	}
	return b
}

// has expects just these packets to have come to a host.
func (b *sendBench) has(host string, want []arrived) {
	b.t.Helper()
	got, _ := datagramsOf(b.t, b.receivers[host])
	expectArrived(b.t, host, want, got)
}

// numbered is a packet of a size that differs from all others of it.
func numbered(n uint32, size int, tos byte, whole bool) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i)
	}
	p[0], p[1], p[6] = 0x45, tos, 0
	if whole {
		p[6] = dontFragment
	}
	binary.BigEndian.PutUint32(p[12:], n)
	return p
}

// Each packet of a batch of any kind is sent, refused or reported as too large,
// counted once as what it was, and what is sent to a host comes there in order.
func TestSenderAccounts(t *testing.T) {
	onSmallLoopback(t, func(*lab.Host) {
		for _, offload := range []bool{true, false} {
			b := newSendBench(t, offload)
			r := rand.New(rand.NewPCG(13, 14))
			var want Counters
			var n uint32
			messages := 0
			for range 80 {
				arrives := map[string][]arrived{}
				var large []string
				hosts := []string{"127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.9", "192.0.2.1"}
				host, size, tos, whole := "", 0, byte(0), false
				total := 0
				for range r.IntN(700) {
					// Runs of packets alike, with some others between.
					if host == "" || r.IntN(12) == 0 {
						host = hosts[r.IntN(len(hosts))]
						tos, whole = []byte{0, 2, 0xb8}[r.IntN(3)], r.IntN(2) == 0
						size = []int{20 + r.IntN(100), 20 + r.IntN(1453), 1472, 1473, 20 + r.IntN(9000)}[r.IntN(5)]
						if r.IntN(40) == 0 {
							size = 65500 + r.IntN(36)
						}
					}
					s := size
					if r.IntN(10) == 0 {
						s = 20 + r.IntN(size-19)
					}
					if total += s; total > 1<<20 {
						break // that it fits into what the receivers can hold
					}
					p := numbered(n, s, tos, whole)
					n++
					header := 20 + r.IntN(2)*(s-20)
					b.add(addr(host), tos, p[:header], p[header:])
					switch {
					case host == "192.0.2.1": // it has no route
						want.SendErrors++
					case whole && s > 1472:
						large = append(large, host+" "+string(p))
					case s > maxMessage:
						want.SendErrors++
					default:
						want.Sent++
						want.SentBytes += uint64(s)
						arrives[host] = append(arrives[host], arrived{"127.0.0.1", tos, string(p)})
					}
				}
				b.flush()
				if len(b.pieces) != 0 || b.used != 0 {
					t.Fatalf("after flush, %d messages and %d pieces are left", b.used, len(b.pieces))
				}
				b.has("127.0.0.2", arrives["127.0.0.2"])
				b.has("127.0.0.3", arrives["127.0.0.3"])
				if !slices.Equal(large, b.large) {
					t.Fatalf("%d packets are reported as too large, want %d, or others", len(b.large), len(large))
				}
				b.large = nil
				got := b.count.snapshot()
				messages += int(got.SentMessages.Total())
				if offload && got.SentMessages.Total() > got.Sent/2 || !offload && got.SentMessages.Total() != got.Sent {
					t.Fatalf("%d packets in %d messages", got.Sent, got.SentMessages.Total())
				}
				got.SentMessages = Batches{}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("counters (-want +got):\n%s", diff)
				}
			}
			if b.cuts != offload {
				t.Errorf("it cuts messages: %v", b.cuts)
			}
		}
	})
}

// More than a sender collects is sent on the way, not lost or overwritten: more
// packets than it has places for, and more messages.
func TestSenderFull(t *testing.T) {
	onOneProcessor(t)
	for _, tc := range []struct {
		name string
		n    int
		size func(i int) int
	}{
		{"packets", 2*sendDatagrams + 1, func(int) int { return 40 }},
		{"messages", 3*sendMessages + 1, func(i int) int { return 40 + i }}, // each larger than the one before
	} {
		b := newSendBench(t, true)
		var want []arrived
		for i := range tc.n {
			p := numbered(uint32(i), tc.size(i), 0, true)
			b.add(addr("127.0.0.2"), 0, p[:20], p[20:])
			want = append(want, arrived{"127.0.0.1", 0, string(p)})
			if b.used > sendMessages || len(b.pieces) > 2*sendDatagrams {
				t.Fatalf("%s: %d messages, %d pieces", tc.name, b.used, len(b.pieces))
			}
		}
		if b.used == 0 {
			t.Errorf("%s: the last is not kept for flush", tc.name)
		}
		b.flush()
		b.has("127.0.0.2", want)
		if got := b.count.snapshot(); got.Sent != uint64(tc.n) || tc.name == "messages" && got.SentMessages.Total() != got.Sent {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

// An interface that cannot cut messages, in kernels that do not do it in its stead:
// the packets go one by one, and so do those that follow.
func TestSenderWithoutChecksumOffload(t *testing.T) {
	onOneProcessor(t)
	b := newSendBench(t, true)
	var want []arrived
	for i, size := range []int{100, 100, 60} {
		p := numbered(uint32(i), size, 7, false)
		b.add(addr("127.0.0.2"), 7, p[:20], p[20:])
		want = append(want, arrived{"127.0.0.1", 7, string(p)})
	}
	if b.used != 1 {
		t.Fatalf("%d messages", b.used)
	}
	b.fill(0, b.messages[0])
	b.refused(0, os.NewSyscallError("sendmmsg", unix.EIO))
	b.used, b.pieces = 0, b.pieces[:0]
	if b.cuts {
		t.Error("it goes on cutting messages")
	}
	for i := range 2 {
		p := numbered(uint32(10+i), 100, 7, false)
		b.add(addr("127.0.0.2"), 7, p[:20], p[20:])
		want = append(want, arrived{"127.0.0.1", 7, string(p)})
	}
	b.flush()
	b.has("127.0.0.2", want)
	if diff := cmp.Diff(Counters{Sent: 5, SentBytes: 460, SentMessages: Batches{5}}, b.count.snapshot()); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func TestMaySendSingly(t *testing.T) {
	out := newSender(&socket{fd: -1, cuts: true}, new(counters))
	for _, errno := range []error{unix.EPERM, unix.EAGAIN, unix.ENETUNREACH} {
		if out.maySendSingly(addr("127.0.0.2"), os.NewSyscallError("sendmmsg", errno)) || !out.cuts {
			t.Errorf("%v has nothing to do with segmentation", errno)
		}
	}
	for _, errno := range []error{unix.EMSGSIZE, unix.EINVAL} {
		if !out.maySendSingly(addr("127.0.0.2"), os.NewSyscallError("sendmmsg", errno)) || !out.cuts {
			t.Errorf("%v, as for a path with a smaller MTU: want this message sent singly, and segmentation kept", errno)
		}
	}
	if !out.maySendSingly(addr("127.0.0.2"), os.NewSyscallError("sendmmsg", unix.EIO)) || out.cuts {
		t.Error("an interface without checksum offload: want no segmentation from now on")
	}
}

// What waits for the address of a neighbour that does not answer fills the socket's
// buffer in the end. Then packets are dropped, at once and counted.
func TestSenderDoesNotWait(t *testing.T) {
	onSmallLoopback(t, func(h *lab.Host) {
		h.Run("ip", "link", "set", "lo", "mtu", "65536")
		s, err := openSocket(netip.AddrPortFrom(h.Addr(), defaultPort))
		if err != nil {
			t.Fatal(err)
		}
		closeAtEnd(t, s)
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10); err != nil {
			t.Fatal(err)
		}
		var count counters
		out := newSender(s, &count)
		const n = 100
		for i := range n {
			p := numbered(uint32(i), 1000, byte(i), true)
			out.add(addr("172.30.0.77"), byte(i), p, nil)
		}
		out.flush()
		got := count.snapshot()
		if got.Sent == 0 || got.SendErrors == 0 || got.Sent+got.SendErrors != n || got.SentBytes != 1000*got.Sent {
			t.Errorf("of %d packets: %+v", n, got)
		}
	})
}

// A socket that fails altogether loses packets and nothing else.
func TestSenderClosed(t *testing.T) {
	var count counters
	out := newSender(&socket{fd: -1, cuts: true}, &count)
	for i := range 10 {
		out.add(addr("127.0.0.2"), 0, numbered(uint32(i), 40, 0, i < 5), nil)
	}
	out.flush()
	if diff := cmp.Diff(Counters{SendErrors: 10}, count.snapshot()); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	if err := out.setWhole(!out.whole); !errors.Is(err, unix.EBADF) {
		t.Errorf("setWhole: %v", err)
	}
}
