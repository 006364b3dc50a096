package main

import (
	"fmt"

	"flanneld/pkg/lab"
)

// Sizes on the wire, in bytes.
const (
	wireMTU     = 1500 // the lab's
	etherHeader = 14
)

// tolerance is how many times as large as they may be frames are in the mean, as
// those of iperf3's own connection are among them: a few dozen.
const tolerance = 1.05

// sent are the frames that the host of a path's sender has sent so far, and those
// that the host of its receiver was sent.
func sent(p *path) (frames [2]lab.Frames, err error) {
	if frames[0], _, err = p.a.Frames(); err == nil {
		_, frames[1], err = p.b.Frames()
	}
	return frames, err
}

// bulk returns an error if the frames of a path that was full of TCP have not
// crossed the wires as the layout says: their figure would be of something else.
// What a backend makes of offloads is its own affair.
func (l layout) bulk(p *path, frames [2]lab.Frames) error {
	if mean := frames[0].Mean(); l.offloads && p.carrier == bare && mean <= etherHeader+wireMTU {
		return fmt.Errorf("frames of %.0f bytes in the mean have crossed the wire: offloads do nothing here", mean)
	}
	return l.cut(frames, wireMTU)
}

// cut returns an error if packets of more bytes than there can be have crossed the
// wires, where they are to be cut.
func (l layout) cut(frames [2]lab.Frames, most int) error {
	for _, f := range frames {
		if mean := f.Mean(); !l.offloads && mean > tolerance*float64(etherHeader+most) {
			return fmt.Errorf("frames of %.0f bytes in the mean have crossed the wire, where they ought to be cut to %d at most", mean, etherHeader+most)
		}
	}
	return nil
}
