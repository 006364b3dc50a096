package udp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"flanneld/pkg/gso"
	"flanneld/pkg/lab"
	"flanneld/subnet"
)

func TestRoute(t *testing.T) {
	table := newTable([]*subnet.Lease{lease("10.1.75.0/24", "192.0.2.2", "udp")})
	good := func(ttl byte) []byte {
		return testPacket("10.1.74.2", "10.1.75.3", ttl, unix.IPPROTO_UDP, []byte("payload"))
	}
	for _, tc := range []struct {
		name   string
		packet []byte
		want   verdict
	}{
		{"good", good(64), carry},
		{"last hop but one", good(2), carry},
		{"TTL 1", good(1), expired},
		{"TTL 0", good(0), expired},
		{"nowhere", testPacket("10.1.74.2", "10.1.76.3", 64, unix.IPPROTO_UDP, nil), noSubnet},
		{"nowhere, TTL 1", testPacket("10.1.74.2", "10.1.76.3", 1, unix.IPPROTO_UDP, nil), noSubnet},
		{"padded", append(good(64), 0, 0), notIPv4}, // packet takes that off before
		{"IPv6", append([]byte{0x60}, good(64)[1:]...), notIPv4},
		{"empty", nil, notIPv4},
		{"short", good(64)[:19], notIPv4},
		{"cut off", good(64)[:26], notIPv4},
		{"header too short", append([]byte{0x44}, good(64)[1:]...), notIPv4},
		{"header longer than the packet", append([]byte{0x4f}, good(64)[1:]...), notIPv4},
	} {
		before := bytes.Clone(tc.packet)
		host, got := route(table, tc.packet)
		if got != tc.want || got == carry && addrOf(host).String() != "192.0.2.2" {
			t.Errorf("%s: %v to %v, want %v", tc.name, got, addrOf(host), tc.want)
		}
		if !bytes.Equal(before, tc.packet) {
			t.Errorf("%s: the packet was changed, although an answer would quote it", tc.name)
		}
	}
}

// What is not to be carried, or is not what its virtio-net header says, is counted
// as what it is, and holds up nothing behind it.
func TestOutboundDrops(t *testing.T) {
	single := func() []byte { return segment(unix.IPPROTO_UDP, "10.1.0.5", "10.1.1.7", 1, 0, []byte("payload")) }
	tcp := segment(unix.IPPROTO_TCP, "10.1.0.5", "10.1.1.7", 1, 0, make([]byte, 3000))
	gsoTCP := gso.Header{Flags: gso.NeedsChecksum, Type: gso.TCP4, Headers: 40, Size: 1000, Start: 20, Offset: 16}
	with := func(f func(h *gso.Header)) []byte { h := gsoTCP; f(&h); return vnet(h, tcp) }
	broken, notIP := Counters{ReadErrors: 1}, Counters{NotIPv4: 1}
	ipv6 := append([]byte{0x60, 0, 0, 0, 0, 8, 58, 255}, make([]byte, 40)...)
	for _, tc := range []struct {
		name    string
		message []byte
		want    Counters
	}{
		{"nothing", nil, broken},
		{"no whole virtio-net header", make([]byte, gso.HeaderLen-1), broken},
		{"no packet", make([]byte, gso.HeaderLen), notIP},
		{"IPv6", plain(ipv6), notIP},
		{"an IPv6 super-packet", vnet(gso.Header{Type: 4, Size: 8, Headers: 48}, ipv6), notIP},
		{"truncated", plain(single()[:30]), notIP},
		{"a truncated super-packet", with(func(*gso.Header) {})[:2000], notIP},
		{"checksum behind the packet", vnet(gso.Header{Flags: gso.NeedsChecksum, Start: 20, Offset: 14}, single()), broken},
		{"checksum far behind it", vnet(gso.Header{Flags: gso.NeedsChecksum, Start: 65535, Offset: 65535}, single()), broken},
		{"checksum in the IP header", vnet(gso.Header{Flags: gso.NeedsChecksum, Start: 0, Offset: 2}, single()), broken},
		{"segments of 0 bytes", with(func(h *gso.Header) { h.Size = 0 }), broken},
		{"unknown type", with(func(h *gso.Header) { h.Type = 77 }), broken},
		{"type of another protocol", with(func(h *gso.Header) { h.Type = gso.UDP }), broken},
		{"headers longer than the packet", vnet(gsoTCP, edit(bytes.Clone(tcp[:60]), func(p []byte) { p[2], p[3], p[32] = 0, 60, 0xf0 })), broken},
		{"a fragment", vnet(gsoTCP, edit(bytes.Clone(tcp), func(p []byte) { p[6] = 0x20 })), broken},
		{"to nowhere", plain(edit(single(), func(p []byte) { p[18] = 200 })), Counters{NoSubnet: 1, ICMPHeld: 1}},
		{"expired", plain(edit(single(), func(p []byte) { p[8] = 1 })), Counters{Expired: 1, ICMPHeld: 1}},
		{"a super-packet to nowhere", vnet(gsoTCP, edit(bytes.Clone(tcp), func(p []byte) { p[18] = 200 })), Counters{NoSubnet: 1, ICMPHeld: 1}},
		{"an expired super-packet", vnet(gsoTCP, edit(bytes.Clone(tcp), func(p []byte) { p[8] = 0 })), Counters{Expired: 1, ICMPHeld: 1}},
	} {
		nodes := restNodes(t, offload, "127.0.0.1", "127.0.0.2")
		nodes[0].dev.give(t, tc.message)
		good := single()
		nodes[0].dev.give(t, plain(good))
		carryAll(t, nodes[0].out.carry)
		got, _ := datagramsOf(t, nodes[1].in.receive)
		if len(got) != 1 || got[0].data != string(hop(good)) {
			t.Errorf("%s: %d packets are sent, want the one behind it", tc.name, len(got))
		}
		tc.want.Sent, tc.want.SentBytes = 1, uint64(len(good))
		expectCounters(t, tc.name, &nodes[0].count, tc.want)
	}
}

// One batch is all there is, in order, with headers that do not overwrite each
// other: more super-packets in small pieces than there is room for headers.
func TestOutboundBatch(t *testing.T) {
	onOneProcessor(t)
	nodes := restNodes(t, offload, "127.0.0.1", "127.0.0.2")
	if err := nodes[0].out.carry(); err != unix.EAGAIN {
		t.Errorf("with nothing to be read: %v", err)
	}
	for range 3 {
		var want [][]byte
		for i := range 5 {
			m, packets := super(unix.IPPROTO_TCP, "10.1.0.5", "10.1.1.7", uint16(i), 30+i, bytes.Repeat([]byte{byte(i), 7}, 29000))
			nodes[0].dev.give(t, m)
			for _, p := range packets {
				want = append(want, hop(p))
			}
			p := segment(unix.IPPROTO_UDP, "10.1.0.5", "10.1.1.7", uint16(i), 0, make([]byte, i))
			nodes[0].dev.give(t, plain(p))
			want = append(want, hop(p))
		}
		for {
			err := nodes[0].out.carry()
			got, _ := datagramsOf(t, nodes[1].in.receive)
			for i, d := range got {
				if i >= len(want) || d.data != string(want[i]) {
					t.Fatalf("packet %d of %d: %x", i, len(got), d.data)
				}
			}
			want = want[len(got):]
			if err == unix.EAGAIN {
				break
			}
		}
		if len(want) > 0 {
			t.Fatalf("%d packets were not sent", len(want))
		}
	}
}

// A datagram has the TOS of its packet.
func TestOutboundTOS(t *testing.T) {
	onOneProcessor(t)
	nodes := restNodes(t, offload, "127.0.0.1", "127.0.0.2")
	for tos := range 256 {
		p := edit(segment(unix.IPPROTO_UDP, "10.1.0.5", "10.1.1.7", 1, 0, nil), func(p []byte) { p[1] = byte(tos) })
		nodes[0].dev.give(t, plain(p))
	}
	carryAll(t, nodes[0].out.carry)
	got, _ := datagramsOf(t, nodes[1].in.receive)
	if len(got) != 256 {
		t.Fatalf("%d datagrams", len(got))
	}
	for i, d := range got {
		if int(d.tos) != i || d.data[1] != byte(i) {
			t.Errorf("the packet with TOS %#02x comes with %#02x in a datagram with %#02x", i, d.data[1], d.tos)
		}
	}
}

// ICMP errors get to the sender, and quote its packet as it was.
func TestOutboundAnswers(t *testing.T) {
	onSmallLoopback(t, func(h *lab.Host) {
		h.Run("ip", "addr", "add", "10.1.0.5/32", "dev", "lo")
		raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(raw)
		nodes := restNodes(t, offload, "127.0.0.1", "127.0.0.2")
		nodes[0].out.icmp.source = netip.MustParseAddr("10.1.0.5")
		m, packets := super(unix.IPPROTO_TCP, "10.1.0.5", "10.1.1.7", 9, 1400, make([]byte, 4000))
		expiredSuper := bytes.Clone(m)
		edit(expiredSuper[gso.HeaderLen:], func(p []byte) { p[8] = 1 })
		large := segment(unix.IPPROTO_UDP, "10.1.0.5", "10.1.1.7", 7, 0, make([]byte, 1480))
		tooLargeSuper, cut := super(unix.IPPROTO_TCP, "10.1.0.5", "10.1.1.7", 9, 1440, make([]byte, 1500))
		nowhere := edit(segment(unix.IPPROTO_UDP, "10.1.0.5", "10.1.1.7", 7, 0, nil), func(p []byte) { p[18] = 200 })
		for _, tc := range []struct {
			name      string
			message   []byte
			typ, code byte
			mtu       int
			quoted    []byte
			want      Counters
		}{
			{"nowhere", plain(bytes.Clone(nowhere)), 3, 0, 0, nowhere, Counters{NoSubnet: 1}},
			{"expired", expiredSuper, 11, 0, 0, edit(bytes.Clone(packets[0]), func(p []byte) { p[8] = 1 }), Counters{Expired: 1}},
			{"too large", plain(bytes.Clone(large)), 3, 4, 1472, large, Counters{TooLarge: 1}},
			{"a segment too large", tooLargeSuper, 3, 4, 1472, cut[0], Counters{TooLarge: 1, Sent: 1, SentBytes: uint64(len(cut[1]))}},
			{"large, in fragments", plain(edit(bytes.Clone(large), func(p []byte) { p[6] = 0 })), 0, 0, 0, nil, Counters{Sent: 1, SentBytes: uint64(len(large))}},
		} {
			before := nodes[0].count.snapshot()
			nodes[0].dev.give(t, tc.message)
			carryAll(t, nodes[0].out.carry)
			if tc.quoted != nil {
				tc.want.ICMPSent = 1
			}
			got := nodes[0].count.snapshot()
			got.Sent -= before.Sent
			got.SentBytes -= before.SentBytes
			got.TooLarge -= before.TooLarge
			got.NoSubnet -= before.NoSubnet
			got.Expired -= before.Expired
			got.ICMPSent -= before.ICMPSent
			got.SentMessages = Batches{}
			if got != tc.want {
				t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
			}
			if tc.quoted == nil {
				if got, _ := datagramsOf(t, nodes[1].in.receive); len(got) == 0 || len(got[len(got)-1].data) != len(large) {
					t.Errorf("%s: it does not arrive", tc.name)
				}
				continue
			}
			awaitInput(t, raw)
			buf := make([]byte, 1000)
			n, err := unix.Read(raw, buf)
			if err != nil {
				t.Fatal(err)
			}
			msg := buf[ipHeader:n]
			if msg[0] != tc.typ || msg[1] != tc.code || int(binary.BigEndian.Uint16(msg[6:])) != tc.mtu || !bytes.HasPrefix(tc.quoted, msg[8:]) || len(msg) < min(len(tc.quoted), 500) {
				t.Errorf("%s: answered by %x, want type %d, code %d, MTU %d, about %.100x", tc.name, msg, tc.typ, tc.code, tc.mtu, tc.quoted)
			}
		}
	})
}

// Whatever comes from the device, nothing panics, and what is sent is whole IPv4
// packets, each counted.
func FuzzOutbound(f *testing.F) {
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		m, _ := super(protocol, "10.1.0.5", "10.1.1.7", 1, 100, make([]byte, 350))
		f.Add(m)
	}
	f.Add(plain(testPacket("10.1.0.5", "10.1.1.7", 64, unix.IPPROTO_UDP, []byte("payload"))))
	f.Add(plain(testPacket("10.1.0.5", "10.1.200.7", 1, unix.IPPROTO_ICMP, []byte{8, 0})))
	f.Add(plain(testPacket("10.1.0.5", "10.1.1.7", 1, unix.IPPROTO_ICMP, []byte{8, 0})))
	f.Add(vnet(gso.Header{Flags: gso.NeedsChecksum, Start: 0, Offset: 2}, testPacket("10.1.0.5", "10.1.1.7", 64, 17, make([]byte, 20))))
	f.Add([]byte{})
	nodes := restNodes(f, offload, "127.0.0.1", "127.0.0.2")
	icmp := nodes[0].out.icmp // it gets no further, as there is no route
	icmp.limiter = rate.NewLimiter(rate.Inf, 1)
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) > 4000 {
			t.Skip() // cut by one byte, that is more than a receiver can hold
		}
		right := len(message) >= gso.HeaderLen+ipHeader && whole(message[gso.HeaderLen:]) && checksum(message[gso.HeaderLen:][:headerLen(message[gso.HeaderLen:])]) == 0
		clear(icmp.buf[:])
		before := nodes[0].count.snapshot()
		nodes[0].dev.give(t, message)
		carryAll(t, nodes[0].out.carry)
		got := nodes[0].count.snapshot()
		if b := icmp.buf[:]; b[0] != 0 {
			if n := packetLen(b); n < ipHeader+icmpHeader || n > len(b) || !rightChecksums(b[:n]) || checksum(b[ipHeader:n]) != 0 {
				t.Errorf("answers %x", b)
			}
		}
		sent, size := uint64(0), uint64(0)
		datagrams, _ := datagramsOf(t, nodes[1].in.receive)
		for _, d := range datagrams {
			p := []byte(d.data)
			if !whole(p) || right && checksum(p[:headerLen(p)]) != 0 || d.tos != p[1] {
				t.Errorf("sends %x", p)
			}
			sent++
			size += uint64(len(p))
		}
		if len(message) >= gso.HeaderLen+ipHeader && bytes.Equal(message[gso.HeaderLen+16:][:3], []byte{10, 1, 1}) && (got.Sent-before.Sent != sent || got.SentBytes-before.SentBytes != size) {
			t.Errorf("%d packets of %d bytes arrive, counted are %d of %d", sent, size, got.Sent-before.Sent, got.SentBytes-before.SentBytes)
		}
		if got.Sent == before.Sent && got.NotIPv4+got.ReadErrors+got.NoSubnet+got.Expired+got.TooLarge+got.SendErrors !=
			before.NotIPv4+before.ReadErrors+before.NoSubnet+before.Expired+before.TooLarge+before.SendErrors+1 {
			t.Errorf("counted as neither: before %+v, now %+v", before, got)
		}
	})
}
