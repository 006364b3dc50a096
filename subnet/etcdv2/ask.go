package etcdv2

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"flanneld/subnet"
)

// Members implements subnet.Store. It asks who the leader is, which a member that
// is cut off from the others does not know. An answer that is none of etcd's, as
// of a gateway that lets only the keys through, is one all the same.
func (s *Store) Members(ctx context.Context) []subnet.Member {
	all := make([]subnet.Member, len(s.roots))
	var wg sync.WaitGroup
	for i, root := range s.roots {
		wg.Go(func() {
			began := time.Now()
			ahead, err := s.members.leader(ctx, root, s.authorize)
			all[i] = subnet.Member{Endpoint: root, Took: time.Since(began), Err: err, Ahead: ahead}
			if last := s.members.latest.Load(); last != nil {
				all[i].InUse = last.root == root
			}
		})
	}
	wg.Wait()
	return all
}

// leader asks a member who the leader is, and returns by how much the member's clock
// is ahead, or why there is no answer. What is known of the members for the daemon's
// own requests is not touched.
func (m *members) leader(ctx context.Context, root string, authorize func(*http.Request)) (ahead time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, root+"/v2/members/leader", nil)
	if err != nil {
		return 0, err
	}
	authorize(req)
	began := time.Now()
	resp, err := m.http.RoundTrip(req)
	switch {
	case err != nil && ctx.Err() != nil:
		return 0, fmt.Errorf("no answer within %v", time.Since(began).Round(100*time.Millisecond))
	case err != nil:
		// The endpoint is named beside it.
		return 0, fmt.Errorf("%s", strings.TrimPrefix(m.files.failure(root, err, !m.passed.met(root)).Error(), root+": "))
	}
	defer resp.Body.Close()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		ahead = time.Until(date).Round(time.Second)
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode >= http.StatusInternalServerError {
		return ahead, fmt.Errorf("it answers %s%s", resp.Status, reason(text))
	}
	return ahead, nil
}
