package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpu is what a process has used of processors.
type cpu struct {
	own      time.Duration
	children time.Duration // those it has waited for
}

func cpuOf(pid int) (cpu, error) {
	// The process's own CPU clock, in nanoseconds and with threads that have
	// ended (clock_getcpuclockid(3), CPUCLOCK_SCHED in the kernel's
	// posix-timers.h). Of the children there are only ticks.
	var own unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &own); err != nil {
		return cpu{}, fmt.Errorf("reading the CPU clock of process %d: %w", pid, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return cpu{}, err
	}
	children, err := childrenTime(string(b))
	return cpu{time.Duration(own.Nano()), children}, err
}

// share is what a process used of one core over some time, in percent.
type share struct{ own, children float64 }

func usage(before, after cpu, elapsed time.Duration) share {
	of := func(d time.Duration) float64 { return 100 * d.Seconds() / elapsed.Seconds() }
	return share{of(after.own - before.own), of(after.children - before.children)}
}

func (s share) total() float64 { return s.own + s.children }

func (s share) String() string {
	return fmt.Sprintf("%s (%.2f own, %.2f children)", percent(s.total()), s.own, s.children)
}

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 wherever Go runs.
const tick = 10 * time.Millisecond

// childrenTime is cutime and cstime of /proc/PID/stat, fields 16 and 17 of
// proc_pid_stat(5).
func childrenTime(stat string) (time.Duration, error) {
	// The second field is a name in parentheses, which may have anything in it.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const cutime = 16 - 3 // as these begin with the third
	if len(fields) <= cutime+1 {
		return 0, fmt.Errorf("too few fields in %q", stat)
	}
	var total time.Duration
	for _, f := range fields[cutime : cutime+2] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading %q: %w", stat, err)
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}

// memory is what a process holds of the machine's, in bytes.
type memory struct {
	rss  int64 // now
	peak int64 // the most it ever was
}

func memoryOf(pid int) (m memory, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	return parseStatus(string(b))
}

func parseStatus(status string) (m memory, err error) {
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &m.rss
		case "VmHWM":
			to = &m.peak
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return m, fmt.Errorf("reading %q: %w", line, err)
		}
		*to = kib << 10
	}
	if m.rss == 0 || m.peak == 0 {
		return m, fmt.Errorf("no VmRSS or VmHWM in a process's status")
	}
	return m, nil
}
