package main

import (
	"fmt"
	"strings"

	"flanneld/pkg/lab"
)

// kind is a backend that programs the kernel for each lease.
type kind struct {
	name   string
	device string // that the reference makes for its entries; none if they are on eth0
	// entries are what the kernel ought to have for a lease, see entry.
	entries func(lease) []entry
	// change is the lease with something new in it, the nth of its sort.
	change func(l lease, n int) lease
	// batches are the same entries as input of ip and bridge.
	batches []batch
	start   float64 // bound of the start, as a share of the reference
	aim     string
}

// batch is a tool and a line of its input for each lease.
type batch struct {
	tool string
	line func(lease) string
}

// protocol marks flanneld's routes (rtnetlink(7), rtm_protocol).
const protocol = 102

var vxlan = kind{
	// Not flannel.<number>, which is flanneld's own.
	name: "vxlan", device: "batch0",
	entries: func(l lease) []entry {
		return []entry{routeEntry(l.subnet, l.subnet.Addr()), neighEntry(l.subnet.Addr(), l.mac), fdbEntry(l.mac, l.host)}
	},
	change: func(l lease, n int) lease {
		l.mac = vtepMAC(n)
		return l
	},
	batches: []batch{
		{"ip", func(l lease) string {
			return fmt.Sprintf("route add %v via %v dev batch0 onlink proto %d", l.subnet, l.subnet.Addr(), protocol)
		}},
		{"ip", func(l lease) string {
			return fmt.Sprintf("neigh add %v lladdr %s dev batch0 nud permanent", l.subnet.Addr(), l.mac)
		}},
		{"bridge", func(l lease) string { return fmt.Sprintf("fdb add %s dev batch0 dst %v self permanent", l.mac, l.host) }},
	},
	start: 0.4, aim: "0.35 s",
}

var hostGW = kind{
	name:    "host-gw",
	entries: func(l lease) []entry { return []entry{routeEntry(l.subnet, l.host)} },
	change: func(l lease, n int) lease {
		l.host = hostAddr(n)
		return l
	},
	batches: []batch{{"ip", func(l lease) string {
		return fmt.Sprintf("route add %v via %v dev eth0 proto %d", l.subnet, l.host, protocol)
	}}},
	start: 0.3, aim: "0.2 s",
}

// prepare makes the device on a fresh host, as flanneld makes its own.
func (k kind) prepare(h *lab.Host) {
	if k.device == "" {
		return
	}
	h.Run("ip", "link", "add", k.device, "type", "vxlan", "id", "1", "dstport", "8472",
		"local", h.Addr().String(), "dev", "eth0", "nolearning")
	h.Run("ip", "address", "add", subnetMin.String()+"/32", "dev", k.device)
	h.Run("ip", "link", "set", k.device, "up")
}

// lines are the input of the tool for all leases.
func (b batch) lines(leases []lease) string {
	var text strings.Builder
	for _, l := range leases {
		text.WriteString(b.line(l) + "\n")
	}
	return text.String()
}
