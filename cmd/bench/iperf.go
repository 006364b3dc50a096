package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"flanneld/pkg/lab"
)

// carried is what a run of iperf3 has brought to the other end.
type carried struct {
	bytes   int64   // that arrived after the warm-up
	seconds float64 // in which they did
	sent    int64   // in all, warm-up included
}

// iperf runs iperf3 from one end of a path to the other for a second that counts.
// frames are those that the sender's host has sent meanwhile, and those that the
// receiver's host was sent.
func iperf(p *path, args ...string) (c carried, frames [2]lab.Frames, err error) {
	before, err := sent(p)
	if err != nil {
		return c, frames, err
	}
	out, err := p.from.Exec(append([]string{
		"iperf3", "--client", p.to.Addr().String(), "--connect-timeout", "5000", "--json", "--time", "1",
	}, args...)...)
	if err != nil && !strings.Contains(out, "{") { // otherwise it says in there what is wrong
		return c, frames, err
	}
	if c, err = parseIperf(out); err != nil {
		return c, frames, err
	}
	frames, err = sent(p)
	for i := range frames {
		frames[i] = frames[i].Since(before[i])
	}
	return c, frames, err
}

func parseIperf(text string) (carried, error) {
	var answer struct {
		Error     string
		Intervals []struct{ Sum struct{ Bytes int64 } }
		End       struct {
			// Not packets less lost_packets, as those include some of the warm-up
			// if there was one.
			Received struct {
				Bytes   int64
				Seconds float64
			} `json:"sum_received"`
		}
	}
	_, object, _ := strings.Cut(text, "{") // before it there may be warnings
	if err := json.Unmarshal([]byte("{"+object), &answer); err != nil {
		return carried{}, fmt.Errorf("reading what iperf3 says: %w: %s", err, text)
	}
	if answer.Error != "" {
		return carried{}, errors.New("iperf3 says: " + answer.Error)
	}
	c := carried{bytes: answer.End.Received.Bytes, seconds: answer.End.Received.Seconds}
	for _, i := range answer.Intervals {
		c.sent += i.Sum.Bytes
	}
	if c.bytes == 0 || c.seconds == 0 || c.sent == 0 {
		return c, errors.New("iperf3 does not say how much arrived; take a newer one (3.12 does)")
	}
	return c, nil
}
