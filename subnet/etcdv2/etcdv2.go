// Package etcdv2 is the subnet.Store on etcd's v2 API.
//
// Under the prefix, the key config holds the network config and the directory
// subnets one key for each lease. Reads are quorum reads, so that a member that
// lags behind cannot hide a lease; writes are compare-and-swap on index and value
// of the entry. Facts about the API are from etcd's v2 API document.
//
// A list of all leases is the exception. In the v2 API a quorum read is an entry in
// the log of the cluster, which each member carries out one after the other:
// thousands of hosts that list thousands of leases at once, as after a restart of
// etcd, would keep everything else from being done for minutes. So the list comes
// from one member alone, which has just taken part in something small that the
// whole cluster did, and has all that was there before that.
package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v2"

	"k8s.io/klog/v2"

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
	// used. All are read anew for each connection; but through a proxy (HTTPS_PROXY)
	// the CAs are read once, and new ones need a restart.
	CAFile, CertFile, KeyFile string
	// Username and Password are for etcd's own authentication.
	Username, Password string
}

// Store is etcd under one prefix.
type Store struct {
	keys    client.KeysAPI
	members *members
	// single have one endpoint each, by its root. A watch is to end with the
	// member it is on, and not to go on where another history may be told.
	single map[string]client.KeysAPI
	roots  []string // of the members, each once, in the order given
	prefix string
	// authorize adds what tells etcd who asks.
	authorize func(*http.Request)
	// username is the one that requests are made with, empty for none.
	username string
	listed   atomic.Int64 // leases in the latest list
}

var _ subnet.Store = (*Store)(nil)

// New makes a Store without asking etcd anything yet. Its errors are about the
// options: a URL or TLS file that cannot be used.
func New(o Options) (*Store, error) {
	prefix := path.Join("/", o.Prefix)
	files := tlsFiles{o.CAFile, o.CertFile, o.KeyFile}
	m := newMembers(files, path.Join(prefix, "config"))
	keys := func(endpoints ...string) (client.KeysAPI, error) {
		c, err := client.New(client.Config{Endpoints: endpoints, Transport: m, Username: o.Username, Password: o.Password})
		if err != nil {
			return nil, fmt.Errorf("using the etcd endpoints %s: %w", strings.Join(o.Endpoints, ","), err)
		}
		return client.NewKeysAPI(c), nil
	}
	s := &Store{members: m, prefix: prefix, username: o.Username, single: map[string]client.KeysAPI{}}
	s.authorize = func(req *http.Request) {
		if o.Username != "" {
			req.SetBasicAuth(o.Username, o.Password)
		}
	}
	var plain []string
	for _, e := range o.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return nil, fmt.Errorf("using the etcd endpoint %s: %w", e, err)
		}
		if s.single[rootOf(u)], err = keys(e); err != nil {
			return nil, err
		}
		if !slices.Contains(s.roots, rootOf(u)) {
			s.roots = append(s.roots, rootOf(u))
		}
		if u.Scheme == "http" {
			plain = append(plain, rootOf(u))
		}
	}
	var err error
	if s.keys, err = keys(o.Endpoints...); err != nil {
		return nil, err
	}
	if len(plain) < len(o.Endpoints) {
		// What is wrong with the files is to show now, and not when the first
		// connection is made. Through a proxy connections are made with these.
		if m.http.TLSClientConfig, err = files.config(); err != nil {
			return nil, err
		}
	}
	if len(plain) > 0 && files.any() {
		klog.Warningf("The files for TLS are of no use with %s: write https:// in --etcd-endpoints if etcd is served there with TLS", strings.Join(plain, ", "))
	}
	return s, nil
}

// here is for requests that one member is to carry out by itself: the one that has
// last answered for the whole cluster, and therefore knows of all that was seen.
func (s *Store) here() (keys client.KeysAPI, last answered) {
	if a := s.members.latest.Load(); a != nil && s.single[a.root] != nil {
		return s.single[a.root], *a
	}
	return s.keys, answered{}
}

func (s *Store) configKey() string        { return path.Join(s.prefix, "config") }
func (s *Store) subnetsDir() string       { return path.Join(s.prefix, "subnets") }
func (s *Store) leaseKey(k string) string { return path.Join(s.subnetsDir(), k) }

// Config implements subnet.Store.
func (s *Store) Config(ctx context.Context) (string, uint64, error) {
	resp, err := whole(s.keys.Get(ctx, s.configKey(), &client.GetOptions{Quorum: true}))
	if err != nil {
		index, err := s.explain(ctx, "reading", s.configKey(), err)
		return "", index, err
	}
	if resp.Node.Dir {
		return "", resp.Index, fmt.Errorf("reading %s from etcd: it is a directory, not a key", s.configKey())
	}
	return resp.Node.Value, resp.Index, nil
}

// AwaitConfig implements subnet.Store.
func (s *Store) AwaitConfig(ctx context.Context, revision uint64) error {
	keys, _ := s.here()
	_, err := next(ctx, keys.Watcher(s.configKey(), &client.WatcherOptions{AfterIndex: revision}))
	_, err = s.explain(ctx, "watching", s.configKey(), err)
	return err
}

// freshEnough is for how long a member that has answered for the whole cluster is
// taken to be part of it.
const freshEnough = 3 * time.Second

// List implements subnet.Store.
func (s *Store) List(ctx context.Context) ([]subnet.Entry, uint64, error) {
	began := time.Now()
	resp, err := s.list(ctx)
	if err != nil {
		index, err := s.explain(ctx, "listing", s.subnetsDir(), err)
		if errors.Is(err, subnet.ErrNotFound) {
			return nil, index, nil // nobody has leased anything yet
		}
		return nil, 0, err
	}
	entries := make([]subnet.Entry, 0, len(resp.Node.Nodes))
	for _, n := range resp.Node.Nodes {
		entries = append(entries, entry(n, began)) // a directory has no value, and nobody else can have its key
	}
	s.listed.Store(int64(len(entries)))
	return entries, resp.Index, nil
}

// list lists from one member, if there is one that is part of the cluster and has
// what was seen; otherwise, as where one endpoint stands for several members, the
// cluster has to do it.
func (s *Store) list(ctx context.Context) (*client.Response, error) {
	keys, last := s.here()
	if time.Since(last.at) > freshEnough {
		_, err := s.keys.Get(ctx, s.configKey(), &client.GetOptions{Quorum: true})
		if _, explained := s.explain(ctx, "reading", s.configKey(), err); explained != nil && !errors.Is(explained, subnet.ErrNotFound) {
			return nil, err
		}
		keys, last = s.here()
	}
	if last.root != "" {
		resp, err := whole(keys.Get(ctx, s.subnetsDir(), &client.GetOptions{Recursive: true}))
		var answer client.Error
		index, said := uint64(0), errors.As(err, &answer)
		if said {
			index = answer.Index
		} else if err == nil {
			index = resp.Index
		}
		if (said || err == nil) && index >= last.index || ctx.Err() != nil {
			return resp, err
		}
		s.members.latest.Store(nil)
	}
	return whole(s.keys.Get(ctx, s.subnetsDir(), &client.GetOptions{Recursive: true, Quorum: true}))
}

// Get implements subnet.Store.
func (s *Store) Get(ctx context.Context, key string) (subnet.Entry, error) {
	asked := time.Now()
	resp, err := whole(s.keys.Get(ctx, s.leaseKey(key), &client.GetOptions{Quorum: true}))
	if err != nil {
		_, err = s.explain(ctx, "reading", s.leaseKey(key), err)
		return subnet.Entry{}, err
	}
	return entry(resp.Node, asked), nil
}

// Watch implements subnet.Store.
func (s *Store) Watch(ctx context.Context, revision uint64) subnet.Watcher {
	keys, _ := s.here()
	return &watcher{s, ctx, keys.Watcher(s.subnetsDir(), &client.WatcherOptions{AfterIndex: revision, Recursive: true})}
}

// Create implements subnet.Store.
func (s *Store) Create(ctx context.Context, key, value string, ttl time.Duration) (subnet.Entry, error) {
	return s.set(ctx, key, value, &client.SetOptions{PrevExist: client.PrevNoExist, TTL: ttl})
}

// Update implements subnet.Store.
func (s *Store) Update(ctx context.Context, old subnet.Entry, value string, ttl time.Duration) (subnet.Entry, error) {
	if old.Revision == 0 { // which to the client is no condition at all
		return subnet.Entry{}, subnet.ErrConflict
	}
	return s.set(ctx, old.Key, value, &client.SetOptions{PrevIndex: old.Revision, PrevValue: old.Value, TTL: ttl})
}

func (s *Store) set(ctx context.Context, key, value string, opts *client.SetOptions) (subnet.Entry, error) {
	asked, failed := time.Now(), s.members.failed.Load()
	resp, err := whole(s.keys.Set(ctx, s.leaseKey(key), value, opts))
	if err == nil {
		return entry(resp.Node, asked), nil
	}
	_, err = s.explain(ctx, "writing", s.leaseKey(key), err)
	if errors.Is(err, subnet.ErrConflict) && s.members.failed.Load() != failed {
		// The client has tried a second member when the first gave no answer, which
		// may have made the write all the same.
		there, gerr := s.Get(ctx, key)
		if gerr == nil && there.Value == value {
			return there, nil
		} else if gerr != nil && !errors.Is(gerr, subnet.ErrNotFound) {
			return subnet.Entry{}, gerr // and so whoever asked does not know either
		}
	}
	return subnet.Entry{}, err
}

// Delete implements subnet.Store.
func (s *Store) Delete(ctx context.Context, old subnet.Entry) error {
	if old.Revision == 0 {
		return subnet.ErrConflict
	}
	_, err := s.keys.Delete(ctx, s.leaseKey(old.Key), &client.DeleteOptions{PrevIndex: old.Revision, PrevValue: old.Value})
	_, err = s.explain(ctx, "deleting", s.leaseKey(old.Key), err)
	return err
}

// entry reads a node of an answer to what was asked then. The time it expires is
// counted from that moment, as the clock of the member need not agree with ours.
func entry(n *client.Node, asked time.Time) subnet.Entry {
	e := subnet.Entry{Key: path.Base(n.Key), Value: n.Value, Revision: n.ModifiedIndex, Created: n.CreatedIndex}
	if n.Expiration != nil {
		e.Expires = asked.Add(time.Duration(n.TTL) * time.Second)
	}
	return e
}
