package prefix_test

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"flanneld/pkg/prefix"
)

var seed = flag.Uint64("seed", 0, "of the property tests; 0 is another one each time")

// random calls f with networks of every length, each with a length of subnets
// in it, and a source of numbers.
func random(t *testing.T, f func(t *testing.T, r *rand.Rand, network netip.Prefix, bits int)) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to repeat: -seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, 0))
	for range 200 {
		for n := 0; n <= 32; n++ {
			network := netip.PrefixFrom(prefix.FromUint(r.Uint32()), n).Masked()
			f(t, r, network, n+r.IntN(33-n))
		}
	}
}

func TestNthAndIndex(t *testing.T) {
	random(t, func(t *testing.T, r *rand.Rand, network netip.Prefix, bits int) {
		count := prefix.Count(network, bits)
		if count != 1<<(bits-network.Bits()) {
			t.Fatalf("Count(%v, %d) = %d", network, bits, count)
		}
		for _, n := range []uint64{0, count - 1, r.Uint64N(count)} {
			p := prefix.Nth(network, bits, n)
			if p.Bits() != bits || p.Masked() != p || !prefix.Contains(network, p) {
				t.Fatalf("Nth(%v, %d, %d) = %v", network, bits, n, p)
			}
			if got := prefix.Index(network, p); got != n {
				t.Fatalf("Index(%v, %v) = %d, want %d", network, p, got, n)
			}
			// The next one begins where this one ends.
			if n+1 < count {
				if next := prefix.Nth(network, bits, n+1); next.Addr() != prefix.Last(p).Next() {
					t.Fatalf("%v does not follow %v in %v", next, p, network)
				}
			}
		}
		if first := prefix.Nth(network, bits, 0); first.Addr() != network.Addr() {
			t.Fatalf("the first of %v is %v", network, first)
		}
		if last := prefix.Nth(network, bits, count-1); prefix.Last(last) != prefix.Last(network) {
			t.Fatalf("the last of %v is %v", network, last)
		}
		// Host bits of the network make no difference.
		host := netip.PrefixFrom(prefix.Last(network), network.Bits())
		n := r.Uint64N(count)
		if a, b := prefix.Nth(network, bits, n), prefix.Nth(host, bits, n); a != b || prefix.Index(host, b) != n {
			t.Fatalf("Nth(%v, %d, %d) = %v, for %v it is %v", network, bits, n, a, host, b)
		}
	})
}

func TestCountOfLargerSubnets(t *testing.T) {
	if n := prefix.Count(netip.MustParsePrefix("10.1.0.0/16"), 15); n != 0 {
		t.Errorf("a /16 has %d subnets of length 15", n)
	}
	if n := prefix.Count(netip.MustParsePrefix("0.0.0.0/0"), 32); n != 1<<32 {
		t.Errorf("0.0.0.0/0 has %d addresses", n)
	}
}

func TestLastAndContains(t *testing.T) {
	random(t, func(t *testing.T, r *rand.Rand, network netip.Prefix, bits int) {
		last := prefix.Last(network)
		if !network.Contains(last) || last.Next().IsValid() && network.Contains(last.Next()) {
			t.Fatalf("Last(%v) = %v", network, last)
		}
		// Against the definition: inner is in outer if its ends are.
		for _, inner := range []netip.Prefix{
			network,
			prefix.Nth(network, bits, r.Uint64N(prefix.Count(network, bits))),
			netip.PrefixFrom(prefix.FromUint(r.Uint32()), r.IntN(33)).Masked(),
			netip.PrefixFrom(network.Addr(), r.IntN(33)).Masked(),
			netip.PrefixFrom(last, r.IntN(33)).Masked(),
		} {
			want := network.Contains(inner.Addr()) && network.Contains(prefix.Last(inner))
			if got := prefix.Contains(network, inner); got != want {
				t.Fatalf("Contains(%v, %v) = %v", network, inner, got)
			}
		}
	})
}

func TestUint(t *testing.T) {
	for text, n := range map[string]uint32{"0.0.0.0": 0, "0.0.0.1": 1, "10.1.2.3": 0x0a010203, "255.255.255.255": 1<<32 - 1} {
		a := netip.MustParseAddr(text)
		if got := prefix.Uint(a); got != n {
			t.Errorf("Uint(%v) = %d", a, got)
		}
		if got := prefix.FromUint(n); got != a {
			t.Errorf("FromUint(%d) = %v", n, got)
		}
	}
	random(t, func(t *testing.T, r *rand.Rand, _ netip.Prefix, _ int) {
		if n := r.Uint32(); prefix.Uint(prefix.FromUint(n)) != n {
			t.Fatalf("%d does not come back", n)
		}
	})
}
