package vxlan

import (
	"flanneld/backend"
	"flanneld/pkg/jsonfields"
)

// config is the backend's part of the network config.
type config struct {
	vni           int
	port          int
	gbp           bool
	directRouting bool
	mtu           int // of the packets on the wire; 0 is the interface's
}

const (
	// overhead is what VXLAN adds to each packet, in bytes: IPv4 20, UDP 8,
	// VXLAN 8 and the inner Ethernet header 14 (RFC 7348, section 5).
	overhead = 20 + 8 + 8 + 14
	// kernelPort is what the kernel uses for a device made without a port; it
	// is older than the one IANA has assigned, 4789.
	kernelPort = 8472
	// maxVNI is what fits into the device's name, flannel.<VNI>, of at most 15
	// characters (IFNAMSIZ in linux/if.h). VXLAN itself would go to 2^24-1.
	maxVNI = 9_999_999
	minMTU = 68 // the least MTU of IPv4 (RFC 791)
	maxMTU = 65535
)

// Parse implements backend.Parse.
func Parse(fields *jsonfields.Object) (backend.Open, error) {
	c, err := readConfig(fields)
	if err != nil {
		return nil, err
	}
	return c.open, nil
}

func readConfig(fields *jsonfields.Object) (c config, err error) {
	if c.vni, err = fields.Int("VNI", 1, 0, maxVNI); err != nil {
		return c, err
	}
	if c.port, err = fields.Int("Port", kernelPort, 1, 65535); err != nil {
		return c, err
	}
	if c.gbp, err = fields.Bool("GBP", false); err != nil {
		return c, err
	}
	if c.directRouting, err = fields.Bool("DirectRouting", false); err != nil {
		return c, err
	}
	c.mtu, err = fields.Int("MTU", 0, minMTU+overhead, maxMTU)
	return c, err
}
