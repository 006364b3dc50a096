package etcdv2

import (
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// slowAnswer is what an operator wants to know of. etcd answers in
	// milliseconds where its disk and network are sound.
	slowAnswer = time.Second
	// sayAgain is how often a member that stays slow is mentioned in the log.
	sayAgain = time.Minute
)

// pace says in the log when a member takes long to answer, and when it no longer
// does.
type pace struct {
	mu   sync.Mutex
	said map[string]time.Time // when it was last said of those that are slow
}

// note takes how long a member took for an answer.
func (p *pace) note(member string, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, slow := p.said[member]
	switch {
	case took >= slowAnswer && (!slow || time.Since(last) >= sayAgain):
		if p.said == nil {
			p.said = map[string]time.Time{}
		}
		p.said[member] = time.Now()
		klog.Warningf("etcd at %s answers slowly: it took %v", member, took.Round(100*time.Millisecond))
	case took < slowAnswer/2 && slow:
		delete(p.said, member)
		klog.Infof("etcd at %s answers in time again", member)
	}
}

// slow reports whether a member was slow when it was last noted.
func (p *pace) slow(member string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, slow := p.said[member]
	return slow
}
