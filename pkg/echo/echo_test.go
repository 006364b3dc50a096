package echo

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Those who answer and those who do not, each by its place, by both kinds of
// sockets.
func TestAsk(t *testing.T) {
	l := lab.ForTest(t)
	s := l.Segment("lan", netip.MustParsePrefix("192.0.2.0/24"))
	h1, h2 := l.Host("h1", s), l.Host("h2", s)
	h1.Run("ip", "route", "add", "unreachable", "203.0.113.0/24")
	dead := netip.MustParseAddr("192.0.2.99")
	hosts := []netip.Addr{dead, h2.Addr(), h1.Addr(), netip.MustParseAddr("203.0.113.7"), h2.Addr()}
	h1.Sysctl("net.ipv4.ping_group_range", "0 2147483647")
	for _, kind := range []string{raw, echoes} {
		t.Run(kind, func(t *testing.T) {
			var answers []Answer
			began := time.Now()
			err := h1.Do(func() (err error) {
				// The socket is opened on this thread, and so on this host.
				answers, err = ask(t.Context(), hosts, kind)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for i, answer := range answers {
				want := i == 1 || i == 2 || i == 4
				if (answer.Err == nil) != want || want && (answer.Took <= 0 || answer.Took > time.Since(began)) {
					t.Errorf("%v: %+v", hosts[i], answer)
				}
			}
			if !strings.Contains(answers[3].Err.Error(), "no route to host") {
				t.Errorf("without a route: %v", answers[3].Err)
			}
		})
	}
}

// Where all answer nothing is waited for, and 3,000 questions do not get in each
// other's way.
func TestAskMany(t *testing.T) {
	l := lab.ForTest(t)
	h := l.Host("h1", l.Segment("lan", netip.MustParsePrefix("192.0.2.0/24")))
	h.Run("ip", "route", "add", "local", "10.1.0.0/16", "dev", "lo")
	var hosts []netip.Addr
	for a := netip.MustParseAddr("10.1.0.0"); len(hosts) < 3000; a = a.Next() {
		hosts = append(hosts, a)
	}
	var answers []Answer
	if err := h.Do(func() (err error) {
		answers, err = Ask(t.Context(), hosts)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for i, a := range answers {
		if a.Err != nil {
			t.Fatalf("%v: %v", hosts[i], a.Err)
		}
	}
}

func TestAskNobody(t *testing.T) {
	if answers, err := Ask(t.Context(), nil); len(answers) > 0 || err != nil {
		t.Errorf("%v, %v", answers, err)
	}
}

func TestAskEnds(t *testing.T) {
	l := lab.ForTest(t)
	h := l.Host("h1", l.Segment("lan", netip.MustParsePrefix("192.0.2.0/24")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := h.Do(func() error {
		_, err := Ask(ctx, []netip.Addr{netip.MustParseAddr("192.0.2.99")})
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
