package network

import (
	"os"
	"strings"

	"k8s.io/klog/v2"
)

// ForwardingFile is the kernel's switch for passing packets from one interface
// to another (ip-sysctl.rst in the kernel's documentation).
const ForwardingFile = "/proc/sys/net/ipv4/ip_forward"

// enableForwarding makes this host a router between its containers and the
// others. dockerd does so too, but starts later, and does not have to be there.
func enableForwarding() {
	now, err := os.ReadFile(ForwardingFile)
	if err == nil && strings.TrimSpace(string(now)) == "1" {
		return
	}
	if err := os.WriteFile(ForwardingFile, []byte("1\n"), 0o644); err != nil {
		klog.Errorf("IPv4 forwarding is off, so that containers reach no other host, and cannot be turned on: %v; run `sysctl -w net.ipv4.ip_forward=1`", err)
		return
	}
	klog.Info("Turned on IPv4 forwarding (net.ipv4.ip_forward)")
}
