package etcdv2_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
	"flanneld/pkg/prefix"
	"flanneld/subnet"
	"flanneld/subnet/etcdv2"
)

// The herd is a thousand hosts that start in the same moment, as after a power
// cut. They are goroutines of one process on a host of the lab: the program of
// these tests, which TestMain makes the herd when herdVar says how many hosts it
// has. Its arguments are etcd's endpoint and the prefix.
const (
	herdVar  = "HERD_OF_HOSTS"
	herdSize = 1000

	// herdFiles is how many files the herd has open, and etcd: a connection for
	// each host, and what a process has open anyway.
	herdFiles = herdSize + 100

	// herdTime is how long a herd may take. It needs a few seconds on two idle
	// cores; the rest is for busy ones.
	herdTime = 3 * time.Minute

	leased = "Leased: " // begins the herd's line about a host that has got a subnet
)

// buildHerd is a lab.Need: the program of these tests, without the race detector,
// which would make a thousand hosts on one machine so slow that etcd's answers
// come too late.
func buildHerd(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(dir, "herd"), ".").CombinedOutput()
	if err != nil {
		return fmt.Errorf("building the herd: %w\n%s", err, out)
	}
	return nil
}

// herdAddr is the address of the nth host of the herd, at which nobody asks.
func herdAddr(n int) netip.Addr {
	return prefix.FromUint(prefix.Uint(netip.MustParseAddr("172.31.0.1")) + uint32(n))
}

// herd is all that the herd's process does.
func herd(size, endpoint, prefix string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return fmt.Errorf("reading %s: %w", herdVar, err)
	}
	var g errgroup.Group
	start := make(chan struct{})
	var begin time.Time
	for i := range n {
		g.Go(func() error {
			own := herdAddr(i)
			<-start
			lease, err := join(endpoint, prefix, own)
			if err != nil {
				return fmt.Errorf("%v: %w", own, err)
			}
			_, err = fmt.Printf("%s%v %v %v\n", leased, own, lease.Subnet, time.Since(begin))
			return err
		})
	}
	begin = time.Now()
	close(start)
	return g.Wait()
}

// join gets one host a lease as the daemon does it on a host that knows nothing.
func join(endpoint, prefix string, own netip.Addr) (subnet.Lease, error) {
	ctx := context.Background()
	s, err := etcdv2.New(etcdv2.Options{Endpoints: []string{endpoint}, Prefix: prefix})
	if err != nil {
		return subnet.Lease{}, err
	}
	store := subnet.NewPatient(s, own)
	text, _, err := store.Config(ctx)
	if err != nil {
		return subnet.Lease{}, err
	}
	config, err := subnet.ParseConfig(text)
	if err != nil {
		return subnet.Lease{}, err
	}
	attrs := subnet.Attrs{PublicIP: own, BackendType: "vxlan", BackendData: json.RawMessage(`{"VtepMAC":"02:00:ac:1f:00:01"}`)}
	lease, _, err := subnet.Acquire(ctx, store, config, attrs, subnet.Remembered{})
	return lease, err
}

// scene is an etcd with a network config and a herd that has just been started.
type scene struct {
	*cluster.Cluster
	*lab.Process
	t      *testing.T
	config subnet.Config
	host   *lab.Host
	before float64 // requests that etcd had received
}

func loose(t *testing.T, text string) *scene {
	t.Helper()
	config, err := subnet.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	// Go's programs raise their limit to the highest that they may have.
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	} else if files.Max < herdFiles {
		t.Fatalf("a process may have %d files open, and this test needs %d: raise the limit (ulimit -Hn)", files.Max, herdFiles)
	}
	l := lab.ForTest(t)
	seg := l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
	c := cluster.New(l, seg)
	c.SetConfig(text)
	s := &scene{Cluster: c, t: t, config: config, host: l.Host("herd", seg)}
	s.before = s.received()
	s.Process = s.host.StartProgram(lab.Program{
		Name: "herd", Env: []string{fmt.Sprintf("%s=%d", herdVar, herdSize)},
		Args: []string{lab.Binary("herd"), c.Etcd.Endpoint(), c.Prefix},
	})
	return s
}

// got is who has got which subnet by now, as the hosts say themselves, and how
// long the last of them took.
func (s *scene) got() (subnets map[netip.Addr]netip.Prefix, last time.Duration) {
	s.t.Helper()
	subnets = map[netip.Addr]netip.Prefix{}
	for line := range strings.Lines(s.Log()) {
		rest, ok := strings.CutPrefix(line, leased)
		if !ok || !strings.HasSuffix(rest, "\n") {
			continue // of the log, or not written to its end yet
		}
		f := strings.Fields(rest)
		took, err := time.ParseDuration(f[2])
		if err != nil {
			s.t.Fatal(err)
		}
		subnets[netip.MustParseAddr(f[0])], last = netip.MustParsePrefix(f[1]), max(last, took)
	}
	return subnets, last
}

// received is how many requests to the v2 API etcd has counted, by whomever.
func (s *scene) received() (n float64) {
	s.t.Helper()
	resp, err := s.host.HTTP().Get(s.Etcd.Endpoint() + "/metrics")
	s.Must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	s.Must(err)
	all := regexp.MustCompile(`(?m)^etcd_http_received_total\{.*\} (\S+)$`).FindAllSubmatch(text, -1)
	if all == nil {
		s.t.Fatal("etcd does not say how many requests it has received")
	}
	for _, m := range all {
		one, err := strconv.ParseFloat(string(m[1]), 64)
		s.Must(err)
		n += one
	}
	return n
}

// report says what the herd has cost up to now. It returns the mean number of
// requests a host.
func (s *scene) report() float64 {
	s.t.Helper()
	mean := (s.received() - s.before) / herdSize
	subnets, last := s.got()
	waits := regexp.MustCompile(`Waiting for the store: .*`).FindAllString(s.Log(), -1)
	s.t.Logf("%d of %d hosts have a subnet, the last after %v; %.2f requests a host; etcd was away for %d of them: %q",
		len(subnets), herdSize, last.Round(time.Millisecond), mean, len(waits), waits[:min(len(waits), 3)])
	return mean
}

// check compares what so many hosts say with what is in etcd; without are those
// among them whose leases have been removed. Subnets that fit one config and have
// different keys do not overlap.
func (s *scene) check(hosts int, without ...netip.Addr) {
	s.t.Helper()
	subnets, _ := s.got()
	if len(subnets) != hosts {
		s.t.Errorf("%d hosts have got a subnet instead of %d", len(subnets), hosts)
	}
	all := s.Leases()
	for ip, p := range subnets {
		key := subnet.FormatKey(p)
		l, ok := all[key]
		if slices.Contains(without, ip) {
			continue
		}
		delete(all, key)
		switch {
		case !ok:
			s.t.Errorf("%v has got %v, which is not in etcd or another host's too", ip, p)
		case !strings.Contains(l.Value, fmt.Sprintf(`"PublicIP":"%v"`, ip)):
			s.t.Errorf("%v has got %v, which in etcd is %s", ip, p, l.Value)
		case !s.config.Fits(p):
			s.t.Errorf("%v has got %v, which is none of the network's subnets (%v)", ip, p, s.config)
		}
	}
	for key, l := range all {
		s.t.Errorf("%s is leased to a host that does not use it: %s", key, l.Value)
	}
}

// ended waits for the herd's end, when all hosts have a subnet.
func (s *scene) ended() {
	s.t.Helper()
	status, err := s.Wait(herdTime)
	s.Must(err)
	if status != 0 {
		s.t.Errorf("the herd ended with status %d", status)
	}
}

// A thousand hosts that start in the same moment all get a subnet, each another
// one, in a handful of requests: in a large network, and in one that is nearly
// full in the end.
func TestHerd(t *testing.T) {
	for name, test := range map[string]struct {
		config string
		most   float64 // requests a host on average, the one for the config included
	}{
		"large network": {`{"Network": "10.0.0.0/8"}`, 4},
		"1050 subnets":  {`{"Network": "10.0.0.0/8", "SubnetMin": "10.1.0.0", "SubnetMax": "10.5.25.0"}`, 12},
	} {
		t.Run(name, func(t *testing.T) {
			s := loose(t, test.config)
			s.ended()
			if mean := s.report(); mean > test.most {
				t.Errorf("etcd got %.2f requests a host, more than %v", mean, test.most)
			}
			s.check(herdSize)
		})
	}
}

// In a network with five subnets too few, five hosts say how many there are and
// wait; each gets one of those that become free.
func TestHerdTooLarge(t *testing.T) {
	const subnets = 995
	s := loose(t, `{"Network": "10.0.0.0/8", "SubnetMin": "10.1.0.0", "SubnetMax": "10.4.226.0"}`)
	lab.Eventually(t, herdTime, "each host has a subnet or says that there is none", func() error {
		log := s.Log()
		got := strings.Count(log, leased)
		said := strings.Count(log, fmt.Sprintf("] No subnet for this host yet: all %d subnets ", subnets))
		if got+said != herdSize {
			return fmt.Errorf("%d hosts have a subnet, %d say that there is none", got, said)
		}
		return nil
	})
	s.report()
	if s.check(subnets); t.Failed() {
		t.FailNow()
	}
	first, _ := s.got()
	var without []netip.Addr
	free := map[netip.Prefix]bool{}
	for ip, p := range first {
		if len(free) < herdSize-subnets {
			s.DeleteLease(subnet.FormatKey(p))
			without, free[p] = append(without, ip), true
		}
	}
	s.ended()
	s.report()
	s.check(herdSize, without...)
	all, _ := s.got()
	for ip, p := range all {
		if _, before := first[ip]; !before && !free[p] {
			t.Errorf("%v has got %v, which was not free", ip, p)
		}
	}
}
