package main

import (
	"cmp"
	"math"
	"slices"
)

// median is the middle one, or of an even number the lower of the two.
func median[T cmp.Ordered](all []T) T { return percentile(all, 50) }

// percentile is the least of all that p percent of them do not exceed (the
// nearest rank). There has to be one at least.
func percentile[T cmp.Ordered](all []T, p float64) T {
	sorted := slices.Sorted(slices.Values(all))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}
