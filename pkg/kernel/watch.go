package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// subscribe opens the socket on which the kernel tells what may concern a state.
func subscribe() (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribing to the kernel's netlink notifications: %w", err)
	}
	return s, nil
}

// watch calls dirty for each change in the kernel that may concern the state:
// links, IPv4 addresses and routes, and the entries of the device of the index
// in device. It returns when ctx ends, or with the error of netlink itself, and
// closes the socket.
//
// It judges a message by no more than its type and interface: what has changed
// is for the comparison that follows to find out.
func watch(ctx context.Context, s *nl.NetlinkSocket, device *atomic.Int64, dirty func()) error {
	var g errgroup.Group
	ended := make(chan struct{})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		s.Close() // ends Receive
		return nil
	})
	dirty() // what changed before the subscription
	for {
		msgs, _, err := s.Receive()
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, unix.ENOBUFS) {
			dirty() // more than the socket could hold: some were dropped
			continue
		}
		if err != nil {
			close(ended)
			_ = g.Wait()
			return fmt.Errorf("reading the kernel's netlink notifications: %w", err)
		}
		for _, m := range msgs {
			if concerns(m, int(device.Load())) {
				dirty()
				break
			}
		}
	}
	return g.Wait()
}

// concerns reports whether a message may be about the state. Neighbours come
// and go on every interface of a busy host; only those of our device count.
func concerns(m syscall.NetlinkMessage, device int) bool {
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		const ifindex = 4 // offset of ndm_ifindex in struct ndmsg
		return len(m.Data) >= unix.SizeofNdMsg && int(binary.NativeEndian.Uint32(m.Data[ifindex:])) == device
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		const table = 4 // offset of rtm_table in struct rtmsg
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[table] == unix.RT_TABLE_MAIN
	}
	return true
}
