package status

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flanneld/network/local"
	"flanneld/pkg/extif"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a text with that of a file below testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", file, diff)
	}
}

// goodReport is that of a host with some peers that nothing is wrong with.
func goodReport(peers int) Report {
	left, silent := 23*3600+25*60+0.5, 0
	r := Report{
		Well:   true,
		Daemon: &Daemon{Version: "v1.2.3", PID: 4711, Started: time.Now().Add(-75*time.Hour - time.Minute), Ready: true},
		Lease:  &Lease{Subnet: netip.MustParsePrefix("10.1.74.0/24"), RemainingSeconds: &left},
		Config: &Config{netip.MustParsePrefix("10.1.0.0/16"), 24, netip.MustParseAddr("10.1.1.0"), netip.MustParseAddr("10.1.255.0")},

		Backend: "vxlan", Device: &Device{Name: "flannel.1", MTU: 1450, Addr: netip.MustParseAddr("10.1.74.0")},
		Interface: Interface{"eth0", netip.MustParseAddr("172.16.16.81"), 1500}, PublicIP: netip.MustParseAddr("172.16.16.81"),
		Etcd: Etcd{"/coreos.com/network", []Member{
			{Endpoint: "http://10.0.0.1:2379", Answers: true, Seconds: 0.00123},
			{Endpoint: "http://10.0.0.2:2379", Answers: true, Seconds: 0.00045, InUse: true},
		}},
		Summary: Summary{Peers: peers, Silent: &silent},
	}
	for i := range peers {
		a, ip := netip.AddrFrom4([4]byte{10, byte(1 + i/250), byte(i % 250), 0}), netip.AddrFrom4([4]byte{172, 16, byte(16 + i/250), byte(i % 250)})
		p := Peer{
			Subnet: netip.PrefixFrom(a, 24), PublicIP: ip, Reached: "vxlan", Route: right, Neighbour: right, FDB: right,
			Probe: &Probe{Addr: a, Answers: true, Seconds: 0.00021},
		}
		if i%2 == 1 {
			p.Reached, p.Neighbour, p.FDB = "direct", none, none
		}
		r.Peers = append(r.Peers, p)
	}
	return r
}

func text(how Text, r Report) string {
	var b strings.Builder
	how.Write(&b, r) // a Builder takes all
	return b.String()
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// What cannot be written is an error, and what others have written into etcd does
// nothing to a terminal.
func TestWriteWhere(t *testing.T) {
	if err := (Text{}).Write(full{}, goodReport(1)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	if err := (Text{}).WriteLeases(full{}, Network{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	r := goodReport(1)
	r.Problems = []string{"it is \x1b[31mred\nproblem: forged"}
	if got := text(Text{}, r); !strings.Contains(got, `problem: "it is \x1b[31mred\nproblem: forged"`) {
		t.Errorf("%s", got)
	}
}

func TestWriteWell(t *testing.T) {
	golden(t, "well.txt", text(Text{}, goodReport(3)))
	golden(t, "nobody.txt", text(Text{}, goodReport(0)))
	notAsked := goodReport(2)
	notAsked.Summary.Silent = nil
	for i := range notAsked.Peers {
		notAsked.Peers[i].Probe = nil
	}
	notAsked.Lease.Reserved, notAsked.Lease.RemainingSeconds = true, nil
	notAsked.PublicIP = netip.MustParseAddr("203.0.113.7")
	notAsked.Notes = []string{"config: the network config in the store was changed"}
	golden(t, "notasked.txt", text(Text{}, notAsked))

	notReached := goodReport(2)
	notReached.Peers[1].Reached, notReached.Peers[1].Probe = "", nil
	if got := text(Text{}, notReached); strings.Contains(got, "all answer") {
		t.Errorf("not all were asked:\n%s", got)
	}
}

// breakSome has something wrong with a host and three of its peers.
func breakSome(r *Report) {
	silent := 1
	r.Well, r.Summary.Wrong, r.Summary.Silent = false, 2, &silent
	r.Problems = []string{"device flannel.1: its MTU is 1400 and not 1450", "firewall: iptables hangs"}
	r.Etcd.Members[0] = Member{Endpoint: "http://10.0.0.1:2379", Error: "connecting to it: connection refused"}
	missing, left, dead := &r.Peers[0], &r.Peers[1], &r.Peers[2]
	missing.Neighbour, missing.Problems = "missing", []string{"the neighbour 10.1.0.0 lladdr 02:00:00:00:00:01 is missing"}
	left.Reached, left.Route, left.Probe, left.Problems = "", none, nil, []string{"its backend is udp, this host's is vxlan"}
	dead.Probe = &Probe{Addr: dead.Subnet.Addr(), Error: "no answer within 1s"}
}

func TestWriteTrouble(t *testing.T) {
	r := goodReport(4)
	breakSome(&r)
	golden(t, "trouble.txt", text(Text{}, r))
	golden(t, "colour.txt", text(Text{Colour: true}, r))

	golden(t, "notready.txt", text(Text{}, Inspect(Node{
		Daemon:  &Daemon{Version: "v1.2.3", PID: 4711, Problems: []string{"not ready yet: waiting for the network config"}},
		Prefix:  "/coreos.com/network",
		Members: []Member{{Endpoint: "http://10.0.0.1:2379", Answers: true, Seconds: 0.001}},
	})))
	away := []Member{{Endpoint: "http://10.0.0.1:2379", Error: "connecting to it: connection refused"}}
	golden(t, "nodaemon.txt", text(Text{}, Inspect(Node{Missing: local.ErrNone, Prefix: "/coreos.com/network", Members: away,
		Interface: extif.Interface{Name: "eth0", Addr: netip.MustParseAddr("172.16.16.81"), MTU: 1500}})))
	golden(t, "hangs.txt", text(Text{}, Inspect(Node{Missing: fmt.Errorf("the flanneld on this host does not answer"), Members: away})))
}

// Of thousands only those are listed that something is wrong with, unless all are
// asked for.
func TestWriteMany(t *testing.T) {
	r := goodReport(5000)
	if got := strings.Count(text(Text{}, r), "\n"); got > 12 {
		t.Errorf("%d lines about 5,000 peers that are well", got)
	}
	breakSome(&r)
	golden(t, "many.txt", text(Text{}, r))
	for i := range r.Peers {
		r.Peers[i].Problems = []string{"the route is missing"}
	}
	if got := strings.Count(text(Text{}, r), "\n"); got > 60 {
		t.Errorf("%d lines where something is wrong with all of 5,000", got)
	}
	for i := range 3000 {
		r.Problems = append(r.Problems, fmt.Sprintf("surplus %d", i))
	}
	if got := text(Text{}, r); strings.Count(got, "\n") > 90 || !strings.Contains(got, "problem: there are 2982 more (--all lists them all)") {
		t.Errorf("%d lines where there are thousands of problems", strings.Count(got, "\n"))
	}
	if got := strings.Count(text(Text{All: true}, r), "\n10."); got != 5000 {
		t.Errorf("--all lists %d of 5,000 peers", got)
	}
}

func TestWriteLeases(t *testing.T) {
	left := 3601.0
	n := Network{
		Prefix: "/coreos.com/network", Config: goodReport(0).Config, Subnets: 255, Leased: 2, Free: 253,
		Leases: []Entry{
			{Subnet: netip.MustParsePrefix("10.1.7.0/24"), PublicIP: netip.MustParseAddr("172.16.16.7"), Backend: "vxlan", RemainingSeconds: &left},
			{Subnet: netip.MustParsePrefix("10.1.74.0/24"), PublicIP: netip.MustParseAddr("172.16.16.81"), Backend: "vxlan", Reserved: true},
			{Subnet: netip.MustParsePrefix("10.2.9.0/24"), PublicIP: netip.MustParseAddr("172.16.16.9"), Backend: "host-gw", RemainingSeconds: &left, Outside: true},
		},
		Unreadable: []Unreadable{{"10.1.8.0-24", "the value is not the expected JSON"}},
	}
	var b strings.Builder
	Text{}.WriteLeases(&b, n)
	golden(t, "leases.txt", b.String())
	b.Reset()
	Text{}.WriteLeases(&b, Network{Prefix: "/coreos.com/network", ConfigError: "/coreos.com/network/config is not in the store"})
	golden(t, "noconfig.txt", b.String())
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 24 * time.Hour: "24h0m", 50 * time.Hour: "2d2h", -90 * time.Minute: "-1h30m",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
