package etcdv2

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"flanneld/subnet"
)

const (
	dialTimeout = 2 * time.Second
	// answerTimeout is for the head of an answer, and for each further part of it.
	// A member that takes longer is passed over for the next. It is doubled each
	// time, and so often, until one answers soon: thousands of hosts that come back at
	// once would else give up what etcd is still working on, and ask for it again.
	answerTimeout = 5 * time.Second
	doublings     = 3
	// checkEvery is how often at least a member is asked, while it has nothing to
	// say to a watch, whether it is still part of its cluster.
	checkEvery = 10 * time.Second
	// elections is how often a member may then say in a row that there is no
	// leader, at a second's distance: an election takes about one (etcd's default).
	elections = 3
)

// keepAlive finds out within six seconds that a connection has fallen silent. By
// then what the other side had to say would have waited for at most as long again
// for its next try, as TCP doubles the wait (RFC 6298 5.5).
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: time.Second, Count: 3}

// members carries requests to the members of etcd, and is for what the client does
// not do by itself: it reads the TLS files anew for each connection, keeps what a
// member says when it fails, bounds the time an answer takes, finds out that a
// member no longer hears of changes while a watch waits for them, and knows which
// member has answered last.
type members struct {
	http   *http.Transport
	latest atomic.Pointer[answered]
	late   atomic.Int32 // answers that came too late since one came soon
	failed atomic.Int64 // writes without an answer
	pace   pace
	files  tlsFiles
	passed passed

	config string // key that every user of the network may read

	mu    sync.Mutex
	alive map[string]time.Time // when a member last knew a leader, by root
}

// answered is an answer that took the whole cluster: the member that gave it has
// all that was there when it was asked.
type answered struct {
	root  string
	at    time.Time // when it was asked
	index uint64    // how far etcd was then
}

func newMembers(files tlsFiles, config string) *members {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}
	return &members{files: files, config: config, alive: map[string]time.Time{}, http: &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: dialer.DialContext,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, fmt.Errorf("it connects, and has not finished the TLS handshake within %v", answerTimeout))
			defer cancel()
			config, err := files.config()
			if err != nil {
				return nil, err
			}
			conn, err := (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, network, addr)
			if err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return nil, err
			}
			return outspoken{conn}, nil
		},
	}}
}

// outspoken is a connection that fails with what the other side has to say. In TLS
// 1.3 that comes after the handshake (RFC 8446, 4.4.2.4), when a request may be on
// its way, which then fails because nobody takes it.
type outspoken struct{ net.Conn }

// Write implements io.Writer.
func (c outspoken) Write(p []byte) (n int, err error) {
	if n, err = c.Conn.Write(p); err != nil && c.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		if _, rerr := c.Read(make([]byte, 1)); rerr != nil && alert(rerr) != "" {
			err = rerr
		}
	}
	return n, err
}

// CancelRequest is what the client asks a transport to have, and never calls.
func (*members) CancelRequest(*http.Request) {}

// RoundTrip implements http.RoundTripper. An answer that says the member failed
// is an error, with the reason it gave.
func (m *members) RoundTrip(req *http.Request) (*http.Response, error) {
	root := rootOf(req.URL)
	query := req.URL.Query()
	ctx, cancel := context.WithCancelCause(req.Context())
	b := &body{ctx: ctx, cancel: cancel}
	if watch, _ := strconv.ParseBool(query.Get("wait")); watch {
		b.watch, b.began = true, time.Now()
		b.done = make(chan struct{})
		go func() {
			defer close(b.done)
			if err := m.check(ctx, root, req.Header.Get("Authorization")); err != nil {
				cancel(err)
			}
		}()
	} else {
		b.patience = m.patience()
		b.late = time.AfterFunc(b.patience, func() {
			if b.patience == m.patience() { // of many at once, one counts
				m.late.Add(1)
			}
			cancel(fmt.Errorf("%s has not answered within %v", root, b.patience))
		})
	}
	began := time.Now()
	resp, err := m.answer(root, req.WithContext(ctx))
	if err == nil && b.watch {
		err = sameHistory(resp.Header.Get("X-Etcd-Index"), query.Get("waitIndex"))
	}
	if err != nil {
		if resp != nil {
			resp.Body.Close()
		}
		err = b.why(err)
		b.end()
		if req.Method != http.MethodGet && !dialing(err) {
			m.failed.Add(1)
		}
		return nil, err
	}
	if !b.watch && time.Since(began) < answerTimeout/2 {
		m.late.Store(0)
	}
	if req.Method != http.MethodGet || query.Get("quorum") == "true" {
		m.took(root, began, resp)
	}
	b.ReadCloser, resp.Body = resp.Body, b
	return resp, nil
}

// took takes note of an answer to what the whole cluster had to do. One without an
// index is of something else on the way, or of a member that refused to ask.
func (m *members) took(root string, began time.Time, resp *http.Response) {
	index, err := strconv.ParseUint(resp.Header.Get("X-Etcd-Index"), 10, 64)
	if err != nil {
		return
	}
	m.pace.note(root, time.Since(began))
	if last := m.latest.Load(); last == nil || last.at.Before(began) {
		m.latest.Store(&answered{root, began, index})
	}
}

// dialing reports whether a request has failed before it was sent.
func dialing(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// patience is how long to wait for an answer now.
func (m *members) patience() time.Duration {
	return answerTimeout << min(m.late.Load(), doublings)
}

// answer makes an error of an answer that says that the member failed.
func (m *members) answer(root string, req *http.Request) (*http.Response, error) {
	resp, err := m.http.RoundTrip(req)
	if err != nil {
		err = m.files.failure(root, err, !m.passed.met(root))
		if req.Context().Err() == nil { // or it was this side that ended it
			m.passed.fails(err)
		}
		return nil, err
	}
	if resp.StatusCode < http.StatusInternalServerError {
		m.passed.answers(root)
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return nil, fmt.Errorf("%s answers %s%s", root, resp.Status, reason(text))
}

// reason is what the body of a failure says, in a line: one of etcd's, or
// something else's on the way.
func reason(text []byte) string {
	var etcds struct{ Message, Cause string }
	said := strings.Join(strings.Fields(string(text)), " ")
	if json.Unmarshal(text, &etcds) == nil && etcds.Message != "" {
		said = etcds.Message
		if etcds.Cause != "" {
			said += " (" + etcds.Cause + ")"
		}
	}
	if said == "" || len(said) > 200 || strings.HasPrefix(said, "<") {
		return ""
	}
	return ": " + said
}

// rootOf is the URL of a member, given that or the URL of a request to it.
func rootOf(u *url.URL) string {
	base, _, _ := strings.Cut(u.Path, "/v2/keys")
	return u.Scheme + "://" + u.Host + strings.TrimSuffix(base, "/")
}

// sameHistory returns an error when a member that is to report what came after an
// index has itself not got as far: it lags behind, or it has lost its data and
// would be silent for as long as it takes to count as far again.
func sameHistory(index, waitIndex string) error {
	have, herr := strconv.ParseUint(index, 10, 64)
	next, nerr := strconv.ParseUint(waitIndex, 10, 64)
	if herr == nil && nerr == nil && have+1 < next {
		return fmt.Errorf("%w: it is only at index %d where %d was seen", subnet.ErrWatchLost, have, next-1)
	}
	return nil
}

// check returns an error once a member does not answer, or has not known a leader
// for some time: cut off from the others, it hears of no changes, and a watch on
// it waits in vain. It returns nil when ctx ends.
func (m *members) check(ctx context.Context, root, authorization string) error {
	pause := func() time.Duration { return checkEvery/2 + rand.N(checkEvery/2) }
	wait := pause()
	for failed := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if m.knownAlive(root) {
			wait = pause() // there is more than one watch on a member
			continue
		}
		err := m.ask(ctx, root, authorization)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			wait, failed = pause(), 0
			continue
		case errors.Is(err, errLate):
			return err
		}
		if failed++; failed == elections {
			return err
		}
		wait = time.Second
	}
}

func (m *members) knownAlive(root string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.alive[root]) < checkEvery/2
}

var errLate = errors.New("has not answered")

// ask asks a member who the leader is, which costs it nothing; and, when it was slow
// of late, something that the whole cluster has to do, to find out whether it still
// is. An answer that is none of etcd's, as of a gateway that lets only the keys
// through, tells nothing.
func (m *members) ask(ctx context.Context, root, authorization string) error {
	questions := []string{"/v2/members/leader"}
	if m.pace.slow(root) {
		questions = append(questions, "/v2/keys"+m.config+"?quorum=true")
	}
	for _, q := range questions {
		began := time.Now()
		resp, err := m.get(ctx, root+q, root, authorization)
		if err != nil {
			return err
		}
		if strings.HasSuffix(q, "?quorum=true") {
			m.took(root, began, resp)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alive[root] = time.Now()
	return nil
}

// get asks a member something whose answer is only its head.
func (m *members) get(ctx context.Context, url, root, authorization string) (*http.Response, error) {
	patience := m.patience()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s %w within %v", root, errLate, patience))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := m.answer(root, req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body) // to its end, for the connection to be of further use
		resp.Body.Close()
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return resp, err
}

// body is an answer's, which does not wait for its next part without end.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc

	late     *time.Timer // ends what takes longer than patience; nil for a watch
	patience time.Duration

	watch bool
	began time.Time
	done  chan struct{} // closed when nobody checks the member any more
	some  bool          // something was read
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (n int, err error) {
	if b.late != nil && b.ctx.Err() == nil { // or it is closed, and nobody waits
		b.late.Reset(b.patience)
	}
	n, err = b.ReadCloser.Read(p)
	b.some = b.some || n > 0
	if err == io.EOF && b.watch && !b.some && time.Since(b.began) < time.Second {
		// The client would ask again at once, and so on as fast as it can.
		return n, errors.New("the answer to the watch was empty")
	}
	if err != nil && err != io.EOF {
		err = b.why(err)
	}
	return n, err
}

// why is what has ended the request when that was this side.
func (b *body) why(err error) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return err
}

// Close implements io.Closer.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}

func (b *body) end() {
	b.cancel(nil)
	if b.late != nil {
		b.late.Stop()
	}
	if b.watch {
		<-b.done
	}
}
