package cluster

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/screen"
)

// Enter is lab.Enter with the Needs, for programs that people start: it says
// what takes a while, and by what signal the program ended.
func Enter(out screen.Screen) {
	lab.Enter(announced(out)...)
	go endOn(out, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// announced are the Needs with words around them.
func announced(out screen.Screen) []lab.Need {
	var start time.Time
	before := func(context.Context, string) error {
		start = time.Now()
		if dir := os.Getenv("LAB_BIN"); dir != "" {
			out.Say("Taking flanneld and etcd from %s, where they are ready there.", dir)
		} else {
			out.Say("Building flanneld, and etcd where bin/etcd is not there yet (which takes a minute) ...")
		}
		return nil
	}
	after := func(context.Context, string) error {
		out.Say("Both are ready after %.1f s.", time.Since(start).Seconds())
		return nil
	}
	return append(append([]lab.Need{before}, Needs()...), after)
}

// endOn ends the program on a signal. Nothing has to be taken down here: the
// kernel does that when the program is gone.
func endOn(out screen.Screen, signals ...os.Signal) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, signals...)
	sig := (<-c).(syscall.Signal)
	out.Say("\nEnded by the signal %q; the hosts, their daemons and devices go with the program.", sig)
	os.Exit(128 + int(sig))
}
