// Package nldump is about reading a whole table of the kernel through netlink.
package nldump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries is how often a listing is begun anew. One that is cut through this often
// is of a table that changes all the time.
const tries = 10

// Whole repeats a listing that a change to the table cut through, so that an
// entry may be missing or be there twice (NLM_F_DUMP_INTR in netlink(7)). Where
// containers come and go that is nothing unusual. If it is cut through each time,
// the last answer is returned, as torn.
func Whole[T any](list func() (T, error)) (all T, torn bool, err error) {
	for range tries {
		all, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, false, err
		}
	}
	return all, true, nil
}
