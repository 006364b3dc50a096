package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// TUN says why TUN devices cannot be made here, nil if they can: without root
// /dev/net/tun is often closed, and a test that needs it should be skipped
// with that reason.
func TUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("no TUN devices here: %w (run as root, or chmod 0666 /dev/net/tun)", err)
	}
	return f.Close()
}

// packages names the Debian package of the tools that labs have use for.
var packages = map[string]string{
	"ip": "iproute2", "bridge": "iproute2", "tc": "iproute2", "ss": "iproute2",
	"iptables": "iptables", "iptables-save": "iptables",
	"go": "golang", "ping": "iputils-ping", "tcpdump": "tcpdump", "iperf3": "iperf3", "dockerd": "docker.io",
}

// Tools says in one line which of the named commands is missing and how to get
// it, nil if all are there.
func Tools(names ...string) error {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			pkg := packages[name]
			if pkg == "" {
				pkg = name
			}
			return fmt.Errorf("command %s is not in PATH: install package %s (apt-get install %s)", name, pkg, pkg)
		}
	}
	return nil
}

// known is Tools for what may be a path too, which exec itself checks, in the
// directory it starts the command in.
func known(command string) error {
	if strings.Contains(command, "/") {
		return nil
	}
	return Tools(command)
}
