package main

import (
	"strings"
	"testing"

	"flanneld/pkg/lab"
)

// What iperf3 3.12 prints, without what is not read.
const (
	iperfTCP = `{
	"start":	{
		"version":	"iperf 3.12"
	},
	"intervals":	[{
			"streams":	[{"bytes":	1445724160, "omitted":	true}, {"bytes":	1445724160, "omitted":	true}],
			"sum":	{
				"seconds":	1.0006320476531982,
				"bytes":	2891448320,
				"omitted":	true,
				"sender":	true
			}
		}, {
			"streams":	[{"bytes":	1483735040}, {"bytes":	1482424320}],
			"sum":	{
				"seconds":	0.999974012374878,
				"bytes":	2966159360,
				"omitted":	false,
				"sender":	true
			}
		}],
	"end":	{
		"sum_sent":	{
			"seconds":	0.999923,
			"bytes":	2966159360,
			"bits_per_second":	23731102174.867466
		},
		"sum_received":	{
			"start":	0,
			"end":	1.000648,
			"seconds":	1.000648,
			"bytes":	2968518656,
			"bits_per_second":	23732770412.772522,
			"sender":	true
		}
	}
}
`
	iperfUDP = `warning: UDP block size 1400 exceeds TCP MSS 1398, may result in fragmentation / drops
{
	"intervals":	[{
			"sum":	{
				"bytes":	246526000,
				"packets":	176090,
				"omitted":	false,
				"sender":	true
			}
		}],
	"end":	{
		"sum":	{
			"seconds":	1.000021,
			"bytes":	246526000,
			"lost_packets":	3452,
			"packets":	176090
		},
		"sum_received":	{
			"seconds":	1.000021,
			"bytes":	241693200,
			"lost_packets":	3452,
			"packets":	176088,
			"sender":	false
		}
	}
}
`
	iperfRefused = `{
	"start":	{
		"connected":	[],
		"version":	"iperf 3.12"
	},
	"intervals":	[],
	"end":	{
	},
	"error":	"unable to connect to server: Connection refused"
}
`
	iperfNothing = `{
	"intervals":	[{"sum":	{"bytes":	246526000}}],
	"end":	{
		"sum":	{"seconds":	1.000021, "bytes":	246526000}
	}
}
`
)

func TestParseIperf(t *testing.T) {
	for _, test := range []struct {
		text string
		want carried
		err  string // part of it
	}{
		{iperfTCP, carried{bytes: 2968518656, seconds: 1.000648, sent: 2891448320 + 2966159360}, ""},
		{iperfUDP, carried{bytes: 241693200, seconds: 1.000021, sent: 246526000}, ""},
		{iperfRefused, carried{}, "Connection refused"},
		{iperfNothing, carried{}, "newer"},
		{"iperf3: error - unrecognized option", carried{}, "unrecognized option"},
	} {
		got, err := parseIperf(test.text)
		if test.err == "" && (err != nil || got != test.want) {
			t.Errorf("%+v, %v instead of %+v in\n%s", got, err, test.want, test.text)
		} else if test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%v instead of an error with %q in\n%s", err, test.err, test.text)
		}
	}
}

func TestParsePing(t *testing.T) {
	const all = `PING 10.85.21.2 (10.85.21.2) 56(84) bytes of data.

--- 10.85.21.2 ping statistics ---
200 packets transmitted, 200 received, 0% packet loss, time 2109ms
rtt min/avg/max/mdev = 0.031/0.074/0.415/0.044 ms
`
	if got, err := parsePing(all); err != nil || got != 0.074 {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{
		strings.Replace(all, "200 received, 0% packet loss", "199 received, 0.5% packet loss", 1),
		strings.Replace(all, "rtt", "round-trip", 1),
	} {
		if got, err := parsePing(text); err == nil {
			t.Errorf("%v without an error of\n%s", got, text)
		}
	}
}

func TestComparison(t *testing.T) {
	c := comparison{
		what: "pigeons", format: decimals(1), bound: atLeast(0.9, 1.1),
		// The ratios are 0.5, 1 and 0.8, not that of the medians.
		figures: map[string][]float64{udp: {2, 3, 4}, vxlan.name: {4, 3, 5}, bare: {7, 9, 8}},
	}
	const want = "pigeons|3.0|4.0|-|8.0|0.80 x|>= 0.90 x (aim 1.1)|under"
	if got := strings.Join(c.cells(), "|"); got != want {
		t.Errorf("%s instead of %s", got, want)
	}
	c = comparison{what: "cost", format: decimals(0), figures: map[string][]float64{udp: {21.4}}}
	if got, want := strings.Join(c.cells(), "|"), "cost|21|-|-|-|-|-|"; got != want {
		t.Errorf("%s instead of %s", got, want)
	}
}

func TestBound(t *testing.T) {
	for _, test := range []struct {
		bound   bound
		ratio   float64
		verdict string
	}{
		{atLeast(0.9, 1.1), 0.89, "under"},
		{atLeast(0.9, 1.1), 0.9, "ok"},
		{atLeast(0.9, 1.1), 3, "ok"},
		{atMost(2.5, 1.5), 1, "ok"},
		{atMost(2.5, 1.5), 2.5, "ok"},
		{atMost(2.5, 1.5), 2.51, "over"},
	} {
		if got := test.bound.verdict(test.ratio); got != test.verdict {
			t.Errorf("%.2f, bound %v: %s instead of %s", test.ratio, test.bound, got, test.verdict)
		}
	}
}

// A layout takes only figures of frames that have crossed as it says.
func TestLayoutFrames(t *testing.T) {
	const gso = 64 << 10
	mean := func(bytes uint64) lab.Frames { return lab.Frames{Count: 1000, Bytes: 1000 * bytes} }
	whole, wire := layouts[0], layouts[1]
	for _, test := range []struct {
		what   string
		layout layout
		path   string
		frames [2]lab.Frames
		wrong  bool
	}{
		{"cut", wire, udp, [2]lab.Frames{mean(1514), mean(1514)}, false},
		{"whole on the sender's wire", wire, udp, [2]lab.Frames{mean(gso), mean(1514)}, true},
		{"whole on the receiver's wire", wire, bare, [2]lab.Frames{mean(1514), mean(gso)}, true},
		{"whole, as it ought to be", whole, bare, [2]lab.Frames{mean(gso), mean(gso)}, false},
		{"cut, though the kernel could do without", whole, bare, [2]lab.Frames{mean(1514), mean(1514)}, true},
		{"cut, as the backend likes it", whole, udp, [2]lab.Frames{mean(1514), mean(1514)}, false},
	} {
		if err := test.layout.bulk(&path{carrier: test.path}, test.frames); (err != nil) != test.wrong {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if err := wire.cut([2]lab.Frames{mean(64 + 28 + 50 + 14), mean(64 + 28 + 28 + 14)}, 64+28+50); err != nil {
		t.Errorf("datagrams each in a frame: %v", err)
	}
	if err := wire.cut([2]lab.Frames{mean(3 * 156), mean(156)}, 64+28+50); err == nil {
		t.Errorf("several datagrams in a frame are no error")
	}
}
