package subnet_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

const key = "10.1.5.0-24"

// held runs a Holder of one lease, fed by Follow, in a bubble of fake time.
type held struct {
	t      *testing.T
	store  *storetest.Memory
	sets   chan []*subnet.Lease
	ended  chan error
	cancel context.CancelFunc

	mu     sync.Mutex
	notes  []subnet.Lease // what Changed was called with
	fights []error        // and Contested
}

// told is what the Holder's callbacks were called with.
func (h *held) told() ([]subnet.Lease, []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.notes), slices.Clone(h.fights)
}

func hold(t *testing.T, ttl time.Duration, margin time.Duration) *held {
	h := &held{t: t, store: storetest.NewMemory(), sets: make(chan []*subnet.Lease), ended: make(chan error, 1)}
	e := h.store.Put(key, value(ownIP), ttl)
	lease, err := e.Decode()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h.cancel = cancel
	patient := patient(h.store, ownIP)
	go subnet.Follow(ctx, patient, lease, subnet.Snapshot{}, nil, func(leases, _ []*subnet.Lease) {
		select {
		case h.sets <- leases:
		case <-ctx.Done():
		}
	})
	holder := subnet.Holder{Store: patient, Lease: lease, Margin: margin,
		Changed: func(l subnet.Lease) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.notes = append(h.notes, l)
		},
		Contested: func(err error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.fights = append(h.fights, err)
		},
	}
	go func() {
		h.ended <- holder.Run(ctx, h.sets)
		cancel()
	}()
	synctest.Wait()
	return h
}

// stop ends the Holder and returns what Run did.
func (h *held) stop() error {
	h.cancel()
	return <-h.ended
}

// check waits until nothing more happens and looks at the key.
func (h *held) check(reserved bool) subnet.Entry {
	h.t.Helper()
	time.Sleep(time.Second / 10) // sets follow one another at a distance
	synctest.Wait()
	e, ok := h.store.Lease(key)
	switch {
	case !ok:
		h.t.Fatal("the lease is gone")
	case e.Value != value(ownIP):
		h.t.Errorf("the lease is %s", e.Value)
	case e.Expires.IsZero() != reserved:
		h.t.Errorf("the lease expires at %v", e.Expires)
	case !reserved && time.Until(e.Expires) <= 0:
		h.t.Errorf("the lease has expired %v ago", -time.Until(e.Expires))
	}
	return e
}

func TestHolderRenews(t *testing.T) {
	for _, margin := range []time.Duration{time.Minute, time.Hour, 1439 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			h := hold(t, subnet.TTL, margin)
			before := h.check(false)
			due := subnet.TTL - margin
			time.Sleep(due - min(due, margin)/10 - time.Second)
			if e := h.check(false); e.Revision != before.Revision {
				t.Errorf("margin %v: renewed too early", margin)
			}
			time.Sleep(min(due, margin)/10 + 2*time.Second)
			e := h.check(false)
			if e.Revision == before.Revision || time.Until(e.Expires) < due {
				t.Errorf("margin %v: not renewed, it has %v left", margin, time.Until(e.Expires))
			}
			notes, _ := h.told()
			if n := len(notes); n == 0 || notes[n-1].Revision != e.Revision {
				t.Errorf("margin %v: Changed was last called with %v", margin, notes)
			}
			time.Sleep(10 * 24 * time.Hour)
			if n, most := h.check(false).Revision-e.Revision, uint64(10*24*time.Hour/((subnet.TTL-margin)*9/10))+1; n > most {
				t.Errorf("margin %v: %d writes in ten days", margin, n)
			}
			if err := h.stop(); err != nil {
				t.Error(err)
			}
			h.check(false) // stays in the store
		})
	}
}

// An outage at the time of renewal does no harm while the lease lasts, and none
// afterwards while nobody else has taken the subnet.
func TestHolderOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, subnet.TTL, time.Hour)
		h.store.SetDown(true)
		time.Sleep(subnet.TTL - time.Minute)
		h.store.SetDown(false)
		time.Sleep(5 * time.Second)
		if e := h.check(false); time.Until(e.Expires) < 23*time.Hour {
			t.Errorf("not renewed after the outage: %v left", time.Until(e.Expires))
		}

		h.store.SetDown(true)
		time.Sleep(2 * subnet.TTL)
		h.store.Remove(key) // it has expired
		h.store.SetDown(false)
		time.Sleep(5 * time.Second)
		h.check(false)
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestHolderClaimsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, subnet.TTL, time.Hour)
		for range 3 {
			h.store.Remove(key)
			h.check(false)
		}
		// Removed while the watch was lost.
		h.store.SetDown(true)
		h.store.Remove(key)
		h.store.Forget()
		h.store.SetDown(false)
		time.Sleep(5 * time.Second)
		h.check(false)
		// Spoilt, in two ways.
		h.store.Put(key, "garbage", 0)
		time.Sleep(time.Second)
		h.check(true)
		h.store.Put(key, `{"PublicIP":"172.30.0.11","BackendType":"vxlan"}`, time.Hour)
		h.check(false)
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
}

// An operator makes a lease a reservation, and a lease again.
func TestHolderReservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, 0, time.Hour)
		before := h.check(true)
		time.Sleep(100 * 24 * time.Hour)
		if h.check(true) != before {
			t.Error("a reservation was written")
		}
		h.store.Put(key, value(ownIP), time.Hour+time.Minute)
		time.Sleep(2 * time.Hour)
		h.check(false)
		h.store.Put(key, value(ownIP), 0)
		time.Sleep(100 * 24 * time.Hour)
		h.check(true)
		// However often, that is no other host's doing.
		for range 10 {
			h.store.Put(key, value(ownIP), time.Hour)
			h.check(false)
			e := h.store.Put(key, value(ownIP), 0)
			if h.check(true) != e {
				t.Error("the reservation was written again")
			}
			notes, _ := h.told()
			if last := notes[len(notes)-1]; last.Revision != e.Revision || !last.Reserved() {
				t.Errorf("Changed was last called with %v", last)
			}
		}
		if _, fights := h.told(); len(fights) > 0 {
			t.Errorf("Contested was called with %v", fights)
		}
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestHolderLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, subnet.TTL, time.Hour)
		h.store.Put(key, value(otherIP), subnet.TTL)
		err := <-h.ended
		var lost *subnet.LostError
		if !errors.As(err, &lost) {
			t.Fatalf("Run ended with %v", err)
		}
		want := "the subnet 10.1.5.0/24 of this host (172.30.0.11) is now leased by 172.30.0.12: stopping, to start again with another subnet"
		if diff := cmp.Diff(want, err.Error()); diff != "" {
			t.Error(diff)
		}
		if e, _ := h.store.Lease(key); e.Value != value(otherIP) {
			t.Errorf("the lease was taken back: %s", e.Value)
		}
	})
}

// Another host with the same public IP takes the lease for its own: it is said,
// and the two do not write as fast as they can.
func TestHolderFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, subnet.TTL, time.Hour)
		theirs := `{"PublicIP":"172.30.0.11","BackendType":"vxlan"}`
		writes := 0
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
			if e, _ := h.store.Lease(key); e.Value != theirs {
				h.store.Put(key, theirs, subnet.TTL)
				writes++
			}
		}
		if writes < 3 || writes > 30 {
			t.Errorf("the lease changed hands %d times in ten minutes", writes)
		}
		time.Sleep(time.Minute)
		h.check(false)
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
}

// A lease that is contested is still renewed before it ends, however short it is.
func TestHolderShortWhileContested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, subnet.TTL, time.Hour)
		for range 10 {
			h.store.Put(key, value(ownIP), 4*time.Second)
			for range 50 {
				h.check(false) // which fails when it is gone
			}
		}
		if _, fights := h.told(); len(fights) == 0 {
			t.Error("nobody was told of the fight")
		}
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
}

// member is a host as it lives: it has acquired a lease, follows, and holds it.
type member struct {
	key       string
	stop      context.CancelFunc
	ended     chan error
	contested atomic.Pointer[error] // as it was last told
}

func (m *member) told() error {
	if err := m.contested.Load(); err != nil {
		return *err
	}
	return nil
}

func join(t *testing.T, store subnet.Store, ip, network string, last subnet.Remembered) *member {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p, c := patient(store, ip), config(t, network)
	own, seen, err := subnet.Acquire(ctx, p, c, attrs(ip), last)
	if err != nil {
		t.Fatal(err)
	}
	m := &member{key: subnet.FormatKey(own.Subnet), stop: cancel, ended: make(chan error, 1)}
	sets := make(chan []*subnet.Lease, 1)
	go subnet.Follow(ctx, p, own, seen, nil, func(leases, _ []*subnet.Lease) {
		select {
		case <-sets:
		default:
		}
		sets <- leases
	})
	h := subnet.Holder{Store: p, Lease: own, Network: c.Network, Margin: time.Hour, Contested: func(err error) { m.contested.Store(&err) }}
	go func() {
		m.ended <- h.Run(ctx, sets)
		cancel()
	}()
	return m
}

func (m *member) end(t *testing.T) {
	t.Helper()
	m.stop()
	if err := <-m.ended; err != nil {
		t.Error(err)
	}
}

// Two hosts have one public IP, and so one value to write: both learn of it at
// once, they do not write as fast as they can, and both learn when it is over.
func TestHoldersCollide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		one := join(t, store, ownIP, `{"Network": "10.1.0.0/16"}`, subnet.Remembered{})
		time.Sleep(time.Hour)
		other := join(t, store, ownIP, `{"Network": "10.1.0.0/16"}`, subnet.Remembered{})
		if one.key != other.key {
			t.Fatalf("they have %s and %s", one.key, other.key)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for _, m := range []*member{one, other} {
			if err := m.told(); err == nil || !strings.Contains(err.Error(), ownIP) {
				t.Errorf("one was told %v", err)
			}
		}
		before, _ := store.Lease(one.key)
		time.Sleep(time.Hour)
		after, _ := store.Lease(one.key)
		if n := after.Revision - before.Revision; n < 60 || n > 4*60 {
			t.Errorf("they wrote the lease %d times in an hour", n)
		}
		one.end(t)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if err := other.told(); err != nil {
			t.Errorf("long after the other stopped: %v", err)
		}
		other.end(t)
	})
}

// Two hosts have one public IP, and found each other's lease too late to take it
// for their own: each has a subnet, and both learn of it.
func TestHoldersTwins(t *testing.T) {
	for _, first := range []string{"10.1.5.0/24", "10.1.7.0/24"} {
		synctest.Test(t, func(t *testing.T) {
			store := storetest.NewMemory()
			gone := storetest.NewMemory() // what the second saw: nothing
			one := join(t, store, ownIP, `{"Network": "10.1.0.0/16"}`, subnet.Remembered{Subnet: netip.MustParsePrefix(first)})
			other := join(t, &blind{Memory: store, first: gone}, ownIP, `{"Network": "10.1.0.0/16"}`, subnet.Remembered{Subnet: netip.MustParsePrefix("10.1.6.0/24")})
			time.Sleep(time.Second)
			synctest.Wait()
			for _, m := range []*member{one, other} {
				if err := m.told(); err == nil || !strings.Contains(err.Error(), ownIP) {
					t.Errorf("%s was told %v", m.key, err)
				}
			}
			revision := func() uint64 {
				a, _ := store.Lease(one.key)
				b, _ := store.Lease(other.key)
				return max(a.Revision, b.Revision)
			}
			before := revision()
			time.Sleep(time.Hour)
			if n := revision() - before; n > 4 {
				t.Errorf("they wrote their leases %d times in an hour", n)
			}
			one.end(t)
			store.Remove(one.key)
			time.Sleep(time.Second)
			synctest.Wait()
			if err := other.told(); err != nil {
				t.Errorf("after the other's lease went: %v", err)
			}
			other.end(t)
		})
	}
}

// An older lease with the host's address, and a reservation that an operator makes
// for it, are no other host.
func TestHoldersNoTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		store.Put("10.1.3.0-24", value(ownIP), 48*time.Hour) // of an earlier life
		m := join(t, store, ownIP, `{"Network": "10.1.0.0/16"}`, subnet.Remembered{})
		store.Put("10.1.5.0-24", value(ownIP), 48*time.Hour)
		m.end(t)
		m = join(t, store, ownIP, `{"Network": "10.1.0.0/16"}`, subnet.Remembered{Subnet: netip.MustParsePrefix("10.1.5.0/24")})
		time.Sleep(time.Hour)
		store.Put("10.1.9.0-24", value(ownIP), 0)
		time.Sleep(time.Hour)
		synctest.Wait()
		if err := m.told(); err != nil || m.key != "10.1.5.0-24" {
			t.Errorf("%s was told %v", m.key, err)
		}
		m.end(t)
		if m = join(t, store, ownIP, `{"Network": "10.1.0.0/16"}`, subnet.Remembered{}); m.key != "10.1.9.0-24" {
			t.Errorf("after a restart it has %s, and not what is reserved for it", m.key)
		}
		m.end(t)
	})
}

// Which of two that overlap was there before is told by when they were claimed, and
// not by when they were renewed, or a host that is restarted would lose to a late
// one.
func TestHoldersOverlapOverRestart(t *testing.T) {
	for _, wait := range []time.Duration{time.Minute, 30 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			store := storetest.NewMemory()
			const network = `{"Network": "10.1.0.0/16"}`
			five := subnet.Remembered{Subnet: netip.MustParsePrefix("10.1.5.0/24")}
			m := join(t, store, ownIP, network, five)
			store.Put("10.1.4.0-22", value(otherIP), 0)
			time.Sleep(wait)
			m.end(t)
			m = join(t, store, ownIP, network, five)
			time.Sleep(30 * time.Hour)
			m.end(t)
			if m.key != "10.1.5.0-24" {
				t.Errorf("after %v and a restart it has %s", wait, m.key)
			}
		})
	}
}

// deaf is a store whose watches say nothing, and do not end.
type deaf struct{ *storetest.Memory }

func (d deaf) Watch(ctx context.Context, _ uint64) subnet.Watcher { return deafWatcher{ctx} }

func (d deaf) AwaitConfig(ctx context.Context, _ uint64) error {
	<-ctx.Done()
	return ctx.Err()
}

type deafWatcher struct{ ctx context.Context }

func (d deafWatcher) Next() ([]subnet.Event, error) {
	<-d.ctx.Done()
	return nil, d.ctx.Err()
}

// What a watch has missed is found all the same, though late.
func TestDeafWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewMemory()
		m := join(t, deaf{store}, ownIP, `{"Network": "10.1.0.0/28", "SubnetLen": 30, "SubnetMin": "10.1.0.4", "SubnetMax": "10.1.0.4"}`, subnet.Remembered{})
		time.Sleep(time.Second)
		store.Remove(m.key)
		time.Sleep(10 * time.Hour)
		if _, there := store.Lease(m.key); !there {
			t.Error("its own lease is gone for ten hours")
		}
		m.end(t)
		time.AfterFunc(time.Hour, func() { store.Remove(m.key) })
		began := time.Now()
		late := join(t, deaf{store}, otherIP, `{"Network": "10.1.0.0/28", "SubnetLen": 30, "SubnetMin": "10.1.0.4", "SubnetMax": "10.1.0.4"}`, subnet.Remembered{})
		if took := time.Since(began); took > 80*time.Minute {
			t.Errorf("it took %v to find a subnet that was free after an hour", took)
		}
		late.end(t)
		began = time.Now()
		if err := patient(deaf{store}, ownIP).AwaitConfig(t.Context(), 0); err != nil || time.Since(began) > 20*time.Minute {
			t.Errorf("it waited %v for the config, %v", time.Since(began), err)
		}
	})
}

// blind is a store whose first list is another's, as of a moment before.
type blind struct {
	*storetest.Memory
	first *storetest.Memory
}

func (b *blind) List(ctx context.Context) ([]subnet.Entry, uint64, error) {
	if from := b.first; from != nil {
		b.first = nil
		return from.List(ctx)
	}
	return b.Memory.List(ctx)
}

// Subnets of two lengths overlap, because a config was changed and the hosts did
// not know of each other: the one that came later stops, and gets another subnet.
func TestHoldersOverlap(t *testing.T) {
	const long, short = `{"Network": "10.1.0.0/16", "SubnetLen": 25}`, `{"Network": "10.1.0.0/16", "SubnetLen": 24}`
	for _, test := range [][2]string{{long, short}, {short, long}} {
		synctest.Test(t, func(t *testing.T) {
			store := storetest.NewMemory()
			store.Put("10.0.0.0-15", value("172.30.9.9"), 0) // outside, and in nobody's way
			subnetOf := func(network string) subnet.Remembered {
				return subnet.Remembered{Subnet: netip.PrefixFrom(netip.MustParseAddr("10.1.5.0"), config(t, network).SubnetLen)}
			}
			one := join(t, store, ownIP, test[0], subnetOf(test[0]))
			late := &blind{Memory: store, first: storetest.NewMemory()}
			other := join(t, late, otherIP, test[1], subnetOf(test[1]))
			var lost *subnet.LostError
			if err := <-other.ended; !errors.As(err, &lost) || lost.Holder.PublicIP.String() != ownIP {
				t.Fatalf("the later one ended with %v", err)
			}
			again := join(t, store, otherIP, test[1], subnetOf(test[1]))
			if again.key == other.key {
				t.Errorf("it has %s again", again.key)
			}
			if _, there := store.Lease(other.key); there {
				t.Errorf("%s is still leased", other.key)
			}
			time.Sleep(100 * 24 * time.Hour)
			one.end(t)
			again.end(t)
		})
	}
}

// An entry that was put back from a backup has a lower revision than the lease.
func TestHolderRestoredStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, subnet.TTL, time.Hour)
		old := h.check(false)
		time.Sleep(23*time.Hour + time.Minute) // it has been renewed
		h.store.Restore(old, 2*time.Hour)
		time.Sleep(90 * time.Minute)
		if e := h.check(false); time.Until(e.Expires) < 22*time.Hour {
			t.Errorf("not renewed, %v left", time.Until(e.Expires))
		}
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
}

// A set that is older than the lease, as one may still be on its way when the
// lease is acquired, changes nothing.
func TestHolderOldSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t, subnet.TTL, time.Hour)
		before := h.check(false)
		other, err := subnet.Entry{Key: key, Value: value(otherIP)}.Decode()
		if err != nil {
			t.Fatal(err)
		}
		h.sets <- []*subnet.Lease{}
		h.sets <- []*subnet.Lease{&other}
		if h.check(false) != before {
			t.Error("the lease was written for it")
		}
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
}
