package subnet_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

// Each set published is what the store had, whatever happened to the watch.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		store.Put("10.1.7.0-24", value(otherIP), 0)
		var sets []string
		ctx, cancel := context.WithCancel(t.Context())
		patient := patient(store, otherIP+"0")
		own, seen, err := subnet.Acquire(ctx, patient, config(t, `{"Network": "10.1.0.0/16"}`), attrs(otherIP+"0"), subnet.Remembered{Subnet: netip.MustParsePrefix("10.1.9.0/24")})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			done <- subnet.Follow(ctx, patient, own, seen, nil, func(leases, lingering []*subnet.Lease) {
				var all []string
				for _, l := range leases {
					all = append(all, fmt.Sprintf("%v=%v", l.Subnet, l.PublicIP))
				}
				for _, l := range lingering {
					all = append(all, fmt.Sprintf("(%v)", l.Subnet))
				}
				sets = append(sets, strings.Join(all, " "))
			})
		}()
		for _, step := range []struct {
			name string
			do   func()
			want []string // published by it
		}{
			{"start", synctest.Wait, []string{"10.1.7.0/24=172.30.0.12 10.1.9.0/24=172.30.0.120"}},
			{"added", func() { store.Put("10.1.5.0-24", value(ownIP), 0) }, []string{"10.1.5.0/24=172.30.0.11 10.1.7.0/24=172.30.0.12 10.1.9.0/24=172.30.0.120"}},
			{"changed", func() { store.Put("10.1.7.0-24", value(oldIP), 0) }, []string{"10.1.5.0/24=172.30.0.11 10.1.7.0/24=172.30.0.99 10.1.9.0/24=172.30.0.120"}},
			{"unreadable value", func() { store.Put("10.1.7.0-24", "garbage", 0) }, []string{"10.1.5.0/24=172.30.0.11 10.1.9.0/24=172.30.0.120 (10.1.7.0/24)", "10.1.5.0/24=172.30.0.11 10.1.9.0/24=172.30.0.120"}},
			{"unreadable key", func() { store.Put("10.1.8.1-24", value(oldIP), 0) }, nil},
			{"not a lease", func() { store.SetConfig("x") }, nil},
			{"put right", func() { store.Put("10.1.7.0-24", value(otherIP), 0) }, []string{"10.1.5.0/24=172.30.0.11 10.1.7.0/24=172.30.0.12 10.1.9.0/24=172.30.0.120"}},
			{"removed", func() { store.Remove("10.1.7.0-24") }, []string{"10.1.5.0/24=172.30.0.11 10.1.9.0/24=172.30.0.120 (10.1.7.0/24)", "10.1.5.0/24=172.30.0.11 10.1.9.0/24=172.30.0.120"}},
			{"changed in a gap", func() {
				store.SetDown(true)
				time.Sleep(10 * time.Second)
				store.Put("10.1.5.0-24", value(oldIP), 0)
				store.Put("10.1.9.0-24", value(otherIP), 0)
				store.Forget()
				store.SetDown(false)
			}, []string{"10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12"}},
			{"a gap without changes", func() {
				store.SetDown(true)
				time.Sleep(10 * time.Second)
				store.SetDown(false)
			}, nil},
			{"removed in a gap", func() {
				store.SetDown(true)
				time.Sleep(time.Second)
				store.Remove("10.1.5.0-24")
				store.SetDown(false)
				time.Sleep(5 * time.Second)
			}, []string{"10.1.9.0/24=172.30.0.12 (10.1.5.0/24)", "10.1.9.0/24=172.30.0.12"}},
			{"back", func() { store.Put("10.1.5.0-24", value(oldIP), 0) }, []string{"10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12"}},
			{"the store has lost its data, the own lease too, and one host comes back", func() {
				store.SetDown(true)
				time.Sleep(time.Second)
				store.Remove("10.1.5.0-24")
				store.Remove("10.1.9.0-24")
				store.SetDown(false)
				time.Sleep(5 * time.Second)
				store.Put("10.1.9.0-24", value(otherIP), 0)
			}, []string{"(10.1.5.0/24)", "10.1.9.0/24=172.30.0.12 (10.1.5.0/24)", "10.1.9.0/24=172.30.0.12"}},
			{"the store has lost its data, and all come back", func() {
				store.Put("10.1.5.0-24", value(oldIP), 0)
				synctest.Wait()
				store.SetDown(true)
				time.Sleep(time.Second)
				store.Remove("10.1.5.0-24")
				store.Remove("10.1.9.0-24")
				store.SetDown(false)
				time.Sleep(5 * time.Second)
				store.Put("10.1.5.0-24", value(oldIP), 0)
				synctest.Wait() // the first of many changes is told at once, all others then together
				store.Put("10.1.9.0-24", value(otherIP), 0)
			}, []string{
				"10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12", "(10.1.5.0/24)", "10.1.5.0/24=172.30.0.99",
				"10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12",
			}},
			{"removed, and back in a moment", func() {
				store.Remove("10.1.5.0-24")
				time.Sleep(300 * time.Millisecond)
				store.Put("10.1.5.0-24", value(oldIP), 0)
			}, []string{"10.1.9.0/24=172.30.0.12 (10.1.5.0/24)", "10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12"}},
			{"removed, and then the own", func() {
				store.Remove("10.1.5.0-24")
				time.Sleep(300 * time.Millisecond)
				store.Remove("10.1.9.0-24")
				time.Sleep(9 * time.Second)
				store.Put("10.1.5.0-24", value(oldIP), 0)
				synctest.Wait()
				store.Put("10.1.9.0-24", value(otherIP), 0)
			}, []string{"10.1.9.0/24=172.30.0.12 (10.1.5.0/24)", "(10.1.5.0/24)", "10.1.5.0/24=172.30.0.99", "10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12"}},
			{"the store has lost its data, and subnets of other lengths come", func() {
				store.Put("10.1.6.0-24", value(oldIP), 0)
				time.Sleep(time.Second)
				store.SetDown(true)
				time.Sleep(time.Second)
				for _, key := range []string{"10.1.5.0-24", "10.1.6.0-24", "10.1.9.0-24"} {
					store.Remove(key)
				}
				store.SetDown(false)
				time.Sleep(5 * time.Second)
				store.Put("10.1.5.128-25", value(otherIP), 0)
				time.Sleep(time.Second)
				store.Put("10.1.6.0-23", value(otherIP), 0)
				time.Sleep(time.Second)
				store.Remove("10.1.5.128-25")
				synctest.Wait()
				store.Remove("10.1.6.0-23")
				store.Put("10.1.5.0-24", value(oldIP), 0)
				store.Put("10.1.9.0-24", value(otherIP), 0)
			}, []string{
				"10.1.5.0/24=172.30.0.99 10.1.6.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12",
				"(10.1.5.0/24) (10.1.6.0/24)",
				"10.1.5.128/25=172.30.0.12 (10.1.6.0/24)",
				"10.1.5.128/25=172.30.0.12 10.1.6.0/23=172.30.0.12",
				"10.1.6.0/23=172.30.0.12 (10.1.5.128/25)",
				"10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12 (10.1.6.0/23)",
				"10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12",
			}},
			{"removed for good", func() { store.Remove("10.1.5.0-24") }, []string{"10.1.9.0/24=172.30.0.12 (10.1.5.0/24)", "10.1.9.0/24=172.30.0.12"}},
			{"most go, long after the own was lost", func() {
				for _, key := range []string{"10.1.5.0-24", "10.1.6.0-24", "10.1.7.0-24"} {
					store.Put(key, value(oldIP), 0)
					time.Sleep(time.Second)
				}
				store.Remove("10.1.5.0-24")
				synctest.Wait()
				store.Remove("10.1.6.0-24")
				store.Remove("10.1.7.0-24")
			}, []string{
				"10.1.5.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12",
				"10.1.5.0/24=172.30.0.99 10.1.6.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12",
				"10.1.5.0/24=172.30.0.99 10.1.6.0/24=172.30.0.99 10.1.7.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12",
				"10.1.6.0/24=172.30.0.99 10.1.7.0/24=172.30.0.99 10.1.9.0/24=172.30.0.12 (10.1.5.0/24)",
				"10.1.9.0/24=172.30.0.12 (10.1.5.0/24) (10.1.6.0/24) (10.1.7.0/24)",
				"10.1.9.0/24=172.30.0.12",
			}},
			{"all gone", func() { store.Remove("10.1.9.0-24") }, []string{""}},
		} {
			synctest.Wait()
			step.do()
			time.Sleep(6 * time.Minute)
			synctest.Wait()
			if !slices.Equal(sets, step.want) {
				t.Errorf("%s: published %q, want %q", step.name, sets, step.want)
			}
			sets = nil
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// That the own lease is gone is told after each gap: it may have been claimed again
// and lost again since it was told before.
func TestFollowTellsOfOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		var told atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- subnet.Follow(ctx, patient(store, ownIP), subnet.Lease{Subnet: netip.MustParsePrefix("10.1.9.0/24")}, subnet.Snapshot{}, nil, func([]*subnet.Lease, []*subnet.Lease) { told.Add(1) })
		}()
		for i := range 5 {
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := int(told.Load()); n != i+1 {
				t.Errorf("told %d times of a lease that was not there after %d gaps", n, i)
			}
			store.SetDown(true)
			time.Sleep(time.Minute)
			store.SetDown(false)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// behind is a store whose watches fall behind, once each.
type behind struct{ subnet.Store }

func (s behind) Watch(context.Context, uint64) subnet.Watcher { return s }

func (behind) Next() ([]subnet.Event, error) {
	time.Sleep(2 * time.Second)
	return nil, subnet.ErrBehind
}

// A watch that has fallen behind is made up for by a list, soon.
func TestFollowBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		var last time.Time
		sets := make(chan int, 100)
		own := subnet.Lease{Subnet: netip.MustParsePrefix("10.1.9.0/24"), Attrs: attrs(ownIP)}
		store.Put("10.1.9.0-24", value(ownIP), time.Hour)
		go func() {
			done <- subnet.Follow(ctx, patient(behind{store}, ownIP), own, subnet.Snapshot{}, nil, func(leases, _ []*subnet.Lease) {
				last = time.Now()
				sets <- len(leases)
			})
		}()
		<-sets
		for i := range 10 {
			store.Put(fmt.Sprintf("10.1.%d.0-24", 10+i), value(otherIP), time.Hour)
			begin := time.Now()
			if n := <-sets; n != 2+i || last.Sub(begin) > 2200*time.Millisecond {
				t.Errorf("%d leases after %v, want %d in 2.1 s or so", n, last.Sub(begin), 2+i)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// unwatchable is a store whose watches fail at once.
type unwatchable struct{ *storetest.Memory }

func (u unwatchable) Watch(context.Context, uint64) subnet.Watcher { return u }

func (unwatchable) Next() ([]subnet.Event, error) { return nil, errors.New("no watches today") }

// Where only watching fails, leases are listed every few seconds; that is said
// once, and the store is not asked all the time.
func TestFollowUnwatchable(t *testing.T) {
	log := logged(t)
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		var latest atomic.Int32
		go func() {
			done <- subnet.Follow(ctx, patient(unwatchable{store}, ownIP), subnet.Lease{Subnet: netip.MustParsePrefix("10.1.9.0/24")}, subnet.Snapshot{}, nil, func(leases, _ []*subnet.Lease) {
				latest.Store(int32(len(leases)))
			})
		}()
		for i := range 20 {
			store.Put(fmt.Sprintf("10.1.%d.0-24", 10+i), value(otherIP), 0)
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if n := int(latest.Load()); n != i+1 {
				t.Errorf("%d leases are known five seconds after there were %d", n, i+1)
			}
		}
		calls := store.Calls()
		time.Sleep(time.Hour)
		if n := store.Calls() - calls; n > 3600 {
			t.Errorf("it has asked %d times in an hour", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if n := strings.Count(log(), "The leases cannot be watched, and are listed every few seconds instead: no watches today"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, log())
	}
}

// wiped is a store that loses all its data, and what it knows of its past, just
// before the first write.
type wiped struct {
	subnet.Store
	fresh subnet.Store
}

func (w *wiped) Create(ctx context.Context, key, value string, ttl time.Duration) (subnet.Entry, error) {
	w.Store = w.fresh
	return w.Store.Create(ctx, key, value, ttl)
}

// Where Follow begins is what the store has that took the lease, whatever
// happened while the lease was acquired.
func TestFollowAcquired(t *testing.T) {
	removed := storetest.NewMemory()
	removed.Put("10.9.7.0-24", value(ownIP), time.Hour) // of this host, in another network
	old, fresh := storetest.NewMemory(), storetest.NewMemory()
	for i := range 50 {
		old.Put(fmt.Sprintf("10.1.%d.0-24", i+10), value(otherIP), 0)
	}
	for name, test := range map[string]struct {
		store   subnet.Store
		present *storetest.Memory
	}{
		"a lease of this host removed": {removed, removed},
		"the store wiped":              {&wiped{old, fresh}, fresh},
	} {
		synctest.Test(t, func(t *testing.T) {
			patient := patient(test.store, ownIP)
			ctx, cancel := context.WithCancel(t.Context())
			own, seen, err := subnet.Acquire(ctx, patient, config(t, `{"Network": "10.1.0.0/16"}`), attrs(ownIP), subnet.Remembered{Subnet: netip.MustParsePrefix("10.1.9.0/24")})
			if err != nil {
				t.Fatal(err)
			}
			var sets []string
			done := make(chan error)
			go func() {
				done <- subnet.Follow(ctx, patient, own, seen, nil, func(leases, _ []*subnet.Lease) {
					var all []string
					for _, l := range leases {
						all = append(all, l.Subnet.String())
					}
					sets = append(sets, strings.Join(all, " "))
				})
			}()
			time.Sleep(time.Second)
			test.present.Put("10.1.7.0-24", value(otherIP), 0)
			time.Sleep(time.Second)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if want := []string{"10.1.9.0/24", "10.1.7.0/24 10.1.9.0/24"}; !slices.Equal(sets, want) {
				t.Errorf("%s: published %q, want %q", name, sets, want)
			}
		})
	}
}
