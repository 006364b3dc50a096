package udp

import (
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"flanneld/backend"
)

// Lacks is what would carry packets faster and this kernel does not have; empty if
// it has all. It is found out as Run does, with a device and a socket, but in a
// network namespace that is made for it and goes at once, so that nothing of the
// host's is touched. That wants CAP_SYS_ADMIN. The kernel loads TUN for it if that
// is a module which it has not loaded.
func Lacks() (what string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, and the namespace with
		// the thread.
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("making a network namespace to try it in: %w", err)
			return
		}
		var dev *device
		if dev, err = openDevice(backend.TUNName); err != nil {
			return
		}
		defer dev.close()
		var sock *socket
		if sock, err = openSocket(netip.AddrPortFrom(netip.IPv4Unspecified(), 0)); err != nil {
			return
		}
		defer sock.close()
		what = lacks(sock, dev)
	}()
	<-done
	return what, err
}
