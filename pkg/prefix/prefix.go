// Package prefix does arithmetic on IPv4 prefixes: how many subnets of a given
// length a network has, which one is the n-th, and back. It works on net/netip
// values; callers see to it that they are IPv4.
package prefix

import (
	"cmp"
	"encoding/binary"
	"net/netip"
)

// Count is the number of subnets of length bits in network. It is a uint64
// because 0.0.0.0/0 has 2^32 of length 32.
func Count(network netip.Prefix, bits int) uint64 {
	if bits < network.Bits() {
		return 0
	}
	return 1 << (bits - network.Bits())
}

// Nth is the subnet of length bits with n others before it in network. n must
// be less than Count(network, bits).
func Nth(network netip.Prefix, bits int, n uint64) netip.Prefix {
	return netip.PrefixFrom(FromUint(Uint(network.Masked().Addr())+uint32(n<<(32-bits))), bits)
}

// Index is the inverse of Nth: how many subnets of the length of p come before
// p in network. p must lie in network.
func Index(network, p netip.Prefix) uint64 {
	return uint64(Uint(p.Addr())-Uint(network.Masked().Addr())) >> (32 - p.Bits())
}

// Contains reports whether inner lies wholly in outer.
func Contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// Compare orders prefixes whose host bits are zero: by address, then by length.
// It is what netip's Compare makes of such, without masking them first.
func Compare(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return cmp.Compare(a.Bits(), b.Bits())
}

// Last is the highest address in p, its broadcast address.
func Last(p netip.Prefix) netip.Addr {
	return FromUint(Uint(p.Masked().Addr()) | uint32(1<<(32-p.Bits())-1))
}

// Uint is the address as a number, most significant byte first.
func Uint(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// FromUint is the inverse of Uint.
func FromUint(u uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], u)
	return netip.AddrFrom4(b)
}
