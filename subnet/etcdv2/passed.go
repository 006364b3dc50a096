package etcdv2

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"k8s.io/klog/v2"
)

// passed says in the log which members fail while others answer, each cause once
// until it has answered again. That none answers is said by who asked.
//
// A member that has answered before and now cannot be reached is none of these:
// members are stopped and started, and etcd's own watch tells of it.
type passed struct {
	mu     sync.Mutex
	known  map[string]bool // members that have answered
	failed map[string]*failing
}

// failing is a member that fails. Many a cause comes and goes with the member, so
// another one is said only if it is to be put right.
type failing struct {
	cause *memberError
	said  []string // causes, that among them once it is said
}

// met reports whether a member has answered before.
func (p *passed) met(root string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[root]
}

// fails notes that a member did.
func (p *passed) fails(err error) {
	var e *memberError
	if !errors.As(err, &e) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[e.root] && !e.ours {
		return
	}
	f := p.failed[e.root]
	switch {
	case f == nil:
		if p.failed == nil {
			p.failed = map[string]*failing{}
		}
		p.failed[e.root] = &failing{cause: e}
	case e.ours && !slices.Contains(f.said, e.cause()):
		f.cause = e
	}
}

// answers notes that a member did.
func (p *passed) answers(root string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[string]bool{}
	}
	p.known[root] = true
	delete(p.failed, root)
	var all []error
	say := klog.Infof // one that is down may be so on purpose
	for _, f := range p.failed {
		if slices.Contains(f.said, f.cause.cause()) {
			continue
		}
		all = append(all, f.cause)
		f.said = append(f.said, f.cause.cause())
		if f.cause.ours {
			say = klog.Warningf
		}
	}
	if len(all) > 0 {
		slices.SortFunc(all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		say("Going on without some of the etcd endpoints: %s", together(all))
	}
}

// together lists errors of members, those with the same text in one.
func together(all []error) string {
	var texts []string
	roots := map[string][]string{}
	for _, err := range all {
		text, root := err.Error(), ""
		var e *memberError
		if errors.As(err, &e) {
			text, root = e.said, e.root
		}
		if _, there := roots[text]; !there {
			texts = append(texts, text)
		}
		if !slices.Contains(roots[text], root) {
			roots[text] = append(roots[text], root)
		}
	}
	for i, text := range texts {
		if r := roots[text]; r[0] != "" {
			slices.Sort(r)
			texts[i] = strings.Join(r, ", ") + ": " + text
		}
	}
	return strings.Join(texts, "; ")
}
