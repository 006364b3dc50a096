package lab

import (
	"testing"
	"time"
)

// Bulk crosses in pieces or cut to the MTU, back and forth in one lab, and
// between containers as between hosts.
func TestOffloads(t *testing.T) {
	l, h1, h2, c1, c2 := twoDockers(t)
	const frame = 14 + 1500
	for i, on := range []bool{true, false, true, false} {
		if i > 0 { // the first time they are as they were made
			h1.Offloads(on)
			h2.Offloads(on)
		}
		for _, ends := range [][2]Place{{h1, h2}, {c1, c2}} {
			outBefore, _, err := h1.Frames()
			l.Must(err)
			_, inBefore, err := h2.Frames()
			l.Must(err)
			rate, err := Throughput(ends[0], ends[1], ends[1].node().Addr(), 200*time.Millisecond, 1)
			l.Must(err)
			out, _, err := h1.Frames()
			l.Must(err)
			_, in, err := h2.Frames()
			l.Must(err)
			out, in = out.Since(outBefore), in.Since(inBefore)
			t.Logf("offloads %v, %s: %.2f Gbit/s, sent %+v, received %+v", on, ends[0].node().Name, rate/1e9, out, in)
			for _, f := range []Frames{out, in} {
				// The acknowledgements go the other way.
				if mean := f.Mean(); on && mean < 2*frame || !on && (mean > frame || mean < frame/2) {
					t.Errorf("with offloads %v frames from %s have %.0f bytes", on, ends[0].node().Name, mean)
				}
			}
		}
	}
}
