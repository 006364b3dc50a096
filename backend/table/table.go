// Package table lists the backends there are. To add one, write its package
// beside this one and name it here.
package table

import (
	"flanneld/backend"
	"flanneld/backend/hostgw"
	"flanneld/backend/udp"
	"flanneld/backend/vxlan"
)

// Backends are the backends by the Type that configs and leases name them by, in
// lower case; a config may spell it otherwise.
var Backends = map[string]backend.Parse{
	udp.Type:    udp.Parse,
	vxlan.Type:  vxlan.Parse,
	hostgw.Type: hostgw.Parse,
}
