package gso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// joinable reports whether packets of that kind are ever joined.
func (s spec) joinable() bool {
	return len(s.ipOptions) == 0 && s.frag&^0x4000 == 0 &&
		(s.protocol == protocolUDP || s.offset == 0 && s.flags&(syn|rst|ack|urg) == ack)
}

// Joining undoes cutting: the super-packet comes back byte for byte, or as several
// if it was larger than one may be.
func TestJoinUndoesCut(t *testing.T) {
	r := newRand(t)
	back := 0
	for range 600 {
		s, size := randomSuper(r)
		h, p := s.super(size)
		cut, err := cutAll(h, p)
		if err != nil {
			t.Fatal(err)
		}
		w := joinAll(true, cut)
		got, err := w.packets()
		if err != nil {
			t.Fatal(err)
		}
		if d := sameBytes(got, cut); d != "" { // one flow: so they are in order
			t.Fatalf("%+v joined as %v: %s", s, w, d)
		}
		switch {
		case !s.joinable():
			if len(w) != len(cut) {
				t.Fatalf("%+v: joined as %v", s, w)
			}
		case len(cut) > 1 && len(cut) <= MaxPackets:
			if len(w) != 1 || w[0].header != h || !bytes.Equal(w[0].bytes, p) {
				t.Fatalf("%d packets joined as %v, with %+v, want %+v:\n%s\nwant\n%s", len(cut), w, w[0].header, h, show(w[0].bytes), show(p))
			}
			back++
		default:
			if want := (len(cut) + MaxPackets - 1) / MaxPackets; len(w) != want {
				t.Fatalf("%d packets joined as %v, want %d", len(cut), w, want)
			}
		}
	}
	if back < 10 {
		t.Errorf("only %d super-packets came back: that tests nothing", back)
	}
}

// Packets in order become as few super-packets as may be, with up to 8 flows mixed
// in whatever way.
func TestJoinMixed(t *testing.T) {
	r := newRand(t)
	for range 100 {
		var runs [][][]byte
		var given [][]byte
		want := 0
		for i := range 1 + r.IntN(maxFlows) {
			s := oneOf(r, tcpSpec(1+r.IntN(1460)), udpSpec(1+r.IntN(1460)))
			s.id, s.seq = uint16(r.Uint32()), r.Uint32()
			// Each differs from the first in one thing, or in protocol.
			switch i % 4 {
			case 0:
				s.from += uint16(i)
			case 1:
				s.to += uint16(i)
			case 2:
				s.src += uint32(i)
			case 3:
				s.dst += uint32(i)
			}
			runs = append(runs, plainRun(s, 1+r.IntN(100)))
			most := min(MaxPackets, (maxPacket-s.headers())/len(s.payload))
			want += (len(runs[i]) + most - 1) / most
		}
		for len(runs) > 0 {
			i := r.IntN(len(runs))
			n := 1 + r.IntN(len(runs[i]))
			given = append(given, runs[i][:n]...)
			if runs[i] = runs[i][n:]; len(runs[i]) == 0 {
				runs = slices.Delete(runs, i, i+1)
			}
		}
		w := joinAll(true, given)
		if len(w) != want {
			t.Fatalf("written as %v, %d times, want %d", w, len(w), want)
		}
		got, err := w.packets()
		if err != nil {
			t.Fatal(err)
		}
		if d := sameFlows(got, given); d != "" {
			t.Fatal(d)
		}
	}
}

// One flow more than can be open, and the one that was begun first makes room.
func TestJoinManyFlows(t *testing.T) {
	var given, want [][]byte
	run := func(port, n int) [][]byte {
		s := udpSpec(100)
		s.to = uint16(port)
		return plainRun(s, n)
	}
	for port := range maxFlows + 1 {
		given = append(given, run(port, 3)[0])
	}
	for port := maxFlows; port >= 0; port-- {
		given = append(given, run(port, 3)[1:]...)
	}
	// Flow 0 is written when 8 begins. 7 to 1 stay, in the order in which they
	// began, but 1 has to go when 0 begins once more.
	want = append(want, run(0, 3)[:1]...)
	for port := 1; port <= maxFlows; port++ {
		want = append(want, run(port, 3)...)
	}
	want = append(want, run(0, 3)[1:]...)
	w := joinAll(true, given)
	if got := w.String(); got != "[1 3 3 3 3 3 3 3 3 2]" {
		t.Errorf("written as %s", got)
	}
	got, err := w.packets()
	if err != nil {
		t.Fatal(err)
	}
	if d := sameBytes(got, want); d != "" {
		t.Error(d)
	}
}

// Each change to the third of five packets, checksums and all, and how many are
// joined then.
func TestWhatIsJoined(t *testing.T) {
	timestamp := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 3}
	longer := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 1, 1}
	for _, tc := range []struct {
		name   string
		change func(s *spec)
		tcp    string
		udp    string // "" where there is no such thing
	}{
		{"nothing", func(s *spec) {}, "[5]", "[5]"},
		{"shorter", func(s *spec) { s.payload = s.payload[:99] }, "[3 2]", "[3 2]"},
		{"one byte", func(s *spec) { s.payload = s.payload[:1] }, "[3 2]", "[3 2]"},
		{"longer", func(s *spec) { s.payload = append(s.payload, 1) }, "[2 1 2]", "[2 2 1]"},
		{"empty", func(s *spec) { s.payload = nil }, "[2 1 2]", "[2 1 2]"},
		{"TOS", func(s *spec) { s.tos = 1 }, "[2 1 2]", "[2 1 2]"},
		{"TTL", func(s *spec) { s.ttl-- }, "[2 1 2]", "[2 1 2]"},
		{"DF", func(s *spec) { s.frag = 0 }, "[2 1 2]", "[2 1 2]"},
		{"reserved bit", func(s *spec) { s.frag |= 0x8000 }, "[2 1 2]", "[2 1 2]"},
		{"first fragment", func(s *spec) { s.frag |= 0x2000 }, "[2 1 2]", "[2 1 2]"},
		{"fragment", func(s *spec) { s.frag |= 1 }, "[2 1 2]", "[2 1 2]"},
		{"fragment far behind", func(s *spec) { s.frag |= 0x1000 }, "[2 1 2]", "[2 1 2]"},
		{"IP options", func(s *spec) { s.ipOptions = make([]byte, 4) }, "[2 1 2]", "[2 1 2]"},
		{"ID", func(s *spec) { s.id++ }, "[2 1 2]", "[2 1 2]"},
		{"ID of the one before", func(s *spec) { s.id-- }, "[2 1 2]", "[2 1 2]"},
		{"seq", func(s *spec) { s.seq++ }, "[2 1 2]", ""},
		{"seq before", func(s *spec) { s.seq -= 100 }, "[2 1 2]", ""},
		{"ack", func(s *spec) { s.ack++ }, "[2 1 2]", ""},
		{"window", func(s *spec) { s.window++ }, "[2 1 2]", ""},
		{"urgent pointer", func(s *spec) { s.urgent = 1 }, "[2 1 2]", ""},
		{"timestamp", func(s *spec) { s.tcpOptions = timestamp }, "[2 1 2]", ""},
		{"more options", func(s *spec) { s.tcpOptions = longer }, "[2 1 2]", ""},
		{"more options, as long in all", func(s *spec) { s.tcpOptions = longer; s.payload = s.payload[:96] }, "[2 1 2]", ""},
		{"fewer options", func(s *spec) { s.tcpOptions = longer[:8] }, "[2 1 2]", ""},
		{"no options", func(s *spec) { s.tcpOptions = nil }, "[2 1 2]", ""},
		{"reserved flags", func(s *spec) { s.offset = 1 }, "[2 1 2]", ""},
		{"PSH", func(s *spec) { s.flags |= psh }, "[3 2]", ""},
		{"FIN", func(s *spec) { s.flags |= fin }, "[3 2]", ""},
		{"FIN and PSH", func(s *spec) { s.flags |= fin | psh }, "[3 2]", ""},
		{"SYN", func(s *spec) { s.flags |= syn }, "[2 1 2]", ""},
		{"RST", func(s *spec) { s.flags |= rst }, "[2 1 2]", ""},
		{"URG", func(s *spec) { s.flags |= urg }, "[2 1 2]", ""},
		{"ECE", func(s *spec) { s.flags |= 0x40 }, "[2 1 2]", ""},
		{"CWR", func(s *spec) { s.flags |= cwr }, "[2 3]", ""}, // the next goes without it
		{"ECE and CWR", func(s *spec) { s.flags |= cwr | 0x40 }, "[2 1 2]", ""},
		{"no ACK", func(s *spec) { s.flags = 0 }, "[2 1 2]", ""},
		{"only PSH", func(s *spec) { s.flags = psh }, "[2 1 2]", ""},
		// Other flows: to these the third is missing.
		{"port from", func(s *spec) { s.from++ }, "[2 1 2]", "[2 1 2]"},
		{"port to", func(s *spec) { s.to++ }, "[2 1 2]", "[2 1 2]"},
		{"source", func(s *spec) { s.src++ }, "[2 1 2]", "[2 1 2]"},
		{"destination", func(s *spec) { s.dst++ }, "[2 1 2]", "[2 1 2]"},
		{"ports exchanged", func(s *spec) { s.from, s.to = s.to, s.from }, "[2 1 2]", "[2 1 2]"},
	} {
		for _, first := range []spec{tcpSpec(100), udpSpec(100)} {
			want := tc.tcp
			if first.protocol == protocolUDP {
				want = tc.udp
			}
			if want == "" {
				continue
			}
			var given [][]byte
			for i := range 5 {
				s := first
				s.id += uint16(i)
				s.seq += 100 * uint32(i)
				if i == 2 {
					s.payload = slices.Clone(s.payload)
					tc.change(&s)
				}
				given = append(given, s.packet())
			}
			expectJoined(t, fmt.Sprintf("protocol %d: %s", first.protocol, tc.name), given, want, true)
		}
	}
}

// expectJoined gives packets to a Joiner, of which the writes ought to be of so
// many packets each.
func expectJoined(t *testing.T, what string, given [][]byte, want string, udp bool) {
	t.Helper()
	w := joinAll(udp, given)
	packets, err := w.packets()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if d := sameFlows(packets, given); d != "" {
		t.Errorf("%s: written as %v: %s", what, w, d)
	}
	if got := w.String(); got != want {
		t.Errorf("%s: written as %s, want %s", what, got, want)
	}
}

// A first packet that cannot be one of a super-packet is written at once, so is
// one that nothing may follow.
func TestWhatBegins(t *testing.T) {
	for _, tc := range []struct {
		name  string
		first func(s *spec)
		want  string
	}{
		{"plain", func(s *spec) {}, "[3]"},
		{"ECE", func(s *spec) { s.flags |= 0x40 }, "[1 2]"},
		{"CWR", func(s *spec) { s.flags |= cwr }, "[3]"},
		{"PSH", func(s *spec) { s.flags |= psh }, "[1 2]"},
		{"FIN", func(s *spec) { s.flags |= fin }, "[1 2]"},
		{"SYN", func(s *spec) { s.flags |= syn }, "[1 2]"},
		{"RST", func(s *spec) { s.flags |= rst }, "[1 2]"},
		{"URG", func(s *spec) { s.flags |= urg }, "[1 2]"},
		{"no ACK", func(s *spec) { s.flags = 0 }, "[1 2]"},
		{"reserved flags", func(s *spec) { s.offset = 1 }, "[1 2]"},
		{"a bit more payload", func(s *spec) { s.payload = append([]byte{1}, s.payload...); s.seq-- }, "[2 1]"},
		{"a bit less payload", func(s *spec) { s.payload = s.payload[1:]; s.seq++ }, "[1 2]"},
		{"no payload", func(s *spec) { s.payload = nil; s.seq += 100 }, "[1 2]"},
	} {
		run := plainRun(tcpSpec(100), 3)
		s := tcpSpec(100)
		tc.first(&s)
		run[0] = s.packet()
		expectJoined(t, tc.name, run, tc.want, true)
	}
	// And all alike.
	for _, tc := range []struct {
		name   string
		change func(s *spec)
		want   string
	}{
		{"ECE", func(s *spec) { s.flags |= 0x40 }, "[3]"},
		{"CWR", func(s *spec) { s.flags |= cwr }, "[1 1 1]"},
		{"PSH", func(s *spec) { s.flags |= psh }, "[1 1 1]"},
		{"FIN", func(s *spec) { s.flags |= fin }, "[1 1 1]"},
		{"SYN", func(s *spec) { s.flags |= syn }, "[1 1 1]"},
		{"RST", func(s *spec) { s.flags |= rst }, "[1 1 1]"},
		{"URG", func(s *spec) { s.flags |= urg }, "[1 1 1]"},
		{"no ACK", func(s *spec) { s.flags = 0 }, "[1 1 1]"},
		{"urgent pointer", func(s *spec) { s.urgent = 9 }, "[3]"},
		{"reserved flags", func(s *spec) { s.offset = 1 }, "[1 1 1]"},
		{"no DF", func(s *spec) { s.frag = 0 }, "[3]"},
		{"reserved bit", func(s *spec) { s.frag = 0x8000 }, "[1 1 1]"},
		{"IP options", func(s *spec) { s.ipOptions = make([]byte, 8) }, "[1 1 1]"},
		{"no TCP options", func(s *spec) { s.tcpOptions = nil }, "[3]"},
		{"most TCP options", func(s *spec) { s.tcpOptions = bytes.Repeat([]byte{1}, 40) }, "[3]"},
		{"one byte each", func(s *spec) { s.payload = s.payload[:1] }, "[3]"},
		{"no payload", func(s *spec) { s.payload = nil }, "[1 1 1]"},
		{"TOS and TTL", func(s *spec) { s.tos, s.ttl = 0xff, 1 }, "[3]"},
		{"ID around 0", func(s *spec) { s.id = 0xffff }, "[3]"},
		{"seq around 0", func(s *spec) { s.seq = 0xffffffff }, "[3]"},
	} {
		s := tcpSpec(100)
		tc.change(&s)
		expectJoined(t, "all with "+tc.name, plainRun(s, 3), tc.want, true)
	}
}

// Datagrams are joined if the kernel takes super-packets of them.
func TestJoinDatagrams(t *testing.T) {
	given := plainRun(udpSpec(100), 3)
	expectJoined(t, "UDP", given, "[3]", true)
	expectJoined(t, "UDP, not to be joined", given, "[1 1 1]", false)
	expectJoined(t, "TCP", plainRun(tcpSpec(100), 3), "[3]", false)
	for i, want := range []string{"[1 2]", "[1 1 1]", "[2 1]"} {
		some := plainRun(udpSpec(100), 3)
		some[i][ipHeader+udpChecksum], some[i][ipHeader+udpChecksum+1] = 0, 0
		expectJoined(t, fmt.Sprintf("without a checksum in the %d.", i), some, want, true)

		for _, wrong := range []int{-1, 1, 200} {
			some := plainRun(udpSpec(100), 3)
			length := some[i][ipHeader+4:]
			binary.BigEndian.PutUint16(length, uint16(int(binary.BigEndian.Uint16(length))+wrong))
			expectJoined(t, fmt.Sprintf("with a length wrong by %d in the %d.", wrong, i), some, want, true)
			repair(some[i])
			expectJoined(t, fmt.Sprintf("with a length wrong by %d in the %d., and the checksum right", wrong, i), some, want, true)
		}
	}
}

// What a batch was does not matter to the next.
func TestJoinAgain(t *testing.T) {
	var w writes
	j := newRecorder(true, &w)
	mixed := func(change func(s *spec), last byte) (given [][]byte) {
		for port := range maxFlows {
			s := tcpSpec(100)
			s.to = uint16(port)
			change(&s)
			run := plainRun(s, 3)
			if s.protocol == protocolTCP {
				run[2][ipHeader+13] |= last
			}
			for _, p := range run {
				given = append(given, repair(p))
			}
		}
		return given
	}
	tcp := func(s *spec) {}
	udp := func(s *spec) { s.protocol, s.tcpOptions = protocolUDP, nil }
	large := func(s *spec) { s.payload = make([]byte, 20000) }
	for i, given := range [][][]byte{
		mixed(tcp, psh), mixed(udp, 0), mixed(tcp, 0), mixed(large, fin), mixed(udp, 0), mixed(tcp, fin), mixed(tcp, 0), mixed(udp, 0),
	} {
		if err := checkJoin(j, &w, true, given); err != nil {
			t.Errorf("batch %d: %v", i, err)
		}
		if got := w.String(); got != "[3 3 3 3 3 3 3 3]" {
			t.Errorf("batch %d is written as %s", i, got)
		}
	}
}

// No packet of which a bit is wrong gets into a super-packet, wherever the bit and
// the packet are, as the checksum of a super-packet is taken for right.
func TestJoinCorrupt(t *testing.T) {
	for _, s := range []spec{tcpSpec(33), udpSpec(33)} {
		for bit := range 8 * (s.headers() + 33) {
			if at := bit / 8; at == 0 || at == 2 || at == 3 {
				continue // a packet that a Joiner does not get
			}
			for i := range 4 {
				given := plainRun(s, 4)
				given[i][bit/8] ^= 1 << (bit % 8)
				w := joinAll(true, given)
				got, err := w.packets()
				if err != nil {
					t.Fatal(err)
				}
				if d := sameFlows(got, given); d != "" {
					t.Fatalf("bit %d of packet %d, joined as %v: %s", bit, i, w, d)
				}
				if !slices.ContainsFunc(w, func(one written) bool { return one.header.Type == None && bytes.Equal(one.bytes, given[i]) }) {
					t.Fatalf("bit %d of packet %d, joined as %v: it is in there", bit, i, w)
				}
			}
		}
	}
	// Nothing that is right is held up by it.
	for i, want := range []string{"[1 4]", "[1 1 3]", "[2 1 2]", "[3 1 1]", "[4 1]"} {
		for _, s := range []spec{tcpSpec(33), udpSpec(33)} {
			given := plainRun(s, 5)
			given[i][s.headers()] ^= 1
			expectJoined(t, fmt.Sprintf("protocol %d, with packet %d wrong", s.protocol, i), given, want, true)
		}
	}
}

// There are two ways to write a checksum of 0, and cutting knows one of them: in
// UDP 0xffff, else 0. A packet with the other has to stay as it is.
func TestJoinZeroChecksum(t *testing.T) {
	for i, want := range []string{"[1 2]", "[1 1 1]", "[2 1]"} {
		for _, s := range []spec{tcpSpec(100), udpSpec(100)} {
			what := fmt.Sprintf("protocol %d, packet %d", s.protocol, i)
			given := plainRun(s, 3)
			p := given[i]
			zero := s.zeroChecksumOf(p)
			given[i] = zero
			expectJoined(t, what+" with a checksum of 0", given, "[3]", true)
			if s.protocol == protocolTCP {
				zero[ipHeader+tcpChecksum], zero[ipHeader+tcpChecksum+1] = 0xff, 0xff
				expectJoined(t, what+" with a checksum of 0xffff", given, want, true)
			} else { // which adds up, but says that there is none
				zero[ipHeader+udpChecksum], zero[ipHeader+udpChecksum+1] = 0, 0
				expectJoined(t, what+" without a checksum", given, want, true)
			}
		}
		// In IP: the addresses are to make it 0, which are the same in all.
		given := plainRun(tcpSpec(100), 3)
		binary.BigEndian.PutUint16(given[i][10:], 0)
		fitting := ^plainSum(given[i][:ipHeader])
		for _, p := range given {
			binary.BigEndian.PutUint16(p[12:], fitting+binary.BigEndian.Uint16(p[12:]))
			if uint32(fitting)+uint32(0x0a01) > 0xffff {
				binary.BigEndian.PutUint16(p[12:], 1+binary.BigEndian.Uint16(p[12:]))
			}
			repair(p)
		}
		if given[i][10] != 0 || given[i][11] != 0 {
			t.Fatalf("the IP checksum is %x, want 0", given[i][10:12])
		}
		expectJoined(t, "IP checksum of 0", given, "[3]", true)
		given[i][10], given[i][11] = 0xff, 0xff
		expectJoined(t, "IP checksum of 0xffff", given, want, true)
	}
}

// zeroChecksumOf is a packet with the same headers whose payload begins so that
// its checksum comes out as 0.
func (s spec) zeroChecksumOf(p []byte) []byte {
	p = bytes.Clone(p)
	payload := p[s.headers():]
	payload[0], payload[1] = 0, 0
	repair(p)
	copy(payload, p[checksumAt(p):][:2])
	return repair(p)
}

func TestJoinLimits(t *testing.T) {
	for _, tc := range []struct {
		payload, packets int
		headers          int // of TCP with that many bytes of options, 0 for UDP
		want             string
	}{
		{1, 64, 20, "[64]"},
		{1, 65, 20, "[64 1]"},
		{1, 200, 0, "[64 64 64 8]"},
		{1460, 46, 20, "[44 2]"},          // 40 + 44 * 1460 = 64280
		{13099, 6, 20, "[5 1]"},           // 40 + 5 * 13099 = 65535
		{16374, 5, 20, "[3 2]"},           // 40 + 4 * 16374 = 65536
		{13091, 6, 60, "[5 1]"},           // 80 + 5 * 13091 = 65535
		{16364, 5, 60, "[3 2]"},           // 80 + 4 * 16364 = 65536
		{5039, 14, 0, "[13 1]"},           // 28 + 13 * 5039 = 65535
		{16377, 5, 0, "[3 2]"},            // 28 + 4 * 16377 = 65536
		{65535 - 28, 3, 0, "[1 1 1]"},     // nothing fits any more
		{65535 - 40, 3, 20, "[1 1 1]"},    //
		{(65535-28)/2 + 1, 2, 0, "[1 1]"}, // 65536
		{(65535 - 28) / 2, 2, 0, "[2]"},   // 65534
	} {
		s := udpSpec(tc.payload)
		if tc.headers > 0 {
			s = tcpSpec(tc.payload)
			s.tcpOptions = make([]byte, tc.headers-tcpHeader)
		}
		expectJoined(t, fmt.Sprintf("%d packets of %d bytes after %d", tc.packets, tc.payload, s.headers()), plainRun(s, tc.packets), tc.want, true)
	}
	// One byte may be too many, too, in the last.
	s := udpSpec(16377)
	given := plainRun(s, 3)
	s.id += 3
	for missing, want := range []string{"[3 1]", "[4]"} {
		s.payload = s.payload[:16377-missing]
		expectJoined(t, fmt.Sprintf("%d bytes less", missing), append(slices.Clip(given), s.packet()), want, true)
	}
}

// Whatever tells no flow does not get past packets of the same hosts and protocol,
// or they past it, and leaves others alone.
func TestJoinPortless(t *testing.T) {
	tcp, udp := tcpSpec(100), udpSpec(100)
	otherPort, otherHost := tcp, tcp
	otherPort.to++
	otherHost.dst++
	fragment := tcp
	fragment.frag = 0x2000 | 100
	short := tcp.packet()[:ipHeader+tcpHeader-1]
	shorter := tcp.packet()[:ipHeader+3]
	noRoom := tcp.packet()
	noRoom[ipHeader+12] = 4 << 4
	tooLong := tcp.packet()[:ipHeader+tcpHeader+3]
	options := tcp
	options.ipOptions = make([]byte, 4)
	for name, p := range map[string][]byte{
		"fragment": fragment.packet(), "short": whole(short), "no ports": whole(shorter), "TCP header of 16 bytes": noRoom,
		"TCP header longer than the packet": whole(tooLong), "no header": whole(tcp.packet()[:ipHeader]), "IP options": options.packet(),
	} {
		var given [][]byte
		runs := [][][]byte{plainRun(tcp, 4), plainRun(udp, 4), plainRun(otherPort, 4), plainRun(otherHost, 4)}
		for i := range 4 {
			if i == 2 {
				given = append(given, p)
			}
			for _, run := range runs {
				given = append(given, run[i])
			}
		}
		// The first and third flow are interrupted.
		expectJoined(t, name, given, "[2 2 1 4 4 2 2]", true)
	}
}

// A packet of a flow that is open, but may not be joined, is not written before
// what is open.
func TestJoinOrder(t *testing.T) {
	given := plainRun(tcpSpec(100), 2)
	s := tcpSpec(0)
	s.flags |= rst
	given = append(given, s.packet())
	got, err := joinAll(true, given).packets()
	if err != nil {
		t.Fatal(err)
	}
	if d := sameBytes(got, given); d != "" {
		t.Error(d)
	}
}

// A packet that nothing was joined to is handed over as it lies there, and so is
// the payload of those that were.
func TestJoinDoesNotCopy(t *testing.T) {
	var got [][]byte
	j := NewJoiner(true, func(h Header, pieces [][]byte) { got = append(got, pieces...) })
	run := plainRun(udpSpec(100), 3)
	single := tcpSpec(0).packet()
	for _, p := range append(slices.Clone(run), single) {
		j.Add(p)
	}
	if len(got) != 1 {
		t.Fatalf("before the end %d pieces were written, want the one that cannot be joined", len(got))
	}
	j.Flush()
	headers := udpSpec(0).headers()
	want := []*byte{&single[0], &run[0][0], &run[1][headers], &run[2][headers]}
	for i, p := range want {
		if i >= len(got) || &got[i][0] != p {
			t.Fatalf("piece %d of %d is not where it was", i, len(got))
		}
	}
	for _, s := range j.open {
		for _, p := range s.pieces[:cap(s.pieces)] {
			if p != nil {
				t.Fatal("a packet is held on to after Flush")
			}
		}
	}
}

// benchJoin gives packets to a Joiner again and again.
type benchJoin struct {
	j              *Joiner
	packets        [][]byte
	firsts         [][]byte // headers that the Joiner changes
	writes, pieces int
}

func newBenchJoin(runs ...[][]byte) *benchJoin {
	b := &benchJoin{}
	b.j = NewJoiner(true, func(h Header, pieces [][]byte) { b.writes++; b.pieces += len(pieces) })
	for i := range runs[0] {
		for _, run := range runs {
			b.packets = append(b.packets, run[i])
		}
	}
	for range runs {
		b.firsts = append(b.firsts, bytes.Clone(b.packets[len(b.firsts)][:60]))
	}
	return b
}

func (b *benchJoin) run() {
	for i, p := range b.firsts {
		copy(b.packets[i], p)
	}
	for _, p := range b.packets {
		b.j.Add(p)
	}
	b.j.Flush()
}

func TestJoinAllocates(t *testing.T) {
	for _, s := range []spec{tcpSpec(1420), udpSpec(1420)} {
		other := s
		other.to++
		b := newBenchJoin(plainRun(s, 46), plainRun(other, 46))
		if n := testing.AllocsPerRun(100, b.run); n != 0 {
			t.Errorf("protocol %d: %v allocations", s.protocol, n)
		}
		if b.writes != 2*101 || b.pieces != 46*b.writes {
			t.Errorf("protocol %d: %d packets in %d writes", s.protocol, b.pieces, b.writes)
		}
	}
}

func BenchmarkJoin(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d flows", n), func(b *testing.B) {
			var runs [][][]byte
			for i := range n {
				s := tcpSpec(1420)
				s.to += uint16(i)
				runs = append(runs, plainRun(s, 46))
			}
			join := newBenchJoin(runs...)
			b.ReportAllocs()
			b.SetBytes(int64(n * 46 * 1420))
			for b.Loop() {
				join.run()
			}
			if join.pieces != 46*join.writes {
				b.Fatalf("%d packets in %d writes", join.pieces, join.writes)
			}
		})
	}
}
