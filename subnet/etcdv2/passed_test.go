package etcdv2

import (
	"bytes"
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// What is to be put right at a member is said also after it was said that it is
// away, each cause once; and a member that comes and goes fills no log.
func TestPassedCauses(t *testing.T) {
	const away, expired, mine = "connecting to it: connection refused", "its certificate has expired", "it refuses the client certificate"
	const early = "its certificate is valid only from 2031-01-01T00:00:00Z on; see to the clock of this host, where it is "
	for _, test := range []struct {
		name   string
		causes []string
		want   []string
	}{
		{"down and up", []string{away, away, "", away}, []string{away}}, // known from then on
		{"down, then to be put right", []string{away, expired, expired}, []string{away, expired}},
		{"to be put right, then down", []string{expired, away, expired, away}, []string{expired}},
		{"one after the other", []string{expired, mine, away, expired, mine}, []string{expired, mine}},
		{"put right and wrong again", []string{expired, "", expired}, []string{expired, expired}},
		{"as time goes by", []string{early + "2026-01-01T00:00:01Z", early + "2026-01-01T00:00:02Z"}, []string{early + "2026-01-01T00:00:01Z"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			said := logged(t, func() {
				var p passed
				for _, cause := range test.causes {
					if cause == "" {
						p.answers("one")
						continue
					}
					p.fails(&memberError{root: "one", said: cause, ours: cause != away, err: errors.New(cause)})
					p.answers("another")
				}
			})
			var want []string
			for _, cause := range test.want {
				want = append(want, "Going on without some of the etcd endpoints: one: "+cause)
			}
			if !slices.Equal(said, want) {
				t.Errorf("it says\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
			}
		})
	}

	// What is to be put right comes before what may pass, if there was nobody to say it.
	said := logged(t, func() {
		var p passed
		p.fails(&memberError{root: "one", said: away})
		p.fails(&memberError{root: "one", said: expired, ours: true})
		p.fails(&memberError{root: "one", said: away})
		p.answers("another")
	})
	if len(said) != 1 || !strings.HasSuffix(said[0], expired) {
		t.Errorf("of two causes it says %q", said)
	}
}

// logged are the lines that f logs.
func logged(t *testing.T, f func()) []string {
	t.Helper()
	defer klog.CaptureState().Restore()
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for _, set := range [][2]string{{"logtostderr", "false"}, {"alsologtostderr", "false"}, {"stderrthreshold", "FATAL"}, {"skip_headers", "true"}, {"one_output", "true"}} {
		if err := flags.Set(set[0], set[1]); err != nil {
			t.Fatal(err)
		}
	}
	var text bytes.Buffer
	klog.SetOutput(&text)
	f()
	klog.Flush()
	if text.Len() == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
}
