package nldump

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestWhole(t *testing.T) {
	other := errors.New("other")
	for _, test := range []struct {
		answers []error
		calls   int
		torn    bool
		err     error
	}{
		{[]error{nil}, 1, false, nil},
		{[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, 3, false, nil},
		{[]error{netlink.ErrDumpInterrupted, other, nil}, 2, false, other},
		{slices.Repeat([]error{netlink.ErrDumpInterrupted}, 2*tries), tries, true, nil},
	} {
		calls := 0
		got, torn, err := Whole(func() (int, error) {
			calls++
			return calls, test.answers[calls-1]
		})
		if calls != test.calls || got != calls || torn != test.torn || !errors.Is(err, test.err) {
			t.Errorf("%v: %d calls, got %d, torn %v, %v", test.answers, calls, got, torn, err)
		}
	}
}
