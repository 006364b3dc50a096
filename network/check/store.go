package check

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"flanneld/backend/table"
	"flanneld/subnet"
)

// How long the store may take: for its members to answer, a little longer than
// connecting to one may; for the config, longer than connecting to two, as of five
// members two may be dead; and for the leases.
const (
	memberTime = 2500 * time.Millisecond
	configTime = 4300 * time.Millisecond
	leaseTime  = time.Second
)

// answers are the store's.
type answers struct {
	members []subnet.Member
	// text is the network config.
	text      string
	configErr error
	// The rest is only there when the config could be read, or is not there.
	leases   []*subnet.Lease
	listErr  error
	writeErr error
}

// reached reports whether any member answers.
func (a answers) reached() bool {
	return slices.ContainsFunc(a.members, func(m subnet.Member) bool { return m.Err == nil })
}

// read reports whether the store has said what it has for a config, if anything.
func (a answers) read() bool {
	return a.reached() && (a.configErr == nil || errors.Is(a.configErr, subnet.ErrNotFound))
}

// noEntry is a lease that nobody has: no subnet has such a key.
var noEntry = subnet.Entry{Key: "flanneld-check", Value: "flanneld check", Revision: 1}

// ask asks the store all that is to be known of it.
func ask(ctx context.Context, store subnet.Store) (a answers) {
	reading, giveUp := context.WithTimeout(ctx, configTime)
	defer giveUp()
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, stop := context.WithTimeout(ctx, memberTime)
		defer stop()
		if a.members = store.Members(ctx); !a.reached() {
			giveUp()
		}
	})
	wg.Go(func() { a.text, _, a.configErr = store.Config(reading) })
	wg.Wait()
	if !a.read() {
		return a
	}

	ctx, stop := context.WithTimeout(ctx, leaseTime)
	defer stop()
	wg.Go(func() {
		var entries []subnet.Entry
		entries, _, a.listErr = store.List(ctx)
		for _, e := range entries {
			l, err := e.Decode()
			if err != nil { // its subnet is taken all the same
				if l.Subnet, err = subnet.ParseKey(e.Key); err != nil {
					continue
				}
			}
			a.leases = append(a.leases, &l)
		}
	})
	// Who may write is told that there is nothing to remove, who may not that he may
	// not: by that the two differ, and nothing is written either way.
	wg.Go(func() { a.writeErr = store.Delete(ctx, noEntry) })
	wg.Wait()
	return a
}

// members judges the store's servers, of which one is enough where others are well.
func members(all []subnet.Member, given bool) (found []Finding) {
	one := answers{members: all}.reached()
	for _, m := range all {
		switch {
		case m.Err == nil:
			found = append(found, ok("etcd", "%s answers, in %v", m.Endpoint, m.Took.Round(100*time.Microsecond)))
		case one && !given:
			found = append(found, skipped("etcd", "%s is not used: %v", m.Endpoint, m.Err))
		case one:
			found = append(found, warning("etcd", "see to that member; flanneld does with the others meanwhile", "%s: %v", m.Endpoint, m.Err))
		case !given:
			found = append(found, failure("etcd", "say where etcd is with --etcd-endpoints", "%s: %v", m.Endpoint, m.Err))
		default:
			found = append(found, failure("etcd", "see whether etcd runs there, with a majority of its members, and what is on the way to it; flanneld waits until then", "%s: %v", m.Endpoint, m.Err))
		}
	}
	return found
}

// config judges the network config, and returns it where it can be used.
func config(a answers) (*table.Config, []Finding) {
	const name = "network config"
	switch {
	case !a.reached():
		return nil, []Finding{skipped(name, "etcd does not answer")}
	case errors.Is(a.configErr, subnet.ErrNotFound):
		return nil, []Finding{failure(name, `write one there, like {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}; flanneld waits until then`, "%v", a.configErr)}
	case late(a.configErr):
		return nil, []Finding{failure(name, "see to etcd: it answers this only with a majority of its members", "it could not be read within %v", configTime)}
	case a.configErr != nil:
		return nil, []Finding{failure(name, "see to etcd, and to what flanneld is told of it; flanneld waits until then", "%v", a.configErr)}
	}
	c, unknown, err := table.ParseConfig(a.text)
	if err != nil {
		return nil, []Finding{failure(name, "put it right in etcd; flanneld waits until then", "%v", err)}
	}
	found := []Finding{ok(name, "%v", c)}
	if len(unknown) > 0 {
		found = append(found, warning(name, "see whether they are misspelt, or remove them", "it has fields that are not known here and have no effect: %s", few(unknown)))
	}
	return &c, found
}

// rights judges whether this host may do in the store what it has to.
func rights(a answers) Finding {
	const name, hint = "etcd rights", "let the user of flanneld read and write all below the prefix"
	switch {
	case !a.read():
		return skipped(name, "the network config could not be read")
	case late(a.listErr) || late(a.writeErr):
		return warning(name, "see whether etcd has too much to do", "no answer within %v", leaseTime)
	case a.listErr != nil:
		return failure(name, hint, "%v", a.listErr)
	case a.writeErr != nil && !errors.Is(a.writeErr, subnet.ErrNotFound) && !errors.Is(a.writeErr, subnet.ErrConflict):
		return failure(name, hint, "writing leases is refused: %v", a.writeErr)
	}
	return ok(name, "leases can be read and written")
}

// holding is what there is to know of this host's own subnet.
type holding struct {
	config   *table.Config
	publicIP netip.Addr // invalid where it is not known
	last     subnet.Remembered
	said     answers
}

// held is the lease that this host would take over, nil if there is none.
func (h holding) held() *subnet.Lease {
	var found *subnet.Lease
	for _, l := range h.said.leases {
		mine := l.PublicIP.IsValid() && l.PublicIP == h.publicIP ||
			l.PublicIP.IsValid() && l.PublicIP == h.last.PublicIP && l.Subnet == h.last.Subnet && l.Revision == h.last.Revision
		if mine && (found == nil || h.config.Fits(l.Subnet)) {
			found = l
		}
	}
	return found
}

// own is the subnet that this host has, or had when it last ran; invalid if none.
func (h holding) own() netip.Prefix {
	if l := h.held(); l != nil {
		return l.Subnet
	}
	return h.last.Subnet
}

// lease says which subnet the host would have.
func (h holding) lease() Finding {
	const name = "lease"
	switch {
	case h.config == nil:
		return skipped(name, "the network config is not known")
	case h.said.listErr != nil:
		return skipped(name, "the leases could not be read")
	case !h.publicIP.IsValid():
		return skipped(name, "this host's address is not known")
	}
	all, free := h.config.Subnets(), h.config.Free(h.said.leases)
	room := fmt.Sprintf("%d of %d subnets are free", free, all)
	held := h.held()
	if held != nil && h.config.Fits(held.Subnet) {
		until := "reserved for it"
		if !held.Reserved() {
			until = "until " + held.Expires.UTC().Format(time.RFC3339)
		}
		if held.Subnet != h.last.Subnet && (!held.Reserved() || held.Revision != held.Created) { // a reservation was taken by some host
			return warning(name, fmt.Sprintf("see that there is no other host with %v; if there is none all is well, as after a reboot that has emptied /run", h.publicIP),
				"the host with %v has %v, %s, and this host's subnet file does not know of it; %s", h.publicIP, held.Subnet, until, room)
		}
		return ok(name, "this host has %v, %s; %s", held.Subnet, until, room)
	}
	var remarks []string
	if held != nil {
		remarks = append(remarks, fmt.Sprintf("this host has %v, which is none of the network's subnets any more and will be removed", held.Subnet))
	}
	last := h.last.Subnet
	taken := slices.IndexFunc(h.said.leases, func(l *subnet.Lease) bool { return last.IsValid() && l.Subnet.Overlaps(last) })
	switch {
	case last.IsValid() && h.config.Fits(last) && taken < 0:
		return ok(name, "%s", strings.Join(append(remarks, fmt.Sprintf("this host will ask for %v, the subnet in its subnet file; %s", last, room)), "; "))
	case last.IsValid() && h.config.Fits(last) && h.said.leases[taken] != held:
		remarks = append(remarks, fmt.Sprintf("the subnet in its subnet file, %v, is not to be had: %v", last, h.said.leases[taken]))
	}
	if free == 0 {
		return failure(name, "give the network more subnets, by a larger Network or SubnetLen, or remove leases of hosts that are no more; flanneld waits until then",
			"%s", strings.Join(append(remarks, fmt.Sprintf("none of the %d subnets is free", all)), "; "))
	}
	text := strings.Join(append(remarks, "this host will get a free subnet; "+room), "; ")
	if len(remarks) > 0 {
		return warning(name, "if it ought to keep its subnet, see to that before flanneld is started", "%s", text)
	}
	return ok(name, "%s", text)
}
