package gso

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// FuzzCut has the kernel hand over anything that is a whole IPv4 packet.
func FuzzCut(f *testing.F) {
	add := func(h Header, p []byte) {
		header := make([]byte, HeaderLen)
		h.Put(header)
		f.Add(header, p)
	}
	r := rand.New(rand.NewPCG(1, 0))
	for range 20 {
		s, size := randomSuper(r)
		s.payload = s.payload[:min(len(s.payload), 300)]
		add(s.super(size))
	}
	add(Header{Flags: NeedsChecksum, Start: 20, Offset: 6}, udpSpec(3).packet())
	f.Fuzz(func(t *testing.T, header, p []byte) {
		if len(header) < HeaderLen || len(p) < ipHeader || len(p) > maxPacket {
			return
		}
		h, p := ParseHeader(header), whole(bytes.Clone(p))
		want, ok := plainCut(h, p)
		got, err := cutAll(h, bytes.Clone(p))
		if (err == nil) != ok {
			t.Fatalf("%+v of\n%s: %v, but plain cutting leads to %d packets", h, show(p), err, len(want))
		}
		if d := sameBytes(got, want); d != "" {
			t.Fatalf("%+v of\n%s: %s", h, show(p), d)
		}

		done := bytes.Clone(p)
		if err := Complete(h, done); err != nil || h.Flags&NeedsChecksum == 0 {
			if !bytes.Equal(done, p) {
				t.Fatalf("%+v: %v, but\n%s has been changed to\n%s", h, err, show(p), show(done))
			}
			return
		}
		at := int(h.Start) + int(h.Offset)
		sum := ^plainSum(p[h.Start:])
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(p[at:], sum)
		if !bytes.Equal(done, p) {
			t.Fatalf("%+v leads to\n%s want\n%s", h, show(done), show(p))
		}
	})
}

// What a stream's packets begin with, that they are made from what follows it.
const (
	follows   = 1 << iota // the packet that would come next in the flow of another, not one of the stream's own
	older                 // of the one before the last, not of the last
	corrupt               // a byte is changed
	repaired              // the checksums are made right, in the end
	shortened             // bytes are missing at the end
	lengthen              // there are more bytes
)

// stream makes packets of any bytes. Most that are all one's own are of no flow
// that continues, so each may be made to follow another.
func stream(b []byte) (packets [][]byte) {
	take := func(n int) []byte {
		n = min(n, len(b))
		taken := b[:n]
		b = b[n:]
		return taken
	}
	number := func() int {
		n := 0
		for _, x := range take(2) {
			n = n<<8 | int(x)
		}
		return n
	}
	for total := 0; len(b) > 0 && len(packets) < 150 && total < 1<<18; total += len(packets[len(packets)-1]) {
		how := take(1)[0]
		var p []byte
		before := 1
		if how&older != 0 {
			before = 2
		}
		if how&follows != 0 && len(packets) >= before {
			p = bytes.Clone(packets[len(packets)-before])
			binary.BigEndian.PutUint16(p[4:], 1+binary.BigEndian.Uint16(p[4:]))
			if ip := int(p[0]&0x0f) * 4; ip >= ipHeader && p[9] == protocolTCP && len(p) >= ip+tcpHeader {
				payload := len(p) - ip - int(p[ip+12]>>4)*4
				binary.BigEndian.PutUint32(p[ip+4:], uint32(payload)+binary.BigEndian.Uint32(p[ip+4:]))
			}
			repair(p)
		} else {
			p = make([]byte, ipHeader+number()%2000)
			copy(p, take(len(p)))
		}
		if how&shortened != 0 {
			p = p[:max(ipHeader, len(p)-number())]
		}
		if how&lengthen != 0 {
			p = append(p, make([]byte, min(number(), maxPacket-len(p)))...)
		}
		if how&corrupt != 0 {
			p[number()%len(p)] ^= byte(number())
		}
		whole(p)
		if how&repaired != 0 {
			if at := checksumAt(p); at == int(p[0]&0x0f)*4+udpChecksum {
				binary.BigEndian.PutUint16(p[at-2:], uint16(len(p)-at+udpChecksum))
			}
			repair(p)
		}
		packets = append(packets, p)
	}
	return packets
}

// FuzzJoin has peers send anything that is a whole IPv4 packet.
func FuzzJoin(f *testing.F) {
	next := []byte{follows, follows | repaired, follows | older, follows | corrupt | repaired, 0, 13, 16, follows | shortened | repaired, 0, 5, follows}
	for _, s := range []spec{tcpSpec(10), udpSpec(10), tcpSpec(1500), udpSpec(0)} {
		p := s.packet()
		own := append([]byte{repaired, byte((len(p) - ipHeader) >> 8), byte(len(p) - ipHeader)}, p...)
		f.Add(append(bytes.Clone(own), next...), true)
		f.Add(append(append(bytes.Clone(own), own...), bytes.Repeat(next, 20)...), false)
		f.Add(append(append(bytes.Clone(own), own...), bytes.Repeat([]byte{follows | older}, 100)...), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, udp bool) {
		var to writes
		j := newRecorder(udp, &to)
		given := stream(b)
		half := len(given) / 2
		for _, batch := range [][][]byte{given[:half], given[half:], given} {
			if err := checkJoin(j, &to, udp, batch); err != nil {
				t.Fatal(err)
			}
		}
	})
}
