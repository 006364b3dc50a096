// Package cluster is a flannel network in a lab: an etcd with a network config,
// and hosts with a flanneld on each. It is what tests of the real binary, the
// demo and the benchmarks have in common. Start reading at New.
package cluster

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"flanneld/pkg/lab"
)

// Needs are what programs that use a Cluster hand to lab.Main or lab.Enter.
func Needs() []lab.Need {
	return []lab.Need{lab.BuildGo("flanneld", "./cmd/flanneld", "-ldflags=-X main.version=lab"), lab.BuildEtcd()}
}

// Prefix is where in etcd the network is, unless a Cluster has another.
const Prefix = "/coreos.com/network"

// startTime is how long a daemon may take to be ready or to stop. It needs a
// fraction of a second on an idle machine; the rest is for busy ones.
const startTime = 20 * time.Second

// Cluster is an etcd and the hosts that share its network.
type Cluster struct {
	*lab.Lab
	// Etcd is the member that the Cluster's own requests go to.
	Etcd *lab.Etcd
	// Members are all members, which the daemons are told of.
	Members lab.EtcdMembers
	Prefix  string // of the keys in etcd
}

// New starts an etcd on a host of its own on the segment.
func New(l *lab.Lab, s *lab.Segment) *Cluster {
	l.Helper()
	return On(l, l.Host("etcd", s).Etcd())
}

// NewMembers starts an etcd of several members, each on a host of its own on
// the segment.
func NewMembers(l *lab.Lab, s *lab.Segment, members int) *Cluster {
	l.Helper()
	var hosts []*lab.Host
	for i := range members {
		hosts = append(hosts, l.Host(fmt.Sprintf("etcd%d", i+1), s))
	}
	return On(l, lab.StartEtcd(hosts...)...)
}

// On makes a Cluster of an etcd that runs already.
func On(l *lab.Lab, members ...*lab.Etcd) *Cluster {
	return &Cluster{Lab: l, Etcd: members[0], Members: members, Prefix: Prefix}
}

// Endpoints are the URLs of all members.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, e := range c.Members {
		all = append(all, e.Endpoint())
	}
	return all
}

// SetConfig writes the network config.
func (c *Cluster) SetConfig(text string) {
	c.Helper()
	c.request(http.MethodPut, "config", url.Values{"value": {text}})
}

// DeleteConfig removes the network config.
func (c *Cluster) DeleteConfig() {
	c.Helper()
	c.request(http.MethodDelete, "config", nil)
}

// PutLease writes a lease; a ttl of 0 makes it a reservation.
func (c *Cluster) PutLease(key, value string, ttl time.Duration) {
	c.Helper()
	c.request(http.MethodPut, "subnets/"+key, leaseForm(value, int(ttl.Seconds())))
}

// leaseForm is what is sent to write a lease; a ttl of 0 makes it a reservation.
func leaseForm(value string, ttl int) url.Values {
	form := url.Values{"value": {value}}
	if ttl > 0 {
		form.Set("ttl", strconv.Itoa(ttl))
	}
	return form
}

// DeleteLease removes a lease.
func (c *Cluster) DeleteLease(key string) {
	c.Helper()
	c.request(http.MethodDelete, "subnets/"+key, nil)
}

// Lease is a lease as it stands in etcd.
type Lease struct {
	Key, Value string
	TTL        int    // seconds; 0 for a reservation
	Index      uint64 // etcd's, when it was written last
}

// Leases returns all leases, by key.
func (c *Cluster) Leases() map[string]Lease {
	c.Helper()
	all := map[string]Lease{}
	for _, n := range c.request(http.MethodGet, "subnets", nil).Node.Nodes {
		key := filepath.Base(n.Key)
		all[key] = Lease{key, n.Value, n.TTL, n.ModifiedIndex}
	}
	return all
}

type answer struct{ Node node }

type node struct {
	Key, Value    string
	TTL           int
	ModifiedIndex uint64
	Nodes         []node
}

// request is ask for a request that has to work.
func (c *Cluster) request(method, key string, form url.Values) answer {
	c.Helper()
	a, err := c.ask(c.Etcd.Host().HTTP(), method, key, form)
	c.Must(err)
	return a
}

// ask speaks etcd's v2 API as curl would, so that what the daemon's own
// client makes of it is not taken for granted. It does so on etcd's own host,
// which works while others are cut off from etcd.
func (c *Cluster) ask(client *http.Client, method, key string, form url.Values) (a answer, err error) {
	target := c.Etcd.Local() + "/v2/keys" + c.Prefix + "/" + key
	req, err := http.NewRequest(method, target, strings.NewReader(form.Encode()))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	c.Etcd.Authorize(req)
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body) // to its end, or the connection cannot be used again
	switch {
	case err != nil:
		return a, fmt.Errorf("%s %s: %w", method, target, err)
	case resp.StatusCode == http.StatusNotFound && method == http.MethodGet:
		return a, nil
	case resp.StatusCode >= 300:
		return a, fmt.Errorf("%s %s: %s", method, target, resp.Status)
	}
	return a, json.Unmarshal(body, &a)
}

// Node is a host with a flanneld on it.
type Node struct {
	*lab.Host
	// Daemon is the flanneld that runs, or ran last.
	Daemon *lab.Process
	// Under is a command that the next flanneld is started by, as its arguments.
	Under []string
	// Endpoints are what the next flanneld is told of etcd; none is all members.
	Endpoints []string

	cluster *Cluster
}

// Node adds a host on a segment, with the given address or the next free one.
// Nothing runs on it yet.
func (c *Cluster) Node(name string, s *lab.Segment, addr ...netip.Addr) *Node {
	c.Helper()
	return &Node{Host: c.Host(name, s, addr...), cluster: c}
}

// SubnetFile is where the node's daemon is told to write it.
func (n *Node) SubnetFile() string { return filepath.Join(n.Dir, "subnet.env") }

// Start starts flanneld, with these flags after those every node has.
func (n *Node) Start(args ...string) {
	n.cluster.Helper()
	endpoints := n.Endpoints
	if len(endpoints) == 0 {
		endpoints = n.cluster.Endpoints()
	}
	n.Daemon = n.StartProgram(lab.Program{Name: "flanneld", Notify: true, Args: slices.Concat(n.Under, []string{
		lab.Binary("flanneld"), "--etcd-endpoints=" + strings.Join(endpoints, ","), "--etcd-prefix=" + n.cluster.Prefix,
		"--subnet-file=" + n.SubnetFile(), "--iface=eth0",
	}, args)})
}

// AwaitReady waits until the daemon is ready.
func (n *Node) AwaitReady() {
	n.cluster.Helper()
	n.cluster.Must(n.Daemon.WaitReady(startTime))
}

// Stop stops the daemon as systemd would, which has to be clean.
func (n *Node) Stop() {
	n.cluster.Helper()
	status, err := n.Daemon.Stop(syscall.SIGTERM, startTime)
	n.cluster.Must(err)
	if status != 0 {
		n.cluster.Fatalf("flanneld on %s stopped with exit status %d", n.Name, status)
	}
}

// SubnetEnv is what the subnet file says.
type SubnetEnv struct {
	Network netip.Prefix
	Gateway netip.Prefix // FLANNEL_SUBNET: the first usable address, with the length
	MTU     int
	IPMasq  bool
}

// Subnet is the leased prefix.
func (e SubnetEnv) Subnet() netip.Prefix { return e.Gateway.Masked() }

// Env reads the subnet file.
func (n *Node) Env() (e SubnetEnv) {
	n.cluster.Helper()
	f, err := os.Open(n.SubnetFile())
	n.cluster.Must(err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch name {
		case "FLANNEL_NETWORK":
			e.Network, err = netip.ParsePrefix(value)
		case "FLANNEL_SUBNET":
			e.Gateway, err = netip.ParsePrefix(value)
		case "FLANNEL_MTU":
			e.MTU, err = strconv.Atoi(value)
		case "FLANNEL_IPMASQ":
			e.IPMasq, err = strconv.ParseBool(value)
		}
		if err != nil {
			n.cluster.Fatalf("%s: %s: %v", n.SubnetFile(), lines.Text(), err)
		}
	}
	return e
}

// AddContainer adds a container behind a docker0 as the subnet file asks for.
func (n *Node) AddContainer(name string) *lab.Container {
	n.cluster.Helper()
	e := n.Env()
	return n.Host.Container(name, e.Gateway, e.MTU)
}

// VtepMAC is the MAC that the node's lease names.
func (n *Node) VtepMAC() string {
	n.cluster.Helper()
	for _, l := range n.cluster.Leases() {
		var v struct {
			PublicIP    string
			BackendData struct{ VtepMAC string }
		}
		if json.Unmarshal([]byte(l.Value), &v) == nil && v.PublicIP == n.Addr().String() {
			return v.BackendData.VtepMAC
		}
	}
	n.cluster.Fatalf("%s has no lease", n.Name)
	return ""
}

// Routes, Neighbours and FDB are what the kernel has, in the words of ip(8) and
// bridge(8): a line an entry, sorted, without blanks at the ends. Routes says
// nothing of whether a route is made through a next-hop object.
func (n *Node) Routes() string {
	n.cluster.Helper()
	return WithoutNextHopIDs(sorted(n.Run("ip", "-4", "route")))
}

var nextHopID = regexp.MustCompile(`\bnhid \d+ `)

// WithoutNextHopIDs makes routes that were made through next-hop objects read
// like those that were not.
func WithoutNextHopIDs(routes string) string { return nextHopID.ReplaceAllString(routes, "") }

// NextHops are the next-hop objects there are, whoever has made them.
func (n *Node) NextHops() string {
	n.cluster.Helper()
	return sorted(n.Run("ip", "nexthop", "show"))
}

// Neighbours are the permanent ones, of any device.
func (n *Node) Neighbours() string {
	n.cluster.Helper()
	return sorted(n.Run("ip", "-4", "neigh", "show", "nud", "permanent"))
}

// FDB is that of one device.
func (n *Node) FDB(dev string) string {
	n.cluster.Helper()
	return sorted(n.Run("bridge", "fdb", "show", "dev", dev))
}

func sorted(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// String is the node's name and address, for messages.
func (n *Node) String() string { return fmt.Sprintf("%s (%v)", n.Name, n.Addr()) }
