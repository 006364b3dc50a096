package kernel

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flanneld/pkg/lab"
)

// inspected is what Inspect says of a host, in lines.
func inspected(t *testing.T, h *lab.Host, s State) (lines []string) {
	t.Helper()
	err := h.Do(func() error {
		is, err := Inspect(testOwner, s, func(s State, _ Host) (State, []error) { return s, nil })
		for _, text := range is.Device {
			lines = append(lines, "device: "+text)
		}
		for _, w := range is.Wrong {
			about := "-"
			switch {
			case w.Route != nil:
				about = w.Route.Dst.String()
			case w.Neighbour != nil:
				about = w.Neighbour.IP.String()
			case w.FDB != nil:
				about = w.FDB.MAC.String()
			}
			lines = append(lines, fmt.Sprintf("%s %s: %s", about, w.Short, w.Text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

// Inspect sees whatever a hand has changed behind a Run that does not look, says of
// which entry it is, and changes nothing.
func TestInspect(t *testing.T) {
	h := newHost(t)
	want := vxlanState(t, h, 3)
	if got := inspected(t, h, want); !slices.Contains(got, "device: it is not there") || len(got) != 1+3*3+1 {
		t.Errorf("on an empty host:\n%s", strings.Join(got, "\n"))
	}
	ctx, stop := context.WithCancel(t.Context())
	inputs, synced := make(chan State, 1), make(chan struct{}, 1)
	inputs <- want
	done := make(chan error)
	go func() {
		done <- h.Do(func() error {
			return Run(ctx, testOwner, inputs, func(s State, _ Host) (State, []error) { return s, nil }, func(Comparison) {
				select {
				case synced <- struct{}{}:
				default:
				}
			})
		})
	}()
	<-synced
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := inspected(t, h, want); len(got) > 0 {
		t.Errorf("right after Run:\n%s", strings.Join(got, "\n"))
	}
	h.Run("sh", "-ec", `
		ip link set flannel.1 mtu 1300
		ip addr add 10.9.9.9/24 dev flannel.1
		ip route del 10.1.2.0/24
		ip route replace 10.1.3.0/24 via 172.16.16.1 proto 102
		ip route replace blackhole 10.1.4.0/24 proto static
		ip route add 10.1.77.0/24 via 172.16.16.1 proto 102
		ip neigh del 10.1.2.0 dev flannel.1
		ip neigh replace 10.1.3.0 lladdr 02:00:00:00:00:99 nud permanent dev flannel.1
		ip neigh add 10.1.77.0 lladdr 02:00:00:00:00:77 nud permanent dev flannel.1
		bridge fdb del 02:00:00:00:01:02 dev flannel.1
		bridge fdb replace 02:00:00:00:01:03 dst 172.16.17.99 dev flannel.1
		bridge fdb append 02:00:00:00:00:77 dst 172.16.17.77 dev flannel.1`)
	before := h.Run("sh", "-c", "ip link; ip addr; ip route; ip nexthop; ip neigh; bridge fdb")
	if d := cmp.Diff([]string{
		"- surplus: the FDB entry 02:00:00:00:00:77 ought not to be there",
		"- surplus: the neighbour 10.1.77.0 lladdr 02:00:00:00:00:77 ought not to be there",
		"- surplus: the route 10.1.77.0/24 via 172.16.16.1 dev eth0 ought not to be there",
		"02:00:00:00:01:02 missing: the FDB entry 02:00:00:00:01:02 dst 172.16.17.2 is missing",
		"02:00:00:00:01:03 wrong: another entry is where the FDB entry 02:00:00:00:01:03 dst 172.16.17.3 ought to be",
		"10.1.2.0 missing: the neighbour 10.1.2.0 lladdr 02:00:00:00:01:02 is missing",
		"10.1.2.0/24 missing: the route 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink is missing",
		"10.1.3.0 wrong: another entry is where the neighbour 10.1.3.0 lladdr 02:00:00:00:01:03 ought to be",
		"10.1.3.0/24 wrong: another entry is where the route 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink ought to be",
		"10.1.4.0/24 in the way: setting the route 10.1.4.0/24 via 10.1.4.0 dev flannel.1 onlink: the host has a route of its own to it, which stays",
		"device: it has the address 10.9.9.9/24",
		"device: its MTU is 1300 and not 1450",
	}, inspected(t, h, want)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if after := h.Run("sh", "-c", "ip link; ip addr; ip route; ip nexthop; ip neigh; bridge fdb"); after != before {
		t.Errorf("looking has changed\n%s\ninto\n%s", before, after)
	}

	h.Run("sh", "-ec", "ip link del flannel.1; ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dstport 4789 nolearning")
	if got := inspected(t, h, want); !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "device: it is a device of another kind") }) {
		t.Errorf("with a device of another shape:\n%s", strings.Join(got, "\n"))
	}
}
