package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"flanneld/pkg/lab"
)

const (
	// statusFor is how many leases flanneld status is to show in statusTime, without
	// asking the peers.
	statusFor  = 5000
	statusTime = 500 * time.Millisecond
)

// status measures flanneld status and flanneld leases, as an operator waits for
// them, beside a daemon; the peers are not asked, as there are none.
func (c *control) status() error {
	h, err := c.settled()
	if err != nil {
		return err
	}
	bound := statusTime * time.Duration(max(c.leases, statusFor)) / statusFor
	for _, command := range []struct {
		args  []string
		count *regexp.Regexp // finds how many leases or peers it has counted
	}{
		{[]string{"status", "--no-probe"}, regexp.MustCompile(`(?m)^(\d+) peers: `)},
		{[]string{"leases"}, regexp.MustCompile(`(?m)^(\d+) leases; `)},
	} {
		var took []time.Duration
		for range c.rounds {
			begin := time.Now()
			out, err := h.Exec(append([]string{lab.Binary("flanneld")}, command.args...)...)
			took = append(took, time.Since(begin))
			if err != nil {
				return err
			}
			found := command.count.FindStringSubmatch(out)
			if found == nil {
				return fmt.Errorf("flanneld %s counts nothing: %s", command.args[0], out)
			}
			if n, err := strconv.Atoi(found[1]); err != nil || n < c.leases {
				return fmt.Errorf("flanneld %s counts %s where there are %d leases at least", command.args[0], found[1], c.leases)
			}
		}
		c.add(row{
			what: c.what("flanneld %s", strings.Join(command.args, " ")), measured: seconds(median(took)),
			bound: "< " + seconds(bound), verdict: verdict(median(took) < bound),
		})
	}
	time.Sleep(settling) // the daemon gives back what its answers have needed
	time.Sleep(settling) // the daemon gives back what its answers have needed
	return nil
}
