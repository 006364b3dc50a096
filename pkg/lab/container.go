package lab

import (
	"fmt"
	"net/netip"
)

const dockerBridge = "docker0"

// docker is what dockerd would have made on a host.
type docker struct {
	gateway    netip.Prefix
	mtu        int
	addrs      addrs
	containers []*Container
}

// A Container is a namespace behind a host's docker0.
type Container struct {
	*Node
	Host *Host
}

// Container adds a container to the host, with the next free address behind
// the gateway. The first one makes docker0 the way `dockerd --bip=<gateway>
// --mtu=<mtu>` does, without its iptables rules and without turning forwarding
// on. Its namespace is named <host>-<name>.
func (h *Host) Container(name string, gateway netip.Prefix, mtu int) *Container {
	h.lab.Helper()
	fail := func(err error) {
		h.lab.Helper()
		if err != nil {
			h.lab.Fatalf("making container %s on %s: %v", name, h.Name, err)
		}
	}
	if h.docker == nil {
		fail(h.bridge(dockerBridge, gateway, mtu))
		h.docker = &docker{gateway: gateway, mtu: mtu, addrs: newAddrs(gateway, gateway.Addr())}
	}
	d := h.docker
	if d.gateway != gateway || d.mtu != mtu {
		fail(fmt.Errorf("docker0 has gateway %v and MTU %d, not %v and %d; call RemoveContainers first", d.gateway, d.mtu, gateway, mtu))
	}
	n, err := h.lab.newNode(h.Name + "-" + name)
	fail(err)
	c := &Container{Node: n, Host: h}
	d.containers = append(d.containers, c)
	p, err := d.addrs.take()
	fail(err)
	fail(h.plug(dockerBridge, "veth-"+name, n, "eth0", p, mtu))
	c.addr = p.Addr()
	fail(n.defaultRoute(gateway.Addr()))
	return c
}

// RemoveContainers ends the host's containers with all that runs in them, and
// removes docker0, as when dockerd is to start anew with another --bip.
func (h *Host) RemoveContainers() {
	h.lab.Helper()
	if h.docker == nil {
		return
	}
	for _, c := range h.docker.containers {
		if err := h.lab.remove(c.Node); err != nil {
			h.lab.Fatalf("removing container %s: %v", c.Name, err)
		}
	}
	// The kernel removes a namespace's devices in its own time; the ports
	// have to be gone now, so that their names are free.
	links, err := h.nl.LinkList()
	h.lab.Must(err)
	index := 0
	for _, link := range links {
		if link.Attrs().Name == dockerBridge {
			index = link.Attrs().Index
		}
	}
	for _, link := range links {
		if a := link.Attrs(); a.Index == index || a.MasterIndex == index && index != 0 {
			// It may just have gone with its namespace.
			if err := h.nl.LinkDel(link); err != nil {
				if _, gone := h.nl.LinkByIndex(a.Index); gone == nil {
					h.lab.Fatalf("removing %s on %s: %v", a.Name, h.Name, err)
				}
			}
		}
	}
	h.docker = nil
}
