package gso

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds the 16-bit words of b to a one's complement sum (RFC 1071) in the byte
// order of the machine; an odd last byte counts as if a zero followed. The sum
// may be of any even number of bytes before b. Fold makes a checksum of it.
//
// It adds 8 bytes at a time: sums of wider words fold to the same as those of
// 16 bits, and in any byte order to the same bytes (RFC 1071 section 2).
func Sum(sum uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 64 {
		// A whole chain of additions passes its carry on in the processor's flag.
		w := b[:64:64]
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[0:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[8:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[16:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[24:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[32:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[40:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[48:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(w[56:]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(last[:]), carry)
	}
	// The sum is all ones less than a carry at most, so this makes no other one
	// unless that is added in turn.
	sum, carry = bits.Add64(sum, 0, carry)
	return sum + carry
}

// Fold makes 16 bits of a sum. Fold(Sum(0, b)) is 0xffff if b contains its own,
// right checksum; its complement is the checksum of b, in the byte order of the
// machine.
func Fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum&0xffff)
}

// add adds a number to a sum.
func add(sum, x uint64) uint64 {
	sum, carry := bits.Add64(sum, x, 0)
	return sum + carry
}

// word is a number as it counts in a sum, where it stands in network byte order.
func word(x uint16) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], x)
	return uint64(binary.NativeEndian.Uint16(b[:]))
}

// pseudo is the sum of the pseudo-header of TCP and UDP (RFC 9293 section 3.1,
// RFC 768) for length bytes of them in packet.
func pseudo(packet []byte, protocol uint8, length int) uint64 {
	addresses := binary.NativeEndian.Uint64(packet[12:])
	return add(addresses, word(uint16(protocol))+word(uint16(length)))
}

// putChecksum writes the checksum of what has the given sum.
func putChecksum(b []byte, sum uint64) { binary.NativeEndian.PutUint16(b, ^Fold(sum)) }
