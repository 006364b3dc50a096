package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// EtcdMembers are the members of one etcd, each on a host of its own.
type EtcdMembers []*Etcd

// StartEtcd starts an etcd with a member on each of the hosts and returns when
// all of them answer. It works like [Host.Etcd] otherwise.
func StartEtcd(hosts ...*Host) EtcdMembers {
	var m EtcdMembers
	for _, h := range hosts {
		m = append(m, h.newEtcd())
	}
	m.found()
	return m
}

// found starts the members as one etcd.
func (m EtcdMembers) found() {
	var all []string
	for _, e := range m {
		e.host.lab.Helper()
		all = append(all, e.host.Name+"="+e.peerURL())
	}
	for _, e := range m {
		e.members = strings.Join(all, ",")
	}
	m.Restart()
}

// Restart starts these members, again if they run, and returns when they
// answer: two of three that were stopped have to be started together.
func (m EtcdMembers) Restart() {
	for _, e := range m {
		e.host.lab.Helper()
		e.Start()
	}
	for _, e := range m {
		e.host.lab.Helper()
		e.Await()
	}
}

// Others are all members but these.
func (m EtcdMembers) Others(these ...*Etcd) EtcdMembers {
	return slices.DeleteFunc(slices.Clone(m), func(e *Etcd) bool { return slices.Contains(these, e) })
}

// Leader is the member that leads. It is an error while there is none, or while
// one that is cut off has not noticed yet that it leads nobody.
func (m EtcdMembers) Leader() (*Etcd, error) {
	var leaders EtcdMembers
	var errs []error
	for _, e := range m {
		if !e.Running() {
			continue
		}
		var self struct{ State string }
		body, err := e.Ask(http.MethodGet, "/v2/stats/self", nil)
		if err == nil {
			err = json.Unmarshal(body, &self)
		}
		errs = append(errs, err)
		if self.State == "StateLeader" {
			leaders = append(leaders, e)
		}
	}
	if len(leaders) != 1 {
		return nil, errors.Join(append(errs, fmt.Errorf("%d members lead", len(leaders)))...)
	}
	return leaders[0], nil
}

// Lead makes a member the leader in good order, and returns when it is.
func (m EtcdMembers) Lead(e *Etcd) {
	e.host.lab.Helper()
	Eventually(e.host.lab, etcdTimeout, "making etcd on "+e.host.Name+" the leader", func() error {
		leader, err := m.Leader()
		if err != nil || leader == e {
			return err
		}
		id, err := e.id()
		if err == nil {
			_, err = leader.Ask(http.MethodPost, "/v3/maintenance/transfer-leadership", map[string]string{"targetID": id})
		}
		if err == nil {
			err = errors.New("the leader was just asked")
		}
		return err
	})
}

// id is the member's own, in decimal.
func (e *Etcd) id() (string, error) {
	body, err := e.Ask(http.MethodPost, "/v3/maintenance/status", struct{}{})
	if err != nil {
		return "", err
	}
	var status struct {
		Header struct {
			ID string `json:"member_id"`
		}
	}
	err = json.Unmarshal(body, &status)
	return status.Header.ID, err
}

// Isolate cuts the member off from everybody but its own host, without a word:
// packets are dropped. [Etcd.Mend] ends it.
func (e *Etcd) Isolate() { e.cut(0) }

// Partition cuts the member off from the other members only; its clients still
// reach it. [Etcd.Mend] ends it.
func (e *Etcd) Partition() { e.cut(etcdPeerPort) }

func (e *Etcd) cut(port uint16) {
	e.host.lab.Helper()
	e.Mend()
	e.mended = e.host.Silence(netip.Addr{}, port)
}

// Mend ends what Isolate or Partition began; where there is nothing to end, it
// does nothing.
func (e *Etcd) Mend() {
	e.host.lab.Helper()
	if e.mended != nil {
		e.mended()
		e.mended = nil
	}
}

// Silence makes the node drop packets without a word, those it sends as well as
// those it gets, until end is called: those to and from an address, those of a
// TCP port at either side, or both where both are given; all but those on lo if
// addr is invalid and port is 0.
func (n *Node) Silence(addr netip.Addr, port uint16) (end func()) {
	n.lab.Helper()
	var rules [][]string
	for _, dir := range []struct{ chain, dev, peer string }{{"INPUT", "-i", "-s"}, {"OUTPUT", "-o", "-d"}} {
		rule := []string{dir.chain, "!", dir.dev, "lo"}
		if addr.IsValid() {
			rule = append(rule, dir.peer, addr.String())
		}
		if port == 0 {
			rules = append(rules, append(rule, "-j", "DROP"))
			continue
		}
		for _, side := range []string{"--sport", "--dport"} {
			rules = append(rules, append(slices.Clone(rule), "-p", "tcp", side, strconv.Itoa(int(port)), "-j", "DROP"))
		}
	}
	each := func(do string) {
		n.lab.Helper()
		for _, r := range rules {
			// The daemon under test may hold the lock.
			n.Run(append([]string{"iptables", "-w", "10", do}, r...)...)
		}
	}
	each("-I")
	return func() { n.lab.Helper(); each("-D") }
}
