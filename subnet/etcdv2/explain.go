package etcdv2

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/client/v2"

	"flanneld/subnet"
)

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
			said := answer.Message
			if answer.Cause != "" {
				said += " (" + answer.Cause + ")"
			}
			if answer.Code == client.ErrorCodeUnauthorized {
				said += "; see to --etcd-username and --etcd-password, and to what that user may do"
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
	return 0, fmt.Errorf("%s %s in etcd: %s", doing, key, oneLine(cluster))
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
