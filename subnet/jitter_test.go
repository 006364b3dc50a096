package subnet_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

// Hosts that were started at the same moment, as after a power cut, renew their
// leases at moments spread over minutes, on the first day and on the second, and
// each of them in time.
func TestHoldersRenewApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hosts, margin, days = 200, time.Hour, 2
		store := storetest.NewMemory()
		ctx, stop := context.WithCancel(t.Context())
		start := time.Now()
		renewed, ended := make([][]time.Duration, hosts), make(chan error, hosts)
		for i := range hosts {
			ip := fmt.Sprintf("172.30.0.%d", i+2)
			lease, err := store.Put(subnet.FormatKey(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)), value(ip), subnet.TTL).Decode()
			if err != nil {
				t.Fatal(err)
			}
			holder := subnet.Holder{Store: patient(store, ip), Lease: lease, Margin: margin, Changed: func(subnet.Lease) {
				renewed[i] = append(renewed[i], time.Since(start))
			}}
			go func() { ended <- holder.Run(ctx, nil) }() // without news of other leases
		}
		time.Sleep(days*(subnet.TTL-margin) + time.Second)
		stop()
		for range hosts {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		for day := range days {
			var first, last time.Duration
			together := map[int]int{} // renewals by the second
			for i, at := range renewed {
				if len(at) != days {
					t.Fatalf("host %d has renewed its lease after %v", i, at)
				}
				before := time.Duration(0)
				if day > 0 {
					before = at[day-1]
				}
				if age := at[day] - before; age < subnet.TTL-margin-margin/10 || age > subnet.TTL-margin {
					t.Errorf("day %d: host %d renews a lease that is %v old", day+1, i, age)
				}
				if i == 0 || at[day] < first {
					first = at[day]
				}
				last = max(last, at[day])
				together[int(at[day]/time.Second)]++
			}
			t.Logf("day %d: the first renews after %v, the last %v later", day+1, first, last-first)
			if spread := last - first; spread < 4*time.Minute {
				t.Errorf("day %d: all renew within %v", day+1, spread)
			}
			for second, n := range together {
				// By chance it is hardly ever more than five of 200 in one of 360 seconds.
				if n > 12 {
					t.Errorf("day %d: %d of %d hosts renew in second %d", day+1, n, hosts, second)
				}
			}
		}
	})
}
