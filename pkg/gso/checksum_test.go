package gso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// native is a checksum in network byte order as a number of the machine, as Fold
// gives them.
func native(x uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, x))
}

// Both zeros of one's complement stand for the same number, but only a sum of
// zeros is 0: so a sum that is not 0 never becomes one.
func TestSum(t *testing.T) {
	r := newRand(t)
	buf := make([]byte, 400)
	fills := map[string]func(b []byte){
		"random": func(b []byte) { copy(b, randomBytes(r, len(b))) },
		"zeros":  func(b []byte) { clear(b) },
		"ones": func(b []byte) {
			for i := range b {
				b[i] = 0xff
			}
		},
		"corners": func(b []byte) {
			for i := range b {
				b[i] = oneOf[byte](r, 0, 0xff, 1, 0xfe)
			}
		},
	}
	for name, fill := range fills {
		for length := range 301 {
			for offset := range 9 {
				fill(buf) // what is around must not count
				b := buf[offset : offset+length]
				want := native(plainSum(b))
				if got := Fold(Sum(0, b)); got != want {
					t.Fatalf("the sum of %d bytes (%s) at %d is %#x, want %#x:\n%x", length, name, offset, got, want, b)
				}
				// In two parts, and from sums at the edge of a carry.
				part := r.IntN(length/2+1) * 2
				if got := Fold(Sum(Sum(0, b[:part]), b[part:])); got != want {
					t.Fatalf("the sum of %d and %d bytes (%s) is %#x, want %#x:\n%x", part, length-part, name, got, want, b)
				}
				for _, before := range []uint64{1, 0xffff, 1<<32 - 1, 1 << 63, 1<<64 - 2, 1<<64 - 1, r.Uint64()} {
					eight := binary.NativeEndian.AppendUint64(nil, before)
					want := native(plainSum(append(eight, b...)))
					if got := Fold(Sum(before, b)); got != want {
						t.Fatalf("%#x and the sum of %d bytes (%s) are %#x, want %#x:\n%x", before, length, name, got, want, b)
					}
				}
			}
		}
	}
}

func TestSumLarge(t *testing.T) {
	r := newRand(t)
	for range 50 {
		b := randomBytes(r, r.IntN(maxPacket+1))
		if got, want := Fold(Sum(0, b)), native(plainSum(b)); got != want {
			t.Fatalf("the sum of %d bytes is %#x, want %#x", len(b), got, want)
		}
	}
	ones := bytes.Repeat([]byte{0xff}, maxPacket)
	if got, want := Fold(Sum(0, ones)), native(plainSum(ones)); got != want {
		t.Errorf("the sum of %d ones is %#x, want %#x", len(ones), got, want)
	}
}

func TestFold(t *testing.T) {
	r := newRand(t)
	sums := []uint64{0, 1, 0xffff, 0x10000, 0x1fffe, 1<<32 - 1, 1 << 32, 1<<48 - 1, 1<<64 - 1, 1<<64 - 2, 0xffff0000ffff0001, 0xfffffffffffe0001}
	for range 10000 {
		sums = append(sums, r.Uint64(), r.Uint64()>>r.IntN(64), ^(r.Uint64() >> r.IntN(64)))
	}
	for _, sum := range sums {
		want := native(plainSum(binary.NativeEndian.AppendUint64(nil, sum)))
		if got := Fold(sum); got != want {
			t.Errorf("%#x folds to %#x, want %#x", sum, got, want)
		}
	}
}

func TestComplete(t *testing.T) {
	r := newRand(t)
	for range 1000 {
		s, size := randomSuper(r)
		s.payload = s.payload[:min(len(s.payload), size, 1500)]
		h, p := s.super(size)
		h.Type = None // the checksum may be left to us in any packet
		want := s.packet()
		if at := checksumAt(want); want[at] == 0 && want[at+1] == 0 {
			want[at], want[at+1] = 0xff, 0xff
		}
		if err := Complete(h, p); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, want) {
			t.Fatalf("%s completed, want\n%s", show(p), show(want))
		}
		// Without the flag it is not looked at.
		if err := Complete(Header{Start: 0xffff, Offset: 0xffff}, p); err != nil || !bytes.Equal(p, want) {
			t.Fatalf("%s with nothing to complete (%v), want\n%s", show(p), err, show(want))
		}
	}
}

// A checksum that comes out as 0 is 0xffff on the wire, as the kernel's
// skb_checksum_help has it, whatever the protocol.
func TestCompleteZero(t *testing.T) {
	for _, s := range []spec{tcpSpec(100), udpSpec(100)} {
		h, p := s.zeroChecksum().super(1000)
		h.Type = None
		if err := Complete(h, p); err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint16(p[checksumAt(p):]); got != 0xffff {
			t.Errorf("protocol %d: the checksum is %#x, want 0xffff", s.protocol, got)
		}
	}
}

// zeroChecksum changes the begin of the payload so that the packet's checksum
// comes out as 0.
func (s spec) zeroChecksum() spec {
	s.payload = bytes.Clone(s.payload)
	s.payload[0], s.payload[1] = 0, 0
	p := s.packet()
	// Adding the checksum to the bytes makes the sum of all 0xffff.
	copy(s.payload, p[checksumAt(p):][:2])
	return s
}

func TestCompleteOutside(t *testing.T) {
	whole := udpSpec(8).packet()
	for _, tc := range []struct {
		start, offset uint16
		ok            bool
	}{
		{20, 6, true},
		{20, 14, true},
		{20, 15, false},
		{20, 16, false},
		{34, 0, true},
		{35, 0, false},
		{36, 0, false},
		{0, 34, false}, // in the IP header
		{19, 2, false},
		{37, 0, false},
		{0xffff, 0, false},
		{0, 0xffff, false},
		{0xffff, 0xffff, false},
	} {
		p := bytes.Clone(whole)
		err := Complete(Header{Flags: NeedsChecksum, Start: tc.start, Offset: tc.offset}, p)
		if (err == nil) != tc.ok {
			t.Errorf("%d + %d in %d bytes: %v", tc.start, tc.offset, len(p), err)
		}
		if err != nil && !bytes.Equal(p, whole) {
			t.Errorf("%d + %d in %d bytes: an error, but the packet is changed", tc.start, tc.offset, len(p))
		}
	}
}

func TestChecksumAllocates(t *testing.T) {
	h, p := udpSpec(1001).super(2000)
	if n := testing.AllocsPerRun(100, func() {
		if err := Complete(h, p); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 1420, 65520} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			b.ReportAllocs()
			b.SetBytes(int64(n))
			var sum uint64
			for b.Loop() {
				sum = Sum(sum, p)
			}
		})
	}
}
