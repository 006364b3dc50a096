package lab

import "testing"

// A namespace that somebody else has made is a node like others until it is let
// go, and what runs in it runs on.
func TestAdopt(t *testing.T) {
	l := ForTest(t)
	s := l.Segment("lan", lan)
	h1, h2 := l.Host("h1", s), l.Host("h2", s)
	p := h2.Start("sleep", "sleep", "600")
	for range 2 { // the second time the name has to be free again
		n, err := l.Adopt("adopted", p.Pid, h2.Addr())
		l.Must(err)
		if seen, err := SourceSeen(n, h1, h1.Addr()); err != nil || seen != h2.Addr() {
			t.Errorf("it is seen as %v, %v", seen, err)
		}
		l.Release(n)
	}
	// A process that has ended meanwhile does not take the name: number 1<<30 is
	// more than the kernel gives (PID_MAX_LIMIT in linux/threads.h).
	if _, err := l.Adopt("adopted", 1<<30, h2.Addr()); err == nil {
		t.Error("the namespace of no process was adopted")
	}
	n, err := l.Adopt("adopted", p.Pid, h2.Addr())
	l.Must(err)
	l.Release(n)
	if !p.Running() {
		t.Error("the process that was there before has ended")
	}
}
