// Package rtnl reads and writes the kernel's routing tables in bulk through
// rtnetlink(7): routes, next-hop objects, neighbours and the FDB of VXLAN
// devices, IPv4 only.
//
// It is for tables of many thousand entries. Requests go out by the hundred in
// one system call, and only those that fail are answered; tables are read
// without an allocation for each entry. For links and addresses, of which there
// are few, use github.com/vishvananda/netlink.
//
// Start reading at Socket for requests, at Notices for what the kernel tells of
// changes; route.go, nexthop.go and neighbour.go have an entry's form on the
// wire each. Numbers and layouts are those of linux/rtnetlink.h, linux/nexthop.h
// and linux/neighbour.h.
package rtnl
