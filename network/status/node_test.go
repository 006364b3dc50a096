package status

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"flanneld/pkg/extif"
	"flanneld/subnet"
)

// What a daemon writes of itself is read as it was, and not as something else where
// it was cut off.
func TestNode(t *testing.T) {
	n := Node{
		Daemon:    &Daemon{Version: "v1.2.3", PID: 4711, Started: time.Now().UTC(), Ready: true, Problems: []string{"one"}, Notes: []string{}},
		Interface: extif.Interface{Name: "eth0", Index: 2, MTU: 1500, Addr: netip.MustParseAddr("192.0.2.1"), Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}, MAC: "02:00:00:00:00:01"},
		PublicIP:  netip.MustParseAddr("203.0.113.7"), Prefix: "/coreos.com/network", Config: `{"Network": "10.1.0.0/16"}`,
		Members: []Member{{Endpoint: "http://192.0.2.9:2379", InUse: true, Answers: true, Seconds: 0.5}, {Endpoint: "http://192.0.2.10:2379", Error: "away"}},
	}
	for i := range 200 {
		n.Leases = append(n.Leases, &subnet.Lease{
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24), Expires: time.Now().UTC().Add(time.Hour), Revision: uint64(i), Created: 7,
			Attrs: subnet.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1"), BackendType: "vxlan", BackendData: []byte(fmt.Sprintf(`{"VtepMAC":"02:00:00:00:00:%02x"}`, i%256))},
		})
	}
	n.Own = n.Leases[5]
	n.Leases[6].Expires, n.Leases[6].BackendData = time.Time{}, nil
	var b bytes.Buffer
	if err := n.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := ReadNode(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("-written +read:\n%s", diff)
	}
	for size := range b.Len() - 1 {
		if _, err := ReadNode(io.LimitReader(bytes.NewReader(b.Bytes()), int64(size))); err == nil {
			t.Fatalf("cut off after %d bytes of %d, it was read", size, b.Len())
		}
		if size > 1500 { // the lines that follow are alike
			break
		}
	}
}
