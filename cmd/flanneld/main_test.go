package main

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// The tests of this package run the real daemon against a real etcd on hosts
// made of network namespaces.
func TestMain(m *testing.M) { lab.Main(m, cluster.Needs()...) }

// within is the bound for what follows a change in etcd.
const within = time.Second

var segmentA = netip.MustParsePrefix("172.30.0.0/24")

// newCluster is a lab with an etcd on one segment.
func newCluster(t *testing.T) (*cluster.Cluster, *lab.Segment) {
	t.Helper()
	if err := lab.Tools("ip", "bridge", "iptables"); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(t)
	s := l.Segment("a", segmentA)
	return cluster.New(l, s), s
}

// join starts a daemon on a new host that is to get the subnet 10.1.<n>.0/24,
// waits until it is ready and adds a container.
func join(c *cluster.Cluster, s *lab.Segment, n int, args ...string) (*cluster.Node, *lab.Container) {
	c.Helper()
	h := c.Node(fmt.Sprintf("h%d", n), s)
	reserve(c, h, n)
	h.Start(args...)
	h.AwaitReady()
	return h, h.AddContainer("c")
}

// reserve makes the host ask for a subnet the way an operator does it: with a
// subnet file written by hand.
func reserve(c *cluster.Cluster, h *cluster.Node, n int) {
	c.Helper()
	c.Must(writeFile(h.SubnetFile(), fmt.Sprintf("FLANNEL_SUBNET=10.1.%d.1/24\n", n)))
}

// equal waits until a text is what it ought to be.
func equal(t *testing.T, what string, within time.Duration, got func() string, want ...string) {
	t.Helper()
	text := strings.Join(want, "\n")
	lab.Eventually(t, within, what, func() error {
		if now := got(); now != text {
			return fmt.Errorf("got\n%s\nwant\n%s", now, text)
		}
		return nil
	})
}

// lines sorts lines as the cluster's own listings are sorted.
func lines(all []string) []string {
	slices.Sort(all)
	return all
}

func writeFile(name, text string) error { return os.WriteFile(name, []byte(text), 0o644) }

// regexpQuote makes a text a pattern of itself for WaitLog.
func regexpQuote(text string) string { return regexp.QuoteMeta(text) }
