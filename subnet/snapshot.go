package subnet

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"flanneld/pkg/prefix"
)

// Snapshot is what a store had at one moment. The zero value is an empty store
// that nothing has happened to yet.
type Snapshot struct {
	entries    []Entry
	leases     []*Lease // in order of their subnets
	unreadable []unreadable
	revision   uint64
}

type unreadable struct {
	Entry
	err error
}

// snapshot reads all leases there are.
func snapshot(ctx context.Context, store *Patient) (s Snapshot, err error) {
	entries, revision, err := store.List(ctx)
	if err != nil {
		return s, err
	}
	// Reading thousands of values is most of a start's work: all cores share it.
	leases, errs := make([]*Lease, len(entries)), make([]error, len(entries))
	var wg sync.WaitGroup
	share := len(entries)/runtime.GOMAXPROCS(0) + 1
	for begin := 0; begin < len(entries); begin += share {
		wg.Go(func() {
			for i := begin; i < min(begin+share, len(entries)); i++ {
				l, err := entries[i].Decode()
				leases[i], errs[i] = &l, err
			}
		})
	}
	wg.Wait()
	s.revision, s.entries, s.leases = revision, entries, make([]*Lease, 0, len(entries))
	for i, err := range errs {
		if err == nil {
			s.leases = append(s.leases, leases[i])
		} else {
			s.unreadable = append(s.unreadable, unreadable{entries[i], err})
		}
	}
	slices.SortFunc(s.leases, bySubnet)
	klog.V(1).Infof("Listed %d leases", len(s.leases))
	return s, nil
}

func bySubnet(a, b *Lease) int { return prefix.Compare(a.Subnet, b.Subnet) }

// find is where the lease of a subnet is in a set that is in order of subnets,
// or would have to be.
func find(leases []*Lease, subnet netip.Prefix) (i int, there bool) {
	return slices.BinarySearchFunc(leases, subnet, func(l *Lease, p netip.Prefix) int { return prefix.Compare(l.Subnet, p) })
}

// Merge makes one set of two that have no subnet in common, in order of subnets.
func Merge(a, b []*Lease) []*Lease {
	all := slices.Concat(a, b)
	if len(a) > 0 && len(b) > 0 {
		slices.SortFunc(all, bySubnet)
	}
	return all
}

// with puts a lease into a set, in the place of another of its subnet.
func with(leases []*Lease, l *Lease) []*Lease {
	i, there := find(leases, l.Subnet)
	if there {
		leases[i] = l
		return leases
	}
	return slices.Insert(leases, i, l)
}
