package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// echoes is how many echoes make one figure; pause is between them, in seconds.
const (
	echoes = 200
	pause  = "0.01"
)

// echo is the mean round trip from one end of a path to the other, in
// milliseconds.
func echo(p *path) (float64, error) {
	out, err := p.from.Exec("ping", "-n", "-q", "-c", strconv.Itoa(echoes), "-i", pause, p.to.Addr().String())
	if err != nil {
		return 0, err
	}
	return parsePing(out)
}

var roundTripRE = regexp.MustCompile(`(?m)^rtt min/avg/max/mdev = [0-9.]+/([0-9.]+)/`)

func parsePing(text string) (mean float64, err error) {
	m := roundTripRE.FindStringSubmatch(text)
	if m == nil || !strings.Contains(text, fmt.Sprintf(" %d received", echoes)) {
		return 0, fmt.Errorf("not all of %d echoes were answered: %s", echoes, text)
	}
	return strconv.ParseFloat(m[1], 64)
}
