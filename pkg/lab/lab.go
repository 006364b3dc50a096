package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// TB is the part of testing.TB that a lab needs to say what is going on and to
// give up; *testing.T and [Lab] both have it.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any) // does not return
}

// A Lab is a set of hosts with what connects them. Make one with [ForTest] or
// [Run].
type Lab struct {
	TB

	// Router is the namespace that holds the bridges of all segments and
	// forwards between them. The port of host h1's eth0 is h1-eth0 there.
	Router *Node

	dir string

	mu        sync.Mutex // guards what follows
	nodes     []*Node    // in the order they were made
	processes []*Process
}

// ForTest makes a lab for one test. It goes when the test ends, after printing
// the state of every node and the logs of every process if the test failed.
func ForTest(t testing.TB) *Lab {
	t.Helper()
	l, err := open(t)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("state of the lab:\n%s", l.Dump())
		}
		if err := l.close(); err != nil {
			t.Errorf("taking the lab down: %v", err)
		}
	})
	return l
}

// Run makes a lab for an ordinary program, calls body with it, and takes it
// down. What fails in the lab ends body and is Run's error; logf gets what a
// test's log would get.
func Run(logf func(format string, args ...any), body func(*Lab) error) (err error) {
	l, err := open(plain{logf})
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(failure)
			if !ok {
				panic(r) // not ours; the kernel cleans up
			}
			err = f.error
		}
		err = errors.Join(err, l.close())
	}()
	return body(l)
}

// plain stands in for the test where there is none.
type plain struct {
	logf func(format string, args ...any)
}

func (plain) Helper()                             {}
func (p plain) Logf(format string, args ...any)   { p.logf(format, args...) }
func (p plain) Fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

// failure carries the error of a plain Fatalf up to Run.
type failure struct{ error }

func open(tb TB) (*Lab, error) {
	// /run/lab exists on init's tmpfs only, so this keeps programs that did
	// not call Main or Enter from setting up things on the machine itself.
	if _, err := os.Stat(binDir); err != nil {
		return nil, errors.New("not inside the lab's namespaces: call lab.Main in TestMain, or lab.Enter first thing in main")
	}
	dir, err := os.MkdirTemp(labDir, "")
	if err != nil {
		return nil, err
	}
	l := &Lab{TB: tb, dir: dir}
	if l.Router, err = l.newNode("router"); err == nil {
		err = l.Router.sysctl("net/ipv4/ip_forward", "1")
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// close ends all processes and removes all namespaces and files of the lab.
func (l *Lab) close() error {
	l.mu.Lock()
	processes, nodes := l.processes, slices.Clone(l.nodes)
	l.mu.Unlock()
	for _, p := range processes {
		p.Kill()
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.close())
	}
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

// Must fails the lab if err is not nil; it is for the errors of what observes.
func (l *Lab) Must(err error) {
	l.Helper()
	if err != nil {
		l.Fatalf("%v", err)
	}
}

// pollEvery is how often conditions are looked at: often enough not to slow a
// test down, seldom enough to leave the processor to what is waited for.
const pollEvery = 15 * time.Millisecond

// Poll calls f until it returns nil, for as long as within, and then returns
// an error that names what was waited for and f's last error. f is called at
// least once, and should not block for long.
func Poll(within time.Duration, what string, f func() error) error {
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, within, err)
		}
		time.Sleep(pollEvery)
	}
}

// Eventually is [Poll] for conditions without which a test or a demo cannot go
// on; t may be a *testing.T or a *Lab.
func Eventually(t TB, within time.Duration, what string, f func() error) {
	t.Helper()
	if err := Poll(within, what, f); err != nil {
		t.Fatalf("%v", err)
	}
}

// pause waits for d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
