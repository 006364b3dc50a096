package subnet

import (
	"context"
	"errors"
	"time"
)

// What a Store's methods return apart from the errors of their own transport,
// which another try may mend. Test with errors.Is.
var (
	// ErrNotFound: the entry is not in the store.
	ErrNotFound = errors.New("not in the store")
	// ErrConflict: the entry was created or written by somebody else meanwhile.
	ErrConflict = errors.New("written by somebody else meanwhile")
	// ErrWatchLost: events may have been missed, so List has to be asked again.
	ErrWatchLost = errors.New("no longer being watched from where it was left")
	// ErrBehind: there are so many more events to come that List is less work.
	ErrBehind = errors.New("being watched too far behind")
)

// Entry is one lease, or the network config, as the store has it: unread.
type Entry struct {
	// Key is the last element of the entry's name, see FormatKey.
	Key string
	// Value is the text that was written.
	Value string
	// Expires is when the store drops the entry, on this host's clock; zero
	// when it never does. As the time an answer takes cannot be told from the
	// time since, it may be too early by that; it is a second late at most. Of an
	// Event it is not to be relied on, as the event may be old.
	Expires time.Time
	// Revision is the store's version of the entry.
	Revision uint64
	// Created is the Revision it had when it was created, which an Update leaves.
	Created uint64
}

// Decode reads an entry.
func (e Entry) Decode() (Lease, error) {
	subnet, err := ParseKey(e.Key)
	if err != nil {
		return Lease{}, err
	}
	attrs, err := DecodeAttrs(e.Value)
	if err != nil {
		return Lease{}, err
	}
	return Lease{Subnet: subnet, Attrs: attrs, Expires: e.Expires, Revision: e.Revision, Created: e.Created}, nil
}

// Event is one change to a lease. Of a deleted one only the Key counts.
type Event struct {
	Entry
	Deleted bool
}

// Watcher reports the changes to leases, in order, none left out.
type Watcher interface {
	// Next waits for the next change or changes. After an error the Watcher is of
	// no more use; ErrWatchLost says that some may have been missed, ErrBehind
	// that it is too slow for what is going on.
	Next() ([]Event, error)
}

// Member is one of the servers that a Store is made of, as this host sees it.
type Member struct {
	// Endpoint is where it was asked, as a URL.
	Endpoint string
	// InUse says that it is the one that has last answered this host.
	InUse bool
	// Took is how long it took to answer, or to find out that it does not, and Err
	// why that is; nil for one that answers and is part of its cluster.
	Took time.Duration
	Err  error
	// Ahead is by how much its clock is ahead of this host's, to the second or two;
	// zero where its answer does not tell.
	Ahead time.Duration
}

// Store is the shared store, holding one network config and the leases under
// one prefix. Each write that claims a subnet is atomic in the store itself, so
// that of two hosts that race one wins and the other gets ErrConflict.
// Implementations are safe for concurrent use.
type Store interface {
	// Config returns the network config, or ErrNotFound. Either way revision
	// is the version that AwaitConfig continues from.
	Config(ctx context.Context) (value string, revision uint64, err error)
	// AwaitConfig waits until the config may have been written or deleted since
	// revision.
	AwaitConfig(ctx context.Context, revision uint64) error

	// List returns all leases, and the version that Watch continues from.
	List(ctx context.Context) (entries []Entry, revision uint64, err error)
	// Get returns the lease of one key, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// Watch reports all changes since revision until ctx ends.
	Watch(ctx context.Context, revision uint64) Watcher

	// Create writes an entry that must not exist: ErrConflict when it does. A
	// ttl of 0 means that it never expires.
	Create(ctx context.Context, key, value string, ttl time.Duration) (Entry, error)
	// Update replaces an entry that still has old's revision and value: ErrConflict
	// when it has others by now, ErrNotFound when it is gone. The revision alone
	// would not do, as a store that has lost its data counts from the beginning.
	Update(ctx context.Context, old Entry, value string, ttl time.Duration) (Entry, error)
	// Delete removes an entry that still has old's revision and value, with the
	// errors of Update.
	Delete(ctx context.Context, old Entry) error

	// Members asks each of the store's servers, in the order they were given,
	// whether it can be used. It returns when all have answered or ctx has ended.
	Members(ctx context.Context) []Member
}
