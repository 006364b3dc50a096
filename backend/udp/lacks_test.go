package udp

import (
	"errors"
	"net/netip"
	"os/exec"
	"testing"

	"flanneld/backend"
)

// What the kernel lacks is found out as when a device and a socket are opened for
// good, and nothing of it is seen in the namespace of whoever asks.
func TestLacks(t *testing.T) {
	l, s := tunLab(t)
	links := func() string {
		t.Helper()
		out, err := exec.Command("ip", "-o", "link").Output()
		l.Must(err)
		return string(out)
	}
	before := links()
	got, err := Lacks()
	l.Must(err)
	if after := links(); after != before {
		t.Errorf("the devices were\n%s\nand are\n%s", before, after)
	}
	h := l.Host("h1", s)
	l.Must(h.Do(func() error {
		dev, derr := openDevice(backend.TUNName)
		sock, serr := openSocket(netip.AddrPortFrom(h.Addr(), defaultPort))
		if err := errors.Join(derr, serr); err != nil {
			return err
		}
		if want := lacks(sock, dev); got != want {
			t.Errorf("it lacks %q, want %q", got, want)
		}
		return errors.Join(dev.close(), sock.close())
	}))
}
