package udp

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		message string
		size    int
		want    []string
	}{
		{"", 0, nil},
		{"abc", 0, []string{"abc"}},
		{"abc", -1, []string{"abc"}},
		{"abc", 1, []string{"a", "b", "c"}},
		{"abc", 2, []string{"ab", "c"}},
		{"abc", 3, []string{"abc"}},
		{"abc", 4, []string{"abc"}},
		{"abcd", 2, []string{"ab", "cd"}},
	} {
		var got []string
		for first, rest := cut([]byte(tc.message), tc.size); len(first) > 0; first, rest = cut(rest, tc.size) {
			got = append(got, string(first))
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%q by %d (-want +got):\n%s", tc.message, tc.size, diff)
		}
	}
}

// arrived is one datagram that a receiver has got.
type arrived struct {
	from string
	tos  byte
	data string
}

// datagramsOf is all that waits for a receiver, and how many messages it was in.
func datagramsOf(t testing.TB, in *receiver) (datagrams []arrived, messages int) {
	t.Helper()
	for {
		n, err := in.receive()
		if err == unix.EAGAIN {
			return datagrams, messages
		}
		if err != nil {
			t.Fatal(err)
		}
		messages += n
		for i := range n {
			m := in.message(i)
			if len(m.data) == 0 {
				datagrams = append(datagrams, arrived{addrOf(m.from).String(), m.tos, ""})
			}
			for first, rest := cut(m.data, m.size); len(first) > 0; first, rest = cut(rest, m.size) {
				datagrams = append(datagrams, arrived{addrOf(m.from).String(), m.tos, string(first)})
			}
		}
	}
}

func testReceiver(t testing.TB, s *socket) *receiver {
	t.Helper()
	memory, slots, err := newSlots(receiveMessages, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) })
	return newReceiver(s, slots[:receiveMessages])
}

// What was sent comes with its sender, its TOS and its size, however the kernel
// has joined it, and also after a batch of another shape.
func TestReceive(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			onOneProcessor(t)
			sockets := loopbackSockets(t, "127.0.0.1", "127.0.0.2", "127.0.0.3")
			closeAtEnd(t, sockets...)
			if k == noOffload {
				sockets[0].plainly(t)
			}
			in := testReceiver(t, sockets[0])
			if n, err := in.receive(); n != 0 || err != unix.EAGAIN {
				t.Errorf("with nothing to be received: %d, %v", n, err)
			}
			r := rand.New(rand.NewPCG(11, 12))
			joined := 0
			for range 100 {
				var want []arrived
				messages := 0
				for range 1 + r.IntN(3*receiveMessages) {
					from := 1 + r.IntN(2)
					tos := []byte{0, 0x02, 0x03, 0xb8, 0xff}[r.IntN(5)]
					size, n := 1+r.IntN(1400), 1
					if r.IntN(2) == 0 {
						n = 1 + r.IntN(maxSegments)
						if r.IntN(4) == 0 {
							size = min(65507/n, 1+r.IntN(65507)) // as large as can be
						}
						size = min(size, 65507/n)
					}
					if r.IntN(20) == 0 {
						size, n = 0, 1
					}
					data := make([]byte, size*n-min(r.IntN(4)/3*r.IntN(size+1), max(size*n-1, 0)))
					for i := range data {
						data[i] = byte(i) ^ byte(messages)
					}
					sendSegments(t, sockets[from], sockets[0].port, tos, size, data)
					messages++
					host := []string{1: "127.0.0.2", 2: "127.0.0.3"}[from]
					if len(data) == 0 {
						want = append(want, arrived{host, tos, ""})
					}
					for first, rest := cut(data, size); len(first) > 0; first, rest = cut(rest, size) {
						want = append(want, arrived{host, tos, string(first)})
					}
				}
				awaitInput(t, sockets[0].fd)
				got, n := datagramsOf(t, in)
				expectArrived(t, "receiver", want, got)
				if n < len(want) {
					joined++
				}
			}
			if (k == offload) != (joined > 0) {
				t.Errorf("%d batches had messages that were joined", joined)
			}
		})
	}
}

// expectArrived compares datagrams, in order.
func expectArrived(t testing.TB, whose string, want, got []arrived) {
	t.Helper()
	if slices.Equal(want, got) { // which is fast
		return
	}
	for i := range min(len(want), len(got)) {
		if w, g := want[i], got[i]; w != g {
			t.Fatalf("%s: datagram %d:\n got %x from %s with TOS %#x\nwant %x from %s with TOS %#x", whose, i, g.data, g.from, g.tos, w.data, w.from, w.tos)
		}
	}
	t.Fatalf("%s: %d datagrams, want %d", whose, len(got), len(want))
}

// sendSegments sends data to 127.0.0.1 as the kernel does with UDP_SEGMENT.
func sendSegments(t testing.TB, s *socket, port uint16, tos byte, size int, data []byte) {
	t.Helper()
	if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_TOS, int(tos)); err != nil {
		t.Fatal(err)
	}
	segment := 0
	if size < len(data) {
		segment = size
	}
	if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.SendmsgN(s.fd, data, nil, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}, 0); err != nil {
		t.Fatalf("sending %d bytes by %d: %v", len(data), segment, err)
	}
}
