package udp

import "testing"

// RFC 6040 figure 4, for each DSCP of the packet and of the datagram.
func TestCongestion(t *testing.T) {
	const drop = 0xff
	want := map[byte]map[byte]byte{ // by what the packet has, then the datagram
		notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: drop},
		ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
		ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
		ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
	}
	for inner := range 256 {
		for outer := range 256 {
			tos, ok := congestion(byte(inner), byte(outer))
			want := want[byte(inner)&ecnMask][byte(outer)&ecnMask]
			switch {
			case want == drop && ok:
				t.Errorf("packet %#02x in datagram %#02x gets %#02x, want it dropped", inner, outer, tos)
			case want != drop && (!ok || tos != byte(inner)&^ecnMask|want):
				t.Errorf("packet %#02x in datagram %#02x gets %#02x (%v), want %#02x", inner, outer, tos, ok, byte(inner)&^ecnMask|want)
			}
		}
	}
}
