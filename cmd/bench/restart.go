package main

import (
	"fmt"
	"regexp"
	"time"

	"flanneld/pkg/lab/cluster"
)

// quiet is how long flanneld is watched after it was ready.
const quiet = time.Second

// restart measures a restart after which nothing has to be changed.
func (c *control) restart() error {
	h := c.fresh(c.once)
	c.host = h
	// The first start has all to write, which shows that writes are seen.
	_, _, writes, err := again(h)
	if err != nil {
		return err
	}
	if writes < len(c.once.leases) {
		return fmt.Errorf("the kernel told of %d writes at a start with %d leases", writes, len(c.once.leases))
	}
	c.Say("A first start: %d writes to the kernel.", writes)
	var whole, listed []time.Duration
	most := 0
	for round := range c.rounds {
		h.Stop()
		ready, afterList, writes, err := again(h)
		if err != nil {
			return err
		}
		since := "-"
		if afterList != nil {
			listed, since = append(listed, *afterList), seconds(*afterList)
		}
		whole, most = append(whole, ready), max(most, writes)
		c.Say("Round %d, restart: ready after %s, %s after the leases had come; %d writes to the kernel.", round+1, seconds(ready), since, writes)
	}
	// The parts that follow want it with the flags it has by default.
	h.Stop()

	const bound = 150 * time.Millisecond
	c.add(row{what: c.what("restart, nothing changed, to READY"), measured: seconds(median(whole))})
	r := row{what: c.what("  of that, after the leases were listed"), bound: "<= " + seconds(bound)}
	if len(listed) > 0 {
		r.measured, r.verdict = seconds(median(listed)), verdict(median(listed) <= bound)
	}
	c.add(r)
	c.add(row{what: c.what("  writes to the kernel"), measured: fmt.Sprint(most), bound: "0", verdict: verdict(most == 0)})
	return nil
}

// again starts the host's flanneld and watches what it does to the kernel.
// afterList is nil where the log does not tell.
func again(h *cluster.Node) (ready time.Duration, afterList *time.Duration, writes int, err error) {
	w, err := watch(h.Host)
	if err != nil {
		return 0, nil, 0, err
	}
	begin := time.Now()
	h.Start("-v=1")
	at, err := h.Daemon.NotifiedAt("READY=1", patience)
	time.Sleep(quiet)
	writes, watchErr := w.stop()
	if err != nil {
		return 0, nil, 0, err
	}
	if d, ok := between(h.Daemon.Log(), `Listed \d+ leases`, `Ready: `); ok {
		afterList = &d
	}
	return at.Sub(begin), afterList, writes, watchErr
}

// logLine is the header of klog's lines: level, date, time, thread, place.
var logLine = regexp.MustCompile(`(?m)^[IWEF](\d{4} \d\d:\d\d:\d\d\.\d{6}) +\d+ \S+\] (.*)$`)

// between is the time between two lines of a log: from the last one that
// matches from, before the first one that matches to.
func between(log, from, to string) (d time.Duration, ok bool) {
	fromRE, toRE := regexp.MustCompile(from), regexp.MustCompile(to)
	var begin time.Time
	for _, line := range logLine.FindAllStringSubmatch(log, -1) {
		at, err := time.Parse("0102 15:04:05.000000", line[1])
		switch {
		case err != nil:
		case fromRE.MatchString(line[2]):
			begin, ok = at, true
		case ok && toRE.MatchString(line[2]):
			return at.Sub(begin), true
		}
	}
	return 0, false
}
