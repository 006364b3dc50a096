// Package table lists the backends there are. To add one, write its package
// beside this one and name it here.
package table

import (
	"maps"
	"slices"
	"strings"

	"flanneld/backend"
	"flanneld/backend/hostgw"
	"flanneld/backend/udp"
	"flanneld/backend/vxlan"
	"flanneld/subnet"
)

// Backends are the backends by the Type that configs and leases name them by, in
// lower case; a config may spell it otherwise.
var Backends = map[string]backend.Parse{
	udp.Type:    udp.Parse,
	vxlan.Type:  vxlan.Parse,
	hostgw.Type: hostgw.Parse,
}

// Config is a network config that can be used, its backend's part read too.
type Config struct {
	subnet.Config
	Open backend.Open
}

// ParseConfig reads a config as a whole. unknown lists the fields that nobody
// knows, which is no error, as other versions may. Errors name the field.
func ParseConfig(text string) (c Config, unknown []string, err error) {
	if c.Config, err = subnet.ParseConfig(text); err != nil {
		return Config{}, nil, err
	}
	parse, ok := Backends[c.BackendType]
	if !ok {
		names := slices.Sorted(maps.Keys(Backends))
		return Config{}, nil, c.Backend.Errorf("Type", "there is no such backend, only %s", strings.Join(names, ", "))
	}
	if c.Open, err = parse(c.Backend); err != nil {
		return Config{}, nil, err
	}
	return c, c.Unknown(), nil
}
