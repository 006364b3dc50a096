package kernel

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
)

// A text is said when it appears and not while it lasts, and one that comes and goes
// all the time three times and then once a minute.
func TestSaid(t *testing.T) {
	var s said
	now := time.Now()
	errs := func(texts string) (errs []error) {
		for _, text := range strings.Fields(texts) {
			errs = append(errs, errors.New(text))
		}
		return errs
	}
	for i, step := range []struct {
		after   time.Duration
		there   string
		partial bool
		want    string
	}{
		{0, "", true, ""},
		{0, "a", false, "A"},
		{time.Second, "a b b", false, "B"},
		{time.Hour, "a b", false, ""},
		{time.Second, "c", true, "C"}, // a and b may be there as well
		{time.Second, "a b", false, ""},
		{time.Second, "", false, ""},
		{time.Second, "b c", false, "B C"},
		{time.Second, "", false, ""},
		{time.Second, "b", false, "B"}, // the third time within a minute, but for the hour
		{time.Second, "", false, ""},
		{time.Second, "b", false, "B"},
		{time.Second, "", false, ""},
		{time.Second, "b", false, ""}, // held back, and said
		{time.Second, "b", false, ""},
		{time.Minute, "b", false, "B"}, // when it is still there after a minute
		{time.Second, "b", false, ""},
	} {
		now = now.Add(step.after)
		if got := strings.Join(s.news(errs(step.there), step.partial, now), " "); got != step.want {
			t.Fatalf("step %d, %q: it says %q, want %q", i, step.there, got, step.want)
		}
	}
	said := 0
	for i := range 600 { // ten minutes of a link that goes every two seconds
		now = now.Add(time.Second)
		said += len(s.news(errs([]string{"link", ""}[i/2%2]), false, now))
	}
	if want := saidBurst + 9; said != want {
		t.Errorf("in ten minutes of coming and going it is said %d times, want %d", said, want)
	}
	// What has not been there for some minutes is forgotten.
	if s.news(nil, false, now.Add(4*time.Minute)); len(s.there)+len(s.limits) > 0 {
		t.Errorf("of nothing there it remembers %v and %d texts", s.there, len(s.limits))
	}
}

// Of many failures that are new at once some are named, and with -v=2 all; what a
// daemon's plan leaves out is always named.
func TestSay(t *testing.T) {
	failures := func(from, to int) (errs []error) {
		for n := from; n <= to; n++ {
			errs = append(errs, fmt.Errorf("failure %d", n))
		}
		return errs
	}
	for _, tc := range []struct {
		name          string
		verbosity     string
		before, after Comparison
		want          []string
	}{
		{"a few", "0", Comparison{}, Comparison{Failed: failures(1, 5)},
			[]string{"E Failure 1; trying again", "E Failure 2; trying again", "E Failure 3; trying again", "E Failure 4; trying again", "E Failure 5; trying again"}},
		{"many", "0", Comparison{}, Comparison{Failed: failures(1, 3000)},
			[]string{"E Failure 1; trying again", "E Failure 2; trying again", "E Failure 3; trying again", "E And 2997 more like these (-v=2 lists them); trying again"}},
		{"many with -v=2", "2", Comparison{}, Comparison{Failed: failures(1, 6)},
			[]string{"E Failure 1; trying again", "E Failure 2; trying again", "E Failure 3; trying again", "E Failure 4; trying again", "E Failure 5; trying again", "E Failure 6; trying again"}},
		{"one more than many", "0", Comparison{Failed: failures(1, 10)}, Comparison{Failed: failures(1, 11)},
			[]string{"E Failure 11; trying again"}},
		{"many faults", "0", Comparison{}, Comparison{Faults: failures(1, 6)},
			[]string{"W Failure 1", "W Failure 2", "W Failure 3", "W Failure 4", "W Failure 5", "W Failure 6"}},
		{"a device that another makes", "0", Comparison{}, Comparison{Failed: []error{fmt.Errorf("the device flannel0 is %w", errAbsent)}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r reconciler[int]
			r.say(tc.before)
			if got := logged(t, tc.verbosity, func() { r.say(tc.after) }); !slices.Equal(got, tc.want) {
				t.Errorf("it says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

// logged are the lines that f logs: their severity and text.
func logged(t *testing.T, verbosity string, f func()) (lines []string) {
	t.Helper()
	defer klog.CaptureState().Restore()
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for _, set := range [][2]string{{"logtostderr", "false"}, {"alsologtostderr", "false"}, {"stderrthreshold", "FATAL"}, {"one_output", "true"}, {"v", verbosity}} {
		if err := flags.Set(set[0], set[1]); err != nil {
			t.Fatal(err)
		}
	}
	var text bytes.Buffer
	klog.SetOutput(&text)
	f()
	klog.Flush()
	for line := range strings.Lines(text.String()) {
		_, said, _ := strings.Cut(strings.TrimSpace(line), "] ")
		lines = append(lines, line[:1]+" "+said)
	}
	return lines
}
