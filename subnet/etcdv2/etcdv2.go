// Package etcdv2 is the subnet.Store on etcd's v2 API.
//
// Under the prefix, the key config holds the network config and the directory
// subnets one key for each lease. Reads are quorum reads, so that a member that
// lags behind cannot hide a lease; writes are compare-and-swap on the index of
// the entry. Facts about the API are from etcd's v2 API document.
package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/v2"

	"flanneld/subnet"
)

// Options say where etcd is and how to get in.
type Options struct {
	// Endpoints are the client URLs of the members.
	Endpoints []string
	// Prefix is the directory all keys are under; slashes at either end make
	// no difference.
	Prefix string
	// CAFile, CertFile and KeyFile are for TLS, each empty where it is not
	// used. Certificate and key are read anew for each connection.
	CAFile, CertFile, KeyFile string
	// Username and Password are for etcd's own authentication.
	Username, Password string
}

const (
	dialTimeout = 2 * time.Second
	// answerTimeout is for the head of an answer, which of a watch comes at
	// once. One member that takes longer is passed over for the next.
	answerTimeout = 5 * time.Second
)

// keepAlive finds out within a dozen seconds that a member has fallen silent. A
// watch may wait for hours, so that no time-out for answers can tell.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// Store is etcd under one prefix.
type Store struct {
	keys   client.KeysAPI
	prefix string
	listed atomic.Int64 // leases in the latest list
}

var _ subnet.Store = (*Store)(nil)

// New makes a Store without asking etcd anything yet. Its errors are about the
// options: a URL or TLS file that cannot be used.
func New(o Options) (*Store, error) {
	tls := transport.TLSInfo{TrustedCAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile}
	tr, err := transport.NewTransport(tls, dialTimeout)
	if err != nil {
		return nil, fmt.Errorf("setting up TLS to etcd with the files given: %w", err)
	}
	tr.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}).DialContext
	c, err := client.New(client.Config{
		Endpoints:               o.Endpoints,
		Transport:               tr,
		Username:                o.Username,
		Password:                o.Password,
		HeaderTimeoutPerRequest: answerTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("using the etcd endpoints %s: %w", strings.Join(o.Endpoints, ","), err)
	}
	return &Store{keys: client.NewKeysAPI(c), prefix: path.Join("/", o.Prefix)}, nil
}

func (s *Store) configKey() string        { return path.Join(s.prefix, "config") }
func (s *Store) subnetsDir() string       { return path.Join(s.prefix, "subnets") }
func (s *Store) leaseKey(k string) string { return path.Join(s.subnetsDir(), k) }

// Config implements subnet.Store.
func (s *Store) Config(ctx context.Context) (string, uint64, error) {
	resp, err := s.keys.Get(ctx, s.configKey(), &client.GetOptions{Quorum: true})
	if err != nil {
		index, err := explain("reading", s.configKey(), err)
		return "", index, err
	}
	if resp.Node.Dir {
		return "", resp.Index, fmt.Errorf("reading %s from etcd: it is a directory, not a key", s.configKey())
	}
	return resp.Node.Value, resp.Index, nil
}

// AwaitConfig implements subnet.Store.
func (s *Store) AwaitConfig(ctx context.Context, revision uint64) error {
	_, err := s.keys.Watcher(s.configKey(), &client.WatcherOptions{AfterIndex: revision}).Next(ctx)
	_, err = explain("watching", s.configKey(), err)
	return err
}

// List implements subnet.Store.
func (s *Store) List(ctx context.Context) ([]subnet.Entry, uint64, error) {
	resp, err := s.keys.Get(ctx, s.subnetsDir(), &client.GetOptions{Recursive: true, Quorum: true})
	if err != nil {
		index, err := explain("listing", s.subnetsDir(), err)
		if errors.Is(err, subnet.ErrNotFound) {
			return nil, index, nil // nobody has leased anything yet
		}
		return nil, 0, err
	}
	entries := make([]subnet.Entry, 0, len(resp.Node.Nodes))
	for _, n := range resp.Node.Nodes {
		entries = append(entries, entry(n)) // a directory has no value, and nobody else can have its key
	}
	s.listed.Store(int64(len(entries)))
	return entries, resp.Index, nil
}

// Get implements subnet.Store.
func (s *Store) Get(ctx context.Context, key string) (subnet.Entry, error) {
	resp, err := s.keys.Get(ctx, s.leaseKey(key), &client.GetOptions{Quorum: true})
	if err != nil {
		_, err = explain("reading", s.leaseKey(key), err)
		return subnet.Entry{}, err
	}
	return entry(resp.Node), nil
}

// Watch implements subnet.Store.
func (s *Store) Watch(ctx context.Context, revision uint64) subnet.Watcher {
	return &watcher{s, ctx, s.keys.Watcher(s.subnetsDir(), &client.WatcherOptions{AfterIndex: revision, Recursive: true})}
}

// A watch of the v2 API asks for one event after another, and each answer takes
// etcd and us about as long as this many leases in a list do. Behind by fewer
// events than leastBehind, asking on is always less trouble.
const (
	leasesPerEvent = 16
	leastBehind    = 16
)

type watcher struct {
	s   *Store
	ctx context.Context
	w   client.Watcher
}

// Next implements subnet.Watcher.
func (w *watcher) Next() ([]subnet.Event, error) {
	for {
		resp, err := w.w.Next(w.ctx)
		if err != nil {
			_, err = explain("watching", w.s.subnetsDir(), err)
			return nil, err
		}
		// An event of the past comes with the index of the present.
		if behind := int64(resp.Index) - int64(resp.Node.ModifiedIndex); behind > max(leastBehind, w.s.listed.Load()/leasesPerEvent) {
			return nil, fmt.Errorf("%s is %w, by %d events", w.s.subnetsDir(), subnet.ErrBehind, behind)
		}
		deleted := false
		switch resp.Action {
		case "delete", "expire", "compareAndDelete":
			deleted = true
		}
		switch {
		case path.Dir(resp.Node.Key) != w.s.subnetsDir():
			if deleted {
				return nil, fmt.Errorf("%w: %s was removed as a whole", subnet.ErrWatchLost, resp.Node.Key)
			}
		default:
			return []subnet.Event{{Entry: entry(resp.Node), Deleted: deleted}}, nil
		}
	}
}

// Create implements subnet.Store.
func (s *Store) Create(ctx context.Context, key, value string, ttl time.Duration) (subnet.Entry, error) {
	return s.set(ctx, key, value, &client.SetOptions{PrevExist: client.PrevNoExist, TTL: ttl})
}

// Update implements subnet.Store.
func (s *Store) Update(ctx context.Context, key string, revision uint64, value string, ttl time.Duration) (subnet.Entry, error) {
	if revision == 0 { // which to the client is no condition at all
		return subnet.Entry{}, subnet.ErrConflict
	}
	return s.set(ctx, key, value, &client.SetOptions{PrevIndex: revision, TTL: ttl})
}

func (s *Store) set(ctx context.Context, key, value string, opts *client.SetOptions) (subnet.Entry, error) {
	resp, err := s.keys.Set(ctx, s.leaseKey(key), value, opts)
	if err != nil {
		_, err = explain("writing", s.leaseKey(key), err)
		return subnet.Entry{}, err
	}
	return entry(resp.Node), nil
}

// Delete implements subnet.Store.
func (s *Store) Delete(ctx context.Context, key string, revision uint64) error {
	if revision == 0 {
		return subnet.ErrConflict
	}
	_, err := s.keys.Delete(ctx, s.leaseKey(key), &client.DeleteOptions{PrevIndex: revision})
	_, err = explain("deleting", s.leaseKey(key), err)
	return err
}

// entry reads a node. The time it expires is counted from now, as the clock of
// the member need not agree with ours.
func entry(n *client.Node) subnet.Entry {
	e := subnet.Entry{Key: path.Base(n.Key), Value: n.Value, Revision: n.ModifiedIndex}
	if n.Expiration != nil {
		e.Expires = time.Now().Add(time.Duration(n.TTL) * time.Second)
	}
	return e
}

// explain turns an error of the client about a key into the answer it stands
// for, or into one message that says what went wrong; and returns the index
// that etcd's answer had.
func explain(doing, key string, err error) (index uint64, _ error) {
	var answer client.Error
	var cluster *client.ClusterError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &answer):
		switch answer.Code {
		case client.ErrorCodeKeyNotFound:
			err = subnet.ErrNotFound
		case client.ErrorCodeTestFailed, client.ErrorCodeNodeExist:
			err = subnet.ErrConflict
		case client.ErrorCodeEventIndexCleared:
			err = subnet.ErrWatchLost
		default:
			return answer.Index, fmt.Errorf("%s %s: etcd says: %s (%s)", doing, key, answer.Message, answer.Cause)
		}
		return answer.Index, fmt.Errorf("%s is %w", key, err)
	case errors.Is(err, client.ErrInvalidJSON):
		return 0, fmt.Errorf("%s %s: the answer is not one of etcd's v2 API (from version 3.4 on etcd serves that only when started with --enable-v2)", doing, key)
	case errors.As(err, &cluster):
		return 0, fmt.Errorf("%s %s: no etcd endpoint has answered: %s", doing, key, oneLine(cluster))
	}
	return 0, fmt.Errorf("%s %s in etcd: %w", doing, key, err)
}

// oneLine lists what each endpoint said, the same thing once.
func oneLine(c *client.ClusterError) string {
	var all []string
	said := map[string]bool{}
	for _, err := range c.Errors {
		text := err.Error()
		if strings.HasSuffix(text, "EOF") || strings.Contains(text, "malformed HTTP") {
			text += " (is it http in the endpoint's URL where https is needed, or the other way round?)"
		}
		if !said[text] {
			said[text] = true
			all = append(all, text)
		}
	}
	return strings.Join(all, "; ")
}
