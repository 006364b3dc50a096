package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"flanneld/pkg/lab/cluster"
	"flanneld/pkg/prefix"
)

var (
	network   = netip.MustParsePrefix("10.0.0.0/8")
	subnetLen = 24
	// subnetMin is where the subnets of hosts that run a flanneld begin; below
	// are those of the leases that are written here.
	subnetMin = netip.MustParseAddr("10.240.0.0")

	// segment holds an address for each lease, as host-gw wants its hosts on
	// one, and below them, from the router on, those of the real hosts.
	segment   = netip.MustParsePrefix("172.30.0.0/16")
	firstHost = netip.MustParseAddr("172.30.1.0")
)

// leaseTTL is what flanneld gives its leases, in seconds.
const leaseTTL = 24 * 60 * 60

// lease is one of another host, of which there is nothing but this.
type lease struct {
	subnet netip.Prefix
	host   netip.Addr
	mac    string // of the host's VTEP
}

// newLease is the nth lease there can be. No two share anything.
func newLease(n int) lease {
	return lease{prefix.Nth(network, subnetLen, uint64(n+1)), hostAddr(n), vtepMAC(n)}
}

// hostAddr is the address of the nth host there can be.
func hostAddr(n int) netip.Addr {
	first := firstHost.As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(first[:])+uint32(n))))
}

// vtepMAC is the nth MAC a VTEP can have.
func vtepMAC(n int) string {
	b := binary.BigEndian.AppendUint32([]byte{0x02, 0x00}, uint32(n))
	return net.HardwareAddr(b).String()
}

// stored is the lease as it stands in etcd.
func (l lease) stored(k kind) cluster.Lease {
	data := ""
	if k.device != "" {
		data = fmt.Sprintf(`,"BackendData":{"VtepMAC":%q}`, l.mac)
	}
	s := l.removed()
	s.Value, s.TTL = fmt.Sprintf(`{"PublicIP":"%v","BackendType":%q%s}`, l.host, k.name, data), leaseTTL
	return s
}

// removed is the lease as cluster.Writer is told to remove it.
func (l lease) removed() cluster.Lease {
	return cluster.Lease{Key: keyOf(l.subnet)}
}

func keyOf(subnet netip.Prefix) string { return strings.ReplaceAll(subnet.String(), "/", "-") }
