package subnet

import (
	"cmp"
	"net/netip"
	"slices"

	"flanneld/pkg/prefix"
)

// taken knows which of config's subnets cannot be leased, as ranges of their
// numbers, sorted and apart from one another.
type taken struct {
	config Config
	ranges []numbers
}

type numbers struct{ first, last uint64 }

func byFirst(a, b numbers) int { return cmp.Compare(a.first, b.first) }

func newTaken(config Config, leases []*Lease) *taken {
	t := &taken{config: config}
	for _, l := range leases {
		if r, ok := t.covered(l.Subnet); ok {
			t.ranges = append(t.ranges, r)
		}
	}
	slices.SortFunc(t.ranges, byFirst)
	t.merge()
	return t
}

// covered is the range of config's subnets that overlap p, which may be of
// another length if it was leased under another config.
func (t *taken) covered(p netip.Prefix) (numbers, bool) {
	lowest, highest := prefix.Uint(t.config.SubnetMin.Addr()), prefix.Uint(prefix.Last(t.config.SubnetMax))
	first, last := prefix.Uint(p.Masked().Addr()), prefix.Uint(prefix.Last(p))
	if last < lowest || first > highest {
		return numbers{}, false
	}
	size := 32 - t.config.SubnetLen
	return numbers{uint64(max(first, lowest)-lowest) >> size, uint64(min(last, highest)-lowest) >> size}, true
}

func (t *taken) add(p netip.Prefix) {
	r, ok := t.covered(p)
	if !ok {
		return
	}
	i, _ := slices.BinarySearchFunc(t.ranges, r, byFirst)
	t.ranges = slices.Insert(t.ranges, i, r)
	t.merge()
}

// merge joins ranges that overlap.
func (t *taken) merge() {
	var joined []numbers
	for _, r := range t.ranges {
		if n := len(joined); n > 0 && r.first <= joined[n-1].last {
			joined[n-1].last = max(joined[n-1].last, r.last)
		} else {
			joined = append(joined, r)
		}
	}
	t.ranges = joined
}

// free is how many subnets are not taken.
func (t *taken) free() uint64 {
	n := t.config.Subnets()
	for _, r := range t.ranges {
		n -= r.last - r.first + 1
	}
	return n
}

// nthFree is the number of the subnet with n other free ones before it; n must
// be less than free().
func (t *taken) nthFree(n uint64) uint64 {
	for _, r := range t.ranges {
		if n < r.first {
			break
		}
		n += r.last - r.first + 1
	}
	return n
}
