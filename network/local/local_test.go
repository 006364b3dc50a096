package local

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A daemon is found by who is in its network namespace, and by nobody else; there
// is one at most.
func TestLocal(t *testing.T) {
	l := lab.ForTest(t)
	s := l.Segment("lan", netip.MustParsePrefix("192.0.2.0/24"))
	h1, h2 := l.Host("h1", s), l.Host("h2", s)
	on := func(h *lab.Host, f func() error) {
		t.Helper()
		if err := h.Do(f); err != nil {
			t.Error(err)
		}
	}
	listen := func(h *lab.Host) (l net.Listener) {
		t.Helper()
		on(h, func() (err error) {
			l, err = Listen()
			return err
		})
		return l
	}
	dials := func(h *lab.Host) (err error) {
		h.Do(func() error {
			conn, derr := dial(t.Context())
			if derr == nil {
				conn.Close()
			}
			err = derr
			return nil
		})
		return err
	}
	if err := dials(h1); !errors.Is(err, ErrNone) {
		t.Errorf("where none runs: %v", err)
	}
	first := listen(h1)
	if err := dials(h2); !errors.Is(err, ErrNone) {
		t.Errorf("where one runs on another host: %v", err)
	}
	defer listen(h2).Close()
	on(h1, func() error {
		if _, err := Listen(); err == nil || !strings.Contains(err.Error(), "is it another flanneld?") {
			t.Errorf("a second one on a host: %v", err)
		}
		if pid, err := Daemon(); err != nil || pid != os.Getpid() {
			t.Errorf("process %d, %v", pid, err)
		}
		return nil
	})
	first.Close()
	if err := dials(h1); !errors.Is(err, ErrNone) {
		t.Errorf("where one has ended: %v", err)
	}
}
