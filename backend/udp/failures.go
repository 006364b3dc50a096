package udp

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// failureInterval is how long nothing more is said of a failure, which may hit
// every packet for days.
const failureInterval = 10 * time.Minute

// failureLog decides which failures on the packet path are said: each cause when it
// begins, and then once in a failureInterval, with how often. Both workers use it, but
// only for packets that have failed.
type failureLog struct {
	mu     sync.Mutex
	causes map[cause]*failures
}

// cause is what was being done and the error the kernel had for it, 0 where it was
// not the kernel's. Which peer it was for is no part of it, as there may be thousands.
type cause struct {
	doing string
	errno unix.Errno
}

// failures are those of one cause since that was said.
type failures struct {
	said  time.Time
	times int
}

// due counts a failure and reports whether it is to be said, and what to add then.
func (l *failureLog) due(doing string, err error) (more string, due bool) {
	c := cause{doing: doing}
	_ = errors.As(err, &c.errno)
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.causes[c]
	if f == nil {
		if l.causes == nil {
			l.causes = map[cause]*failures{}
		}
		f = new(failures)
		l.causes[c] = f
	}
	f.times++
	if now.Sub(f.said) < failureInterval {
		return "", false
	}
	more = fmt.Sprintf(" (more of it is counted, and said every %d minutes)", failureInterval/time.Minute)
	if f.times > 1 {
		more = fmt.Sprintf(", %d times since this was said last", f.times)
	}
	*f = failures{said: now}
	return more, true
}
