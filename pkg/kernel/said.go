package kernel

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/klog/v2"
)

// Up to failuresNamed failures that are new in one comparison are each logged. Of
// more, as where thousands of routes are in the way, it is failuresOfMany and how many
// more there are. Faults are about a lease each, which nothing else names.
const (
	failuresNamed  = 5
	failuresOfMany = 3
)

// say logs what is new in what came of a comparison.
func (r *reconciler[T]) say(c Comparison) {
	now := time.Now()
	for _, text := range r.saidFaults.news(c.Faults, false, now) {
		klog.Warning(text)
	}
	failed := slices.DeleteFunc(slices.Clone(c.Failed), func(err error) bool {
		return errors.Is(err, errAbsent) // who makes the device says why it is not there
	})
	// While the tables cannot be read nothing is known of all else.
	news := r.saidFailed.news(failed, r.unread, now)
	named := news
	if len(news) > failuresNamed && !klog.V(2).Enabled() {
		named = news[:failuresOfMany]
	}
	for _, text := range named {
		klog.Errorf("%s; trying again", text)
	}
	if more := len(news) - len(named); more > 0 {
		klog.Errorf("And %d more like these (-v=2 lists them); trying again", more)
	}
}

// said remembers what was said of errors. A text is said when it appears, and not
// again as long as it is there. One that comes and goes all the time, as with a
// link that flaps, is said saidBurst times and then once a minute.
type said struct {
	there  map[string]bool
	limits map[string]*rate.Limiter // of the texts there, and for some time after
}

const saidBurst = 3

// news returns the texts that are to be said now, of the errors that there are.
// With partial there are those of before as well.
func (s *said) news(errs []error, partial bool, now time.Time) (texts []string) {
	before := s.there
	if s.limits == nil {
		s.limits = map[string]*rate.Limiter{}
	}
	if !partial || before == nil {
		s.there = map[string]bool{}
	}
	for _, err := range errs {
		text := sentence(err.Error())
		if before[text] || s.there[text] {
			s.there[text] = true
			continue
		}
		if s.limits[text] == nil {
			s.limits[text] = rate.NewLimiter(rate.Every(time.Minute), saidBurst)
		}
		// One that is held back is said as soon as it may be, if it is there then.
		if s.limits[text].AllowN(now, 1) {
			s.there[text] = true
			texts = append(texts, text)
		}
	}
	for text, limit := range s.limits {
		if !s.there[text] && limit.TokensAt(now) >= saidBurst {
			delete(s.limits, text)
		}
	}
	return texts
}
