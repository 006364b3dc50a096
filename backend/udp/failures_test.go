package udp

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// Each cause is said when it begins and then every ten minutes, with how often there
// was more of it, whatever packets there are and whatever else fails.
func TestFailureLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l failureLog
		refused := func() error { return os.NewSyscallError("sendmmsg", unix.EPERM) } // each time another one
		said := ""
		count := func(doing string, err error) {
			if more, due := l.due(doing, err); due {
				said += doing + ": " + err.Error() + more + "\n"
			}
		}
		for i := range 90 * 60 { // an hour and a half, but for the half hour after the first
			if i/60 < 30 || i/60 >= 60 {
				count("sending", refused())
			}
			switch i {
			case 100:
				count("sending", unix.ENETUNREACH)
			case 200:
				count("receiving", refused())
			case 300, 400:
				count("broken", errors.New("it is of no use"))
			case 500:
				count("broken", fmt.Errorf("it is %d bytes", i))
			case 89 * 60:
				count("sending", unix.ENETUNREACH)
			}
			time.Sleep(time.Second)
		}
		const want = `sending: sendmmsg: operation not permitted (more of it is counted, and said every 10 minutes)
sending: network is unreachable (more of it is counted, and said every 10 minutes)
receiving: sendmmsg: operation not permitted (more of it is counted, and said every 10 minutes)
broken: it is of no use (more of it is counted, and said every 10 minutes)
sending: sendmmsg: operation not permitted, 600 times since this was said last
sending: sendmmsg: operation not permitted, 600 times since this was said last
sending: sendmmsg: operation not permitted, 600 times since this was said last
sending: sendmmsg: operation not permitted, 600 times since this was said last
sending: sendmmsg: operation not permitted, 600 times since this was said last
sending: network is unreachable (more of it is counted, and said every 10 minutes)
`
		if said != want {
			t.Errorf("it says\n%swant\n%s", said, want)
		}
	})
}
