package etcdv2

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/client/v2"

	"flanneld/subnet"
)

// explain turns an error of the client about a key into the answer it stands
// for, or into one message that says what went wrong; and returns the index
// that etcd's answer had.
func (s *Store) explain(ctx context.Context, doing, key string, err error) (index uint64, _ error) {
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
			said := answer.Message
			if answer.Cause != "" {
				said += " (" + answer.Cause + ")"
			}
			if answer.Code == client.ErrorCodeUnauthorized {
				said += "; " + s.unauthorized(ctx, doing, key)
			}
			return answer.Index, fmt.Errorf("%s %s: etcd says: %s", doing, key, said)
		}
		return answer.Index, fmt.Errorf("%s is %w", key, err)
	case errors.Is(err, client.ErrInvalidJSON):
		return 0, fmt.Errorf("%s %s: the answer is not one of etcd's v2 API (from version 3.4 on etcd serves that only when started with --enable-v2)", doing, key)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return 0, fmt.Errorf("%s %s in etcd: %w", doing, key, err) // it was this side that did not wait
	case !errors.As(err, &cluster): // of one endpoint, which some requests are only sent to
		cluster = &client.ClusterError{Errors: []error{err}}
	}
	for _, err := range cluster.Errors {
		if errors.Is(err, subnet.ErrWatchLost) {
			return 0, fmt.Errorf("%s is %w", key, err)
		}
	}
	return 0, fmt.Errorf("%s %s in etcd: %s", doing, key, together(cluster.Errors))
}

// unauthorized is what to do when etcd does not let this host do something. Its
// answer is the same whatever the cause; but who may read the config, which is the
// first thing any host does, has the right name and password.
func (s *Store) unauthorized(ctx context.Context, doing, key string) string {
	rights := fmt.Sprintf("flanneld has to read and write %s/*", s.prefix)
	if s.username == "" {
		who := "give --etcd-username and --etcd-password"
		if s.members.files.cert != "" {
			who += ", or a client certificate with the name"
		}
		return who + " of a user that may do this (" + rights + ")"
	}
	if key != s.configKey() {
		if _, err := s.keys.Get(ctx, s.configKey(), nil); err == nil || client.IsKeyNotFound(err) {
			return fmt.Sprintf("the user %q may read %s, so name and password are right: give it a role that may do this too (%s)", s.username, s.configKey(), rights)
		}
	}
	return fmt.Sprintf("there is no user %q with the password given, or it may not do this: see to --etcd-username, --etcd-password and the roles of that user (%s; etcd's log says which it is)", s.username, rights)
}
