package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"flanneld/pkg/lab/cluster"
)

// troubles make what the entries of the troubleshooting page are about.
var troubles = map[string]func(x *scene){
	"Where to look first": func(x *scene) {
		x.pair(vxlanConfig, "-healthz-port=2401")
	},
	"A peer is silent: a firewall drops the packets between the hosts": func(x *scene) {
		_, h2 := x.pair(vxlanConfig, "")
		h2.Run("sh", "-ec", `
			iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
			iptables -A INPUT -p icmp -j ACCEPT
			iptables -A INPUT -p tcp --dport 22 -j ACCEPT
			iptables -A INPUT -j REJECT --reject-with icmp-host-prohibited`)
	},
	"All is well, but containers do not reach each other: dockerd has another subnet": func(x *scene) {
		_, h2 := x.pair(vxlanConfig, "")
		h2.RemoveContainers()
		x.containers["c2"] = h2.Container("c", netip.MustParsePrefix("172.17.0.1/16"), 1500)
	},
	"All is well, but containers do not reach each other: the host drops what it forwards": func(x *scene) {
		h1, _ := x.pair(vxlanConfig, "-iptables-forward-rules=false")
		h1.Run("iptables", "-P", "FORWARD", "DROP")
	},
	"flanneld is not ready: it waits for the network config": func(x *scene) {
		x.Prefix = "/atomic.io/network"
		x.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`)
		x.start(x.host(1, x.lan, "172.30.0.11", ""))
	},
	"flanneld is not ready: the network config cannot be used": func(x *scene) {
		x.SetConfig(`{"Netwrok": "10.1.0.0/16"}`)
		x.start(x.host(1, x.lan, "172.30.0.11", ""))
	},
	"flanneld is not ready: etcd does not answer": func(x *scene) {
		x.SetConfig(vxlanConfig)
		x.Etcd.Stop()
		x.startEtcd = x.Etcd.Restart
		x.start(x.host(1, x.lan, "172.30.0.11", ""))
	},
	"flanneld is not ready: etcd has no v2 API": func(x *scene) {
		x.SetConfig(vxlanConfig)
		x.Etcd.Stop()
		without := x.Etcd.Host().Etcd("--enable-v2=false")
		x.startEtcd = func() {
			if text, _ := os.ReadFile(filepath.Join(x.Etcd.Host().Dir, "etcd")); string(text) == "ETCD_ENABLE_V2=true\n" {
				without.Stop()
				x.Etcd.Restart()
			}
		}
		x.start(x.host(1, x.lan, "172.30.0.11", ""))
	},
	"flanneld does not run": func(x *scene) {
		h1, _ := x.pair(vxlanConfig, "")
		h1.Stop()
	},
	"A peer is silent: its public IP is that of the wrong interface": func(x *scene) {
		x.SetConfig(vxlanConfig)
		nat := x.Segment("nat", netip.MustParsePrefix("10.0.2.0/24"))
		x.Router.Run("iptables", "-A", "FORWARD", "-i", nat.Name, "-o", x.lan.Name, "-j", "DROP")
		x.Router.Run("iptables", "-A", "FORWARD", "-i", x.lan.Name, "-o", nat.Name, "-j", "DROP")
		x.up(x.host(1, x.lan, "172.30.0.11", ""))
		h2 := x.host(2, nat, "10.0.2.15", "")
		h2.Attach(x.lan, netip.MustParseAddr("172.30.0.12"))
		x.up(h2)
	},
	"Small packets arrive, large ones do not": func(x *scene) {
		x.pair(vxlanConfig, "")
		x.Router.Run("ip", "link", "set", "h2-eth0", "mtu", "1400")
	},
	"Containers reach each other, but nothing outside": func(x *scene) {
		x.pair(vxlanConfig, "")
	},
	"A peer is silent: its host is gone": func(x *scene) {
		_, h2 := x.pair(vxlanConfig, "")
		h2.Stop()
		h2.Run("ip", "link", "set", "eth0", "down")
		delete(x.hosts, "h2")
		delete(x.containers, "c2")
	},
	"A peer is not reached: it has another backend": func(x *scene) {
		_, h2 := x.pair(vxlanConfig, "")
		x.SetConfig(hostgwConfig)
		h2.Stop()
		x.up(h2)
	},
	"A peer is not reached: with host-gw, it is on another segment": func(x *scene) {
		x.SetConfig(hostgwConfig)
		x.up(x.host(1, x.lan, "172.30.0.11", ""))
		x.up(x.host(2, x.Segment("far", netip.MustParsePrefix("172.31.0.0/24")), "172.31.0.12", ""))
	},
	"A route is in the way": func(x *scene) {
		h1, _ := x.pair(vxlanConfig, "")
		h1.Run("ip", "route", "replace", "10.1.2.0/24", "via", "172.30.0.1", "proto", "static")
	},
	"The lease keeps changing hands: two hosts have one public IP": func(x *scene) {
		x.SetConfig(vxlanConfig)
		h1, h2 := x.host(1, x.lan, "172.30.0.11", ""), x.host(2, x.lan, "172.30.0.12", "-public-ip=172.30.0.11")
		x.up(h1)
		text, err := os.ReadFile(h1.SubnetFile())
		x.Must(err)
		x.Must(writeFile(h2.SubnetFile(), string(text)))
		x.up(h2)
	},
	"flanneld stops: another host has its subnet": func(x *scene) {
		x.SetConfig(vxlanConfig)
		h1, h2 := x.host(1, x.lan, "172.30.0.11", ""), x.host(2, x.lan, "172.30.0.12", "")
		x.up(h1)
		h1.Daemon.Pause()
		x.DeleteLease(fakeKey(1))
		reserve(x.Cluster, h2, 1)
		x.up(h2)
		h1.Daemon.Continue()
		x.fails(h1)
	},
	"flanneld stops: another VXLAN device is there": func(x *scene) {
		x.SetConfig(vxlanConfig)
		x.up(x.host(2, x.lan, "172.30.0.12", ""))
		h1 := x.host(1, x.lan, "172.30.0.11", "")
		h1.Run("ip", "link", "add", "vxlan0", "up", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0")
		x.start(h1)
		x.fails(h1)
	},
	"flanneld is not ready: all subnets are taken": func(x *scene) {
		x.SetConfig(`{"Network": "10.1.0.0/22", "SubnetLen": 24, "SubnetMax": "10.1.2.0", "Backend": {"Type": "host-gw"}}`)
		x.PutLease(fakeKey(1), `{"PublicIP":"172.30.0.21","BackendType":"host-gw"}`, 5*time.Hour)
		x.up(x.host(2, x.lan, "172.30.0.12", ""))
		x.start(x.host(1, x.lan, "172.30.0.11", ""))
	},
	"Peers answer, but containers do not reach each other: forwarding was turned off": func(x *scene) {
		h1, _ := x.pair(vxlanConfig, "")
		h1.Sysctl("net.ipv4.ip_forward", "0")
	},
	"flanneld does not answer": func(x *scene) {
		h1, _ := x.pair(vxlanConfig, "")
		h1.Daemon.Pause()
	},
}

const hostgwConfig = `{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`

// fails waits until a daemon has ended with exit status 1.
func (x *scene) fails(h *cluster.Node) {
	x.Helper()
	if status, err := h.Daemon.Wait(20 * time.Second); err != nil || status != 1 {
		x.Fatalf("flanneld on %v ends with status %d, %v", h, status, err)
	}
}
