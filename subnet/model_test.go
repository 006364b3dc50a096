package subnet_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

var (
	modelSeed = flag.Uint64("model.seed", 0, "the one seed to run the model with; 0 for new ones")
	modelRuns = flag.Int("model.runs", 2000, "how many seeds to run the model with")
)

// Hosts that acquire, follow and hold leases on a store which they reach over a
// wire that delays requests and answers, loses them, and delivers requests twice,
// while hosts crash and come back, change their addresses, are cut off, and the
// store is wiped, forgets, and is written by hand. After each write it must hold
// that nobody's subnet was taken; at each moment, that no two hosts hold one
// subnet and that each host which holds one has its key in the store, or is on its
// way out or to a new claim; and once all is quiet, that every host has one.
func TestModel(t *testing.T) {
	if *modelSeed != 0 {
		t.Log("\n" + runModel(t, *modelSeed))
		return
	}
	quiet(t)
	first := rand.Uint64()
	const shards = 8
	for shard := range shards {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for i := shard; i < *modelRuns && !t.Failed(); i += shards {
				runModel(t, first+uint64(i))
			}
		})
	}
}

// The same seed is the same story, or it would be of no use to print it. Once in a
// thousand times it is not, as nobody can say which of two goroutines that are
// woken in one instant goes first.
func TestModelRepeats(t *testing.T) {
	quiet(t)
	differ := 0
	for seed := range uint64(20) {
		if one, other := runModel(t, seed+1), runModel(t, seed+1); one != other {
			if differ++; differ < 3 {
				continue
			}
			t.Errorf("seed %d: %s", seed+1, cmp.Diff(strings.Split(one, "\n"), strings.Split(other, "\n")))
		}
	}
}

// quiet keeps the hosts' log to itself for the time of a test and those in it.
func quiet(t *testing.T) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	t.Cleanup(func() { klog.LogToStderr(true) })
}

func runModel(t *testing.T, seed uint64) (story string) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), store: storetest.NewMemory(), began: time.Now()}
		w.run()
		story = strings.Join(w.story, "\n")
		if w.wrong {
			t.Errorf("-model.seed=%d tells this story:\n%s", seed, story)
		}
	})
	return story
}

const (
	// wayOut is how long a host that can reach the store may go on with a subnet
	// that the store does not say is its own: for a dozen lost requests.
	wayOut = 3 * time.Minute
	// modelLoss is the time after which a request without an answer is given up.
	modelLoss = 5 * time.Second
)

// world is the model.
type world struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand // of the scheduler, not of the hosts' wires
	store *storetest.Memory
	began time.Time

	mu     sync.Mutex // of all below, and of what is done to the store
	config subnet.Config
	hosts  []*host
	calm   bool                 // the wire does no harm
	wipes  int                  // of the store
	ips    map[string]string    // by value of a lease
	others map[string]time.Time // when a key was last seen to be no host's of ours
	story  []string
	wrong  bool
}

// host is one of the hosts, over all its lives.
type host struct {
	w  *world
	id int
	ip netip.Addr
	// ips are the addresses it has had.
	ips []string

	stop     func() // of the life it has now, nil if it is down
	life     int
	ended    chan struct{}
	cut      bool                // from the store
	cutUntil chan struct{}       // closed when it is no longer
	last     subnet.Remembered   // its subnet file
	files    []subnet.Remembered // older ones
	holds    netip.Prefix
	astray   time.Time // since when the store says that holds is not its own; zero if it does
	since    time.Time // since when it has been able to find out
	late     int       // writes that may have been made when nobody waited for them any more
}

func (w *world) tell(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf("%12v ", time.Since(w.began).Round(time.Microsecond))+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.wrong = true
	w.tell("WRONG: "+format, args...)
}

func (w *world) run() {
	hosts := 2 + w.rng.IntN(5)
	config, err := subnet.ParseConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.1.0", "SubnetMax": "10.1.%d.0"}`, hosts+w.rng.IntN(3)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.config, w.others, w.ips = config, map[string]time.Time{}, map[string]string{}
	time.Sleep(time.Duration(w.seed % 1e9)) // the hosts' own choices depend on the time
	for i := range hosts {
		h := &host{w: w, id: i, cutUntil: make(chan struct{})}
		h.moveTo(i + 1)
		w.hosts = append(w.hosts, h)
	}
	w.mu.Lock()
	for _, h := range w.hosts {
		if w.rng.IntN(4) > 0 {
			h.start()
		}
	}
	w.mu.Unlock()
	for range 10 + w.rng.IntN(30) {
		gap := []time.Duration{time.Millisecond, 100 * time.Millisecond, time.Second, time.Minute, 20 * time.Hour}[w.rng.IntN(5)]
		time.Sleep(time.Duration(w.rng.Int64N(int64(gap))))
		w.mu.Lock()
		w.event()
		w.check()
		w.mu.Unlock()
	}

	// All is well again: in a while, everybody has a subnet of its own.
	w.mu.Lock()
	w.tell("calm")
	w.calm = true
	for _, h := range w.hosts {
		h.reach(true)
		if h.stop == nil {
			h.start()
		}
	}
	w.mu.Unlock()
	time.Sleep(10 * time.Minute)
	w.free() // for those that wait because somebody who is gone has a lease still
	time.Sleep(10 * time.Minute)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.check()
	held := map[netip.Prefix]*host{}
	for _, h := range w.hosts {
		switch other := held[h.holds]; {
		case !h.holds.IsValid():
			w.fail("host %d has no subnet", h.id)
		case other != nil:
			w.fail("hosts %d and %d both have %v", other.id, h.id, h.holds)
		case !h.astray.IsZero():
			w.fail("host %d has %v, but not in the store", h.id, h.holds)
		}
		held[h.holds] = h
		if mine := h.leases(); len(mine) > 1+h.late {
			w.fail("host %d has the leases %v, and only %d writes came late", h.id, mine, h.late)
		}
	}
	for _, h := range w.hosts {
		w.mu.Unlock()
		h.stop()
		<-h.ended
		time.Sleep(time.Minute) // for what is still on its way
		w.mu.Lock()
	}
}

// free removes the leases that no host holds, as their ends would.
func (w *world) free() {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, _, _ := w.store.List(w.t.Context())
	for _, e := range all {
		if !slices.ContainsFunc(w.hosts, func(h *host) bool { return h.holds.IsValid() && e.Key == subnet.FormatKey(h.holds) }) {
			w.store.Remove(e.Key)
		}
	}
	w.check()
}

// event does one thing to the hosts or the store.
func (w *world) event() {
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	key := subnet.FormatKey(w.config.Nth(w.rng.Uint64N(w.config.Subnets())))
	if h.holds.IsValid() && w.rng.IntN(2) == 0 {
		key = subnet.FormatKey(h.holds)
	}
	there, _ := w.store.Lease(key)
	switch w.rng.IntN(16) {
	case 0, 1:
		w.tell("host %d starts", h.id)
		h.start()
	case 2, 3:
		w.tell("host %d crashes", h.id)
		h.crash()
	case 4:
		h.crash()
		switch n := w.rng.IntN(4); {
		case n == 0:
			w.tell("host %d loses its subnet file", h.id)
			h.last = subnet.Remembered{}
		case n == 1:
			w.tell("host %d has a subnet file that names %s", h.id, key)
			p, _ := subnet.ParseKey(key)
			h.last = subnet.Remembered{Subnet: p}
		case len(h.files) > 0:
			h.last = h.files[w.rng.IntN(len(h.files))]
			w.tell("host %d has an old subnet file: %+v", h.id, h.last)
		}
	case 5:
		h.crash()
		h.moveTo(100 + w.rng.IntN(100))
		w.tell("host %d has the address %v now", h.id, h.ip)
		h.start()
	case 6, 7:
		w.tell("host %d is cut off", h.id)
		h.reach(false)
	case 8, 9:
		for _, h := range w.hosts {
			h.reach(true)
		}
		w.tell("all reach the store")
	case 10:
		w.tell("nobody reaches the store")
		for _, h := range w.hosts {
			h.reach(false)
		}
	case 11:
		w.tell("%s is removed", key)
		w.store.Remove(key)
	case 12:
		if there.Key != "" {
			ttl := []time.Duration{0, time.Second, time.Hour}[w.rng.IntN(3)]
			w.tell("%s is written by hand with a TTL of %v", key, ttl)
			w.store.Put(key, there.Value, ttl)
		}
	case 13:
		if w.rng.IntN(2) == 0 {
			w.tell("%s is spoilt", key)
			w.store.Put(key, "garbage", time.Hour)
		} else {
			w.tell("%s goes to a stranger", key)
			w.store.Put(key, value("172.31.0.1"), time.Duration(w.rng.Int64N(int64(time.Hour))))
		}
	case 14:
		if w.rng.IntN(3) == 0 {
			w.tell("the store is wiped")
			w.store.Wipe()
			w.wipes++
		} else {
			w.tell("the store forgets its history")
			w.store.Forget()
		}
	case 15:
		if there.Key != "" && !there.Expires.IsZero() {
			w.tell("%s comes back from a backup", key)
			w.store.Restore(there, time.Until(there.Expires)/2)
		}
	}
}

// check looks at what all hosts hold, and what the store says to that.
func (w *world) check() {
	now := time.Now()
	all, _, _ := w.store.List(w.t.Context())
	is := map[string]string{}
	for _, e := range all {
		is[e.Key] = w.ipOf(e.Value)
	}
	holders := map[netip.Prefix]*host{}
	for _, h := range w.hosts {
		if !h.holds.IsValid() || h.stop == nil {
			h.astray = time.Time{}
			continue
		}
		key := subnet.FormatKey(h.holds)
		if h.cut {
			h.since = now // it cannot find out yet
		}
		switch {
		case is[key] == h.ip.String():
			h.astray = time.Time{}
			if other := holders[h.holds]; other != nil {
				w.fail("hosts %d and %d have the same address", other.id, h.id)
			}
			holders[h.holds] = h
		case h.astray.IsZero():
			h.astray = now
		}
		if since := now.Sub(h.astray); !h.astray.IsZero() && since > wayOut && now.Sub(h.since) > wayOut {
			w.fail("host %d goes on with %v since %v, which the store says is %q's", h.id, h.holds, since, is[key])
		}
		if other := is[key]; other != "" && other != h.ip.String() {
			w.others[fmt.Sprint(h.id, key)] = now
		}
	}
}

// ipOf is the address in a lease's value, empty if it cannot be read.
func (w *world) ipOf(value string) string {
	ip, known := w.ips[value]
	if !known {
		if a, err := subnet.DecodeAttrs(value); err == nil {
			ip = a.PublicIP.String()
		}
		w.ips[value] = ip
	}
	return ip
}

func (h *host) moveTo(n int) {
	h.ip = netip.AddrFrom4([4]byte{172, 30, byte(h.id), byte(n)})
	h.ips = append(h.ips, h.ip.String())
}

// leases are those that bear one of the host's addresses.
func (h *host) leases() (keys []string) {
	all, _, _ := h.w.store.List(h.w.t.Context())
	for _, e := range all {
		if slices.Contains(h.ips, h.w.ipOf(e.Value)) {
			keys = append(keys, e.Key)
		}
	}
	return keys
}

// reach connects the host to the store or cuts it off.
func (h *host) reach(can bool) {
	if h.cut == !can {
		return
	}
	if h.cut = !can; can {
		close(h.cutUntil)
		h.cutUntil = make(chan struct{})
	}
	h.since = time.Now()
}

func (h *host) crash() {
	if h.stop == nil {
		return
	}
	h.stop()
	h.stop, h.holds = nil, netip.Prefix{}
	h.late++ // what it was about to write
}

// start lets the host run until it crashes; when it loses its subnet it starts
// again by itself.
func (h *host) start() {
	if h.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(h.w.t.Context())
	h.stop, h.ended = cancel, make(chan struct{})
	h.life++
	ended, life := h.ended, h.life
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			err := h.once(ctx, life)
			h.w.mu.Lock()
			if ctx.Err() == nil {
				h.w.tell("host %d stops: %v", h.id, err)
				h.lost(err)
			}
			h.w.mu.Unlock()
			time.Sleep(time.Second)
		}
	}()
}

// lost checks that a host which gives its subnet up had to.
func (h *host) lost(err error) {
	var lost *subnet.LostError
	if !errors.As(err, &lost) {
		h.w.fail("host %d stopped", h.id)
		return
	}
	h.w.check()
	if _, was := h.w.others[fmt.Sprint(h.id, subnet.FormatKey(h.holds))]; !was {
		h.w.fail("host %d gave up %v, which nobody else had", h.id, h.holds)
	}
	h.holds, h.astray = netip.Prefix{}, time.Time{}
}

// once is the host's life from start to end, as package network lives it.
func (h *host) once(ctx context.Context, life int) error {
	h.w.mu.Lock()
	last, ip := h.last, h.ip
	h.w.mu.Unlock()
	wire := &wire{host: h, life: life, counts: map[string]uint64{}}
	store := subnet.NewPatient(wire, ip)
	own, seen, err := subnet.Acquire(ctx, store, h.w.config, attrs(ip.String()), last)
	if err != nil {
		return err
	}
	keep := func(l subnet.Lease) {
		h.w.mu.Lock()
		defer h.w.mu.Unlock()
		if ctx.Err() == nil {
			h.files = append(h.files, h.last)
			h.last = subnet.Remembered{Subnet: l.Subnet, PublicIP: l.PublicIP, Revision: l.Revision}
		}
	}
	keep(own)
	h.w.mu.Lock()
	if ctx.Err() == nil {
		h.w.tell("host %d has %v", h.id, own.Subnet)
		h.holds, h.astray, h.since = own.Subnet, time.Time{}, time.Now()
		delete(h.w.others, fmt.Sprint(h.id, subnet.FormatKey(own.Subnet)))
		if !h.w.config.Fits(own.Subnet) {
			h.w.fail("%v does not fit the config", own.Subnet)
		}
	}
	h.w.check()
	h.w.mu.Unlock()

	sets := make(chan []*subnet.Lease, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return subnet.Follow(ctx, store, own, seen, nil, func(leases, _ []*subnet.Lease) {
			select {
			case <-sets:
			default:
			}
			sets <- leases
		})
	})
	g.Go(func() error {
		return subnet.Holder{Store: store, Lease: own, Margin: time.Hour, Changed: keep}.Run(ctx, sets)
	})
	return g.Wait()
}
