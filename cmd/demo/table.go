package main

import (
	"fmt"
	"strconv"

	"flanneld/pkg/lab/screen"
)

// row is a line of the table: what containers get, beside what their hosts get
// without flanneld.
type row struct {
	backend       string
	reason        string // why there is nothing else
	hosts         string
	mtu           int
	through, bare reading
}

func table(out screen.Screen, rows []row) {
	lines := [][]string{{"backend", "hosts", "MTU", "ping ms", "(bare)", "Gbit/s", "(bare)", "of bare wire"}}
	gbits := func(f float64) string { return fmt.Sprintf("%.2f", f) }
	for _, r := range rows {
		if r.reason != "" {
			lines = append(lines, []string{r.backend, r.reason})
			continue
		}
		lines = append(lines, []string{
			r.backend, r.hosts, strconv.Itoa(r.mtu), ms(r.through.ping), "(" + ms(r.bare.ping) + ")",
			gbits(r.through.gbits), "(" + gbits(r.bare.gbits) + ")", gbits(r.through.gbits / r.bare.gbits),
		})
	}
	out.Columns(lines)
}

// worth says what the figures were measured on, and what they are worth.
func worth() string {
	return fmt.Sprintf(`From container to container on different hosts, and (bare) from host to host without flanneld.
Measured on %s.
All hosts with their daemons, etcd, senders and receivers share this one machine, and its virtual
wires pass packets of up to 64 KB whole, as no network card does: compare the figures with each
other, not with those of real machines. The router alone cuts VXLAN packets to the MTU, which plain
ones are spared, and so is slow with them.`, screen.Machine())
}
