package subnet_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

const (
	ownIP   = "172.30.0.11"
	otherIP = "172.30.0.12"
	oldIP   = "172.30.0.99" // an address this host had before
)

func value(ip string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"BackendType":"host-gw"}`, ip)
}

func attrs(ip string) subnet.Attrs {
	return subnet.Attrs{PublicIP: netip.MustParseAddr(ip), BackendType: "host-gw"}
}

func patient(store subnet.Store, ip string) *subnet.Patient {
	return subnet.NewPatient(store, netip.MustParseAddr(ip))
}

func config(t *testing.T, text string) subnet.Config {
	t.Helper()
	c, err := subnet.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What a host gets, given what is in the store and what it remembers.
func TestAcquire(t *testing.T) {
	const (
		day      = 24 * time.Hour
		reserved = 0
	)
	type entry struct {
		key string
		ip  string
		ttl time.Duration
	}
	for name, test := range map[string]struct {
		there    []entry
		file     string // subnet in the subnet file
		lastIP   string // address remembered with it, unchanged since unless changed
		changed  bool
		want     string // "" is any free one
		reserved bool
		gone     string // a key that must not be there afterwards
		kept     string // a key that must still be another host's
	}{
		"own lease":                              {there: []entry{{"10.1.5.0-24", ownIP, day}}, want: "10.1.5.0/24"},
		"own lease before the subnet file":       {there: []entry{{"10.1.5.0-24", ownIP, day}}, file: "10.1.6.0/24", want: "10.1.5.0/24"},
		"own reservation":                        {there: []entry{{"10.1.5.0-24", ownIP, reserved}}, want: "10.1.5.0/24", reserved: true},
		"reservation before lease":               {there: []entry{{"10.1.3.0-24", ownIP, day}, {"10.1.5.0-24", ownIP, reserved}, {"10.1.7.0-24", ownIP, day}}, want: "10.1.5.0/24", reserved: true},
		"of two leases that of the subnet file":  {there: []entry{{"10.1.3.0-24", ownIP, day}, {"10.1.5.0-24", ownIP, day}}, file: "10.1.5.0/24", want: "10.1.5.0/24"},
		"own lease of another length":            {there: []entry{{"10.1.4.0-23", ownIP, day}}, gone: "10.1.4.0-23"},
		"own lease outside the network":          {there: []entry{{"10.2.5.0-24", ownIP, day}}, gone: "10.2.5.0-24"},
		"own lease outside the range":            {there: []entry{{"10.1.200.0-24", ownIP, day}}, gone: "10.1.200.0-24"},
		"own lease outside, subnet file inside":  {there: []entry{{"10.2.5.0-24", ownIP, day}}, file: "10.1.6.0/24", gone: "10.2.5.0-24", want: "10.1.6.0/24"},
		"subnet file":                            {file: "10.1.6.0/24", want: "10.1.6.0/24"},
		"subnet file outside the network":        {file: "10.2.6.0/24"},
		"subnet file of another length":          {file: "10.1.6.0/25"},
		"subnet file, held by a stranger":        {there: []entry{{"10.1.6.0-24", otherIP, day}}, file: "10.1.6.0/24", kept: "10.1.6.0-24"},
		"subnet file, reserved for a stranger":   {there: []entry{{"10.1.6.0-24", otherIP, reserved}}, file: "10.1.6.0/24", kept: "10.1.6.0-24"},
		"subnet file, overlapped by a stranger":  {there: []entry{{"10.1.6.0-23", otherIP, day}}, file: "10.1.6.0/24", kept: "10.1.6.0-23"},
		"own address changed":                    {there: []entry{{"10.1.6.0-24", oldIP, day}}, file: "10.1.6.0/24", lastIP: oldIP, want: "10.1.6.0/24"},
		"own address changed, reservation":       {there: []entry{{"10.1.6.0-24", oldIP, reserved}}, file: "10.1.6.0/24", lastIP: oldIP, want: "10.1.6.0/24", reserved: true},
		"own address changed, new holder has it": {there: []entry{{"10.1.6.0-24", oldIP, day}}, file: "10.1.6.0/24", lastIP: oldIP, changed: true, kept: "10.1.6.0-24"},
		"own address changed, a stranger's now":  {there: []entry{{"10.1.6.0-24", otherIP, day}}, file: "10.1.6.0/24", lastIP: oldIP, kept: "10.1.6.0-24"},
		"all taken by one outside the network":   {there: []entry{{"0.0.0.0-0", otherIP, day}, {"10.0.0.0-15", otherIP, day}}, file: "10.1.6.0/24", want: "10.1.6.0/24"},
		"subnet file, unreadable lease there":    {there: []entry{{"10.1.6.0-24", "garbage", day}}, file: "10.1.6.0/24", kept: "10.1.6.0-24"},
		"nothing known":                          {there: []entry{{"10.1.6.0-24", otherIP, day}}, kept: "10.1.6.0-24"},
	} {
		t.Run(name, func(t *testing.T) {
			store := storetest.NewMemory()
			last := subnet.Remembered{}
			if test.file != "" {
				last.Subnet = netip.MustParsePrefix(test.file)
			}
			if test.lastIP != "" {
				last.PublicIP = netip.MustParseAddr(test.lastIP)
			}
			for _, e := range test.there {
				w := store.Put(e.key, value(e.ip), e.ttl)
				if e.key == subnet.FormatKey(last.Subnet) {
					last.Revision = w.Revision
					if test.changed {
						store.Put(e.key, value(e.ip), e.ttl)
					}
				}
			}
			c := config(t, `{"Network": "10.1.0.0/16", "SubnetMax": "10.1.100.0"}`)
			lease, _, err := subnet.Acquire(t.Context(), patient(store, ownIP), c, attrs(ownIP), last)
			if err != nil {
				t.Fatal(err)
			}
			if test.want != "" && lease.Subnet.String() != test.want {
				t.Errorf("got %v, want %v", lease.Subnet, test.want)
			}
			if !c.Fits(lease.Subnet) {
				t.Errorf("%v does not fit the config", lease.Subnet)
			}
			e, ok := store.Lease(subnet.FormatKey(lease.Subnet))
			if !ok || e.Value != value(ownIP) || e.Revision != lease.Revision || e.Expires != lease.Expires {
				t.Errorf("the store has %+v for the lease %+v", e, lease)
			}
			if lease.Reserved() != test.reserved {
				t.Errorf("reserved is %t", lease.Reserved())
			}
			for _, there := range test.there {
				// What takes in the network is in nobody's way.
				if p, err := subnet.ParseKey(there.key); err == nil && there.ip != ownIP && p != lease.Subnet && p.Bits() > 16 && p.Overlaps(lease.Subnet) {
					t.Errorf("%v overlaps %v, which is another's", lease.Subnet, p)
				}
			}
			if _, ok := store.Lease(test.gone); ok {
				t.Errorf("%s is still there", test.gone)
			}
			if test.kept != "" {
				for _, there := range test.there {
					if e, _ := store.Lease(there.key); there.key == test.kept && e.Value != value(there.ip) {
						t.Errorf("%s was taken from its holder: %s", test.kept, e.Value)
					}
				}
			}
		})
	}
}

// unclear is a store whose first answer to each kind of write gets lost.
type unclear struct {
	*storetest.Memory
	created, updated bool
}

func (u *unclear) Create(ctx context.Context, key, value string, ttl time.Duration) (subnet.Entry, error) {
	e, err := u.Memory.Create(ctx, key, value, ttl)
	if !u.created {
		u.created = true
		return subnet.Entry{}, errors.New("the answer was lost")
	}
	return e, err
}

func (u *unclear) Update(ctx context.Context, old subnet.Entry, value string, ttl time.Duration) (subnet.Entry, error) {
	e, err := u.Memory.Update(ctx, old, value, ttl)
	if !u.updated {
		u.updated = true
		return subnet.Entry{}, errors.New("the answer was lost")
	}
	return e, err
}

// A write whose answer was lost is not made twice: the host has one subnet, and
// knows which.
func TestAcquireLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &unclear{Memory: storetest.NewMemory()}
		c := config(t, `{"Network": "10.1.0.0/16"}`)
		for _, what := range []string{"created", "taken over"} {
			lease, _, err := subnet.Acquire(t.Context(), patient(store, ownIP), c, attrs(ownIP), subnet.Remembered{})
			if err != nil {
				t.Fatal(err)
			}
			all, _, _ := store.List(t.Context())
			if len(all) != 1 || all[0].Key != subnet.FormatKey(lease.Subnet) || all[0].Revision != lease.Revision {
				t.Errorf("%s: the host has %+v, and the store %+v", what, lease, all)
			}
		}
		if !store.created || !store.updated {
			t.Error("no answer was lost")
		}
	})
}

// A host for which there is no subnet asks for one when a lease goes, and not all
// the time.
func TestAcquireWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		c := config(t, `{"Network": "10.1.0.0/26", "SubnetLen": 28}`)
		for _, key := range []string{"10.1.0.16-28", "10.1.0.32-28", "10.1.0.48-28"} {
			store.Put(key, value(otherIP), 0)
		}
		got := make(chan subnet.Lease)
		go func() {
			l, _, err := subnet.Acquire(t.Context(), patient(store, ownIP), c, attrs(ownIP), subnet.Remembered{})
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		time.Sleep(24 * time.Hour)
		if n := store.Calls(); n > 300 { // every ten minutes or so, should a watch have missed it
			t.Errorf("it has asked %d times in a day", n)
		}
		store.Remove("10.1.0.32-28")
		began := time.Now()
		if l := <-got; l.Subnet.String() != "10.1.0.32/28" || time.Since(began) > time.Second {
			t.Errorf("it got %v after %v", l.Subnet, time.Since(began))
		}
	})
}

// An operator gives a waiting host the lease of one that is gone.
func TestAcquireGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		c := config(t, `{"Network": "10.1.0.0/26", "SubnetLen": 28}`)
		for _, key := range []string{"10.1.0.16-28", "10.1.0.32-28", "10.1.0.48-28"} {
			store.Put(key, value(otherIP), 0)
		}
		time.AfterFunc(time.Hour, func() { store.Put("10.1.0.32-28", value(ownIP), 0) })
		began := time.Now()
		l, _, err := subnet.Acquire(t.Context(), patient(store, ownIP), c, attrs(ownIP), subnet.Remembered{})
		if err != nil || l.Subnet.String() != "10.1.0.32/28" || time.Since(began) > time.Hour+time.Second {
			t.Errorf("it got %v after %v, %v", l.Subnet, time.Since(began), err)
		}
	})
}

// Every subnet is leased before anybody is told that there is none, none is
// leased twice, and a host that came too late gets the first that becomes free.
func TestAcquireAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		// In the way: an unreadable lease, one of another length, one outside.
		store.Put("10.1.0.8-30", "garbage", time.Hour)
		store.Put("10.1.0.16-28", value("172.30.9.1"), 0)
		store.Put("10.1.1.0-30", value("172.30.9.2"), 0)
		c := config(t, `{"Network": "10.1.0.0/26", "SubnetLen": 30}`)
		const free = 16 - 1 - 1 - 4 // of 16 subnets, the first is not used

		var mu sync.Mutex
		holders := map[netip.Prefix]int{}
		var wg sync.WaitGroup
		for i := range free {
			wg.Go(func() {
				l, _, err := subnet.Acquire(t.Context(), patient(store, fmt.Sprintf("172.30.0.%d", i+1)), c, attrs(fmt.Sprintf("172.30.0.%d", i+1)), subnet.Remembered{})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				holders[l.Subnet]++
			})
		}
		wg.Wait()
		if len(holders) != free {
			t.Errorf("%d hosts hold %v", free, holders)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if l, _, err := subnet.Acquire(ctx, patient(store, "172.30.1.1"), c, attrs("172.30.1.1"), subnet.Remembered{}); err == nil {
			t.Errorf("one too many got %v", l.Subnet)
		}
		late := make(chan subnet.Lease)
		go func() {
			l, _, _ := subnet.Acquire(t.Context(), patient(store, "172.30.1.1"), c, attrs("172.30.1.1"), subnet.Remembered{})
			late <- l
		}()
		time.Sleep(time.Minute)
		store.Remove("10.1.0.8-30")
		if l := <-late; l.Subnet.String() != "10.1.0.8/30" {
			t.Errorf("the late host got %v", l.Subnet)
		}
	})
}

// A herd of hosts, in networks with and without room, needs few requests.
func TestAcquireHerd(t *testing.T) {
	for name, test := range map[string]struct {
		config string
		most   float64
	}{
		"roomy": {`{"Network": "10.0.0.0/8"}`, 4},
		"tight": {`{"Network": "10.0.0.0/8", "SubnetMin": "10.0.1.0", "SubnetMax": "10.1.59.0"}`, 12}, // 315 subnets
	} {
		t.Run(name, func(t *testing.T) {
			store := storetest.NewMemory()
			c := config(t, test.config)
			const hosts = 300
			var wg sync.WaitGroup
			start := make(chan struct{})
			for i := range hosts {
				wg.Go(func() {
					<-start
					if _, _, err := subnet.Acquire(t.Context(), patient(store, fmt.Sprintf("172.30.%d.%d", i/250, i%250+1)), c, attrs(fmt.Sprintf("172.30.%d.%d", i/250, i%250+1)), subnet.Remembered{}); err != nil {
						t.Error(err)
					}
				})
			}
			close(start)
			wg.Wait()
			all, _, _ := store.List(t.Context())
			if len(all) != hosts {
				t.Errorf("%d leases for %d hosts", len(all), hosts)
			}
			if mean := float64(store.Calls()) / hosts; mean > test.most {
				t.Errorf("%.1f requests for each host", mean)
			}
		})
	}
}

// Whatever leases there are, of any length and anywhere, a host gets a subnet
// that overlaps none of them, if there is one.
func TestAcquireNeverOverlaps(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		store := storetest.NewMemory()
		c := config(t, fmt.Sprintf(`{"Network": "10.1.0.0/24", "SubnetLen": %d}`, 26+r.IntN(4)))
		var there []netip.Prefix
		for i := range r.IntN(12) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(r.IntN(2)), byte(r.IntN(256))}), 22+r.IntN(9)).Masked()
			if r.IntN(3) > 0 {
				p = netip.PrefixFrom(p.Addr(), max(p.Bits(), 26)).Masked()
			}
			if c.Network.Bits() <= p.Bits() { // what takes in the network is outside it
				there = append(there, p)
			}
			store.Put(subnet.FormatKey(p), value(fmt.Sprintf("172.30.0.%d", i+1)), 0)
		}
		free := func(p netip.Prefix) bool {
			for _, q := range there {
				if q.Overlaps(p) {
					return false
				}
			}
			return true
		}
		possible := false
		for n := range c.Subnets() {
			possible = possible || free(c.Nth(n))
		}
		ctx, cancel := context.WithCancel(t.Context())
		if !possible {
			cancel()
		}
		l, _, err := subnet.Acquire(ctx, patient(store, ownIP+"0"), c, attrs(ownIP+"0"), subnet.Remembered{})
		cancel()
		switch {
		case (err == nil) != possible:
			t.Fatalf("%v with %v there: %v, %v", c, there, l, err)
		case err == nil && !free(l.Subnet):
			t.Fatalf("%v with %v there: %v overlaps", c, there, l.Subnet)
		}
	}
}
