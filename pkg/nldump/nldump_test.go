package nldump

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestWhole(t *testing.T) {
	other := errors.New("other")
	for _, test := range []struct {
		answers []error
		calls   int
		err     error
	}{
		{[]error{nil}, 1, nil},
		{[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, 3, nil},
		{[]error{netlink.ErrDumpInterrupted, other, nil}, 2, other},
		{[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, tries, netlink.ErrDumpInterrupted},
	} {
		calls := 0
		got, err := Whole(func() (int, error) {
			calls++
			return calls, test.answers[calls-1]
		})
		if calls != test.calls || got != calls || !errors.Is(err, test.err) {
			t.Errorf("%v: %d calls, got %d, %v", test.answers, calls, got, err)
		}
	}
}
