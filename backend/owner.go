package backend

import (
	"regexp"

	"flanneld/pkg/kernel"
)

// Owner marks what backends put in the kernel. All of them share it, so that
// each clears away what another left there in an earlier run. The protocol
// number is one that iproute2's rt_protos names nobody for.
var Owner = kernel.Owner{Protocol: 102, Device: ownDevice}

var vxlanName = regexp.MustCompile(`^flannel\.[0-9]+$`)

// TUNName is the device of the udp backend.
const TUNName = "flannel0"

func ownDevice(name, kind string) bool {
	return kind == "vxlan" && vxlanName.MatchString(name) || kind == "tun" && name == TUNName
}
