package network

import (
	"errors"
	"fmt"
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
	if forwarding() == nil {
		return
	}
	if err := os.WriteFile(ForwardingFile, []byte("1\n"), 0o644); err != nil {
		klog.Errorf("IPv4 forwarding is off, so that containers reach no other host, and cannot be turned on: %v; run `sysctl -w net.ipv4.ip_forward=1`", err)
		return
	}
	klog.Info("Turned on IPv4 forwarding (net.ipv4.ip_forward)")
}

// forwarding is an error while this host forwards nothing. Somebody may turn that off
// while flanneld runs, as when sysctl.d(5) is applied again, and may mean it: so it is
// said, and not turned on again.
func forwarding() error {
	now, err := os.ReadFile(ForwardingFile)
	if err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	if strings.TrimSpace(string(now)) != "1" {
		return errors.New("forwarding: net.ipv4.ip_forward is off, so that containers reach no other host: run `sysctl -w net.ipv4.ip_forward=1`, and see what has turned it off")
	}
	return nil
}
