package status

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// dockerBridge is the bridge that dockerd makes unless it is told of another.
const dockerBridge = "docker0"

// bridge notes that dockerd has not been told of this host's subnet: its bridge has
// another address, and nothing else has the subnet's first. All is well with the
// network then, and no container is in it.
func (r *Report) bridge() {
	first := netip.PrefixFrom(r.Lease.Subnet.Addr().Next(), r.Lease.Subnet.Bits())
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return // as all else that asks the kernel will say
	}
	var has netip.Prefix
	link, err := netlink.LinkByName(dockerBridge)
	if err != nil {
		return // dockerd does not run, or has another bridge
	}
	for _, a := range all {
		ip, _ := netip.AddrFromSlice(a.IP.To4())
		bits, _ := a.Mask.Size()
		if ip == first.Addr() {
			return
		}
		if a.LinkIndex == link.Attrs().Index && !has.IsValid() {
			has = netip.PrefixFrom(ip, bits)
		}
	}
	if has.IsValid() {
		r.Notes = append(r.Notes, fmt.Sprintf("%s has the address %v and not %v: dockerd was started without flanneld's options, and its containers are not part of the network", dockerBridge, has, first))
	}
}
