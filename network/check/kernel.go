package check

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"flanneld/backend/hostgw"
	"flanneld/backend/udp"
	"flanneld/backend/vxlan"
	"flanneld/pkg/rtnl"
)

// modules tells what the kernel is made of, by what the file system says of it.
type modules struct{ root fs.FS }

// A presence is whether the kernel has a part of itself.
type presence int

const (
	// present: it is built in or loaded.
	present presence = iota
	// loadable: it is a module that the kernel loads itself when it is first used.
	loadable
	// absent: neither that, nor can it be loaded.
	absent
	// unknown: it is not loaded, and the modules of this kernel are not to be seen, as
	// in a container.
	unknown
)

// find looks for a module by its name, such as "vxlan". One that is built in and has
// no parameters shows in the list of those only, so that without any it is taken for
// absent.
func (m modules) find(name string) presence {
	if _, err := fs.Stat(m.root, "sys/module/"+name); err == nil {
		return present
	}
	dir := "lib/modules/" + m.release()
	builtin, err := fs.ReadFile(m.root, dir+"/modules.builtin")
	if err == nil && listed(builtin, name) {
		return present
	}
	// The one is missing where the kernel takes no modules, the other is set where it
	// takes no more.
	disabled, _ := fs.ReadFile(m.root, "proc/sys/kernel/modules_disabled")
	if _, err := fs.Stat(m.root, "proc/modules"); err != nil || strings.TrimSpace(string(disabled)) == "1" {
		return absent
	}
	there, err := fs.ReadFile(m.root, dir+"/modules.dep")
	switch {
	case err != nil:
		return unknown
	case listed(there, name):
		return loadable
	}
	return absent
}

// release is the kernel's, as in /lib/modules/6.1.0-18-amd64.
func (m modules) release() string {
	text, err := fs.ReadFile(m.root, "proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

// tun is what has become of TUN, which shows among the kernel's small devices also
// where it is built in.
func (m modules) tun() presence {
	devices, err := fs.ReadFile(m.root, "proc/misc")
	for line := range strings.Lines(string(devices)) {
		if f := strings.Fields(line); err == nil && len(f) == 2 && f[1] == "tun" {
			return present
		}
	}
	return m.find("tun")
}

// listed reports whether a module is in a list of files such as
// kernel/drivers/net/tun.ko.xz, each with a colon and more behind it or not.
func listed(list []byte, name string) bool {
	for lines := bufio.NewScanner(bytes.NewReader(list)); lines.Scan(); {
		file, _, _ := strings.Cut(lines.Text(), ":")
		if base, _, is := strings.Cut(path.Base(file), ".ko"); is && base == name {
			return true
		}
	}
	return false
}

// kernelFeatures looks at what backends need of the kernel, or are faster with.
func kernelFeatures(backendType string, m modules) []Finding {
	found := []Finding{
		part("VXLAN", "vxlan", m.find("vxlan"), backendType, vxlan.Type),
		part("TUN", "tun", m.tun(), backendType, udp.Type),
		nextHops(backendType, askNextHops()),
	}
	const name = "udp offloads"
	switch {
	case backendType != udp.Type:
		return append(found, skipped(name, "only the udp backend has a use for them"))
	case m.tun() != present:
		return append(found, skipped(name, "TUN is not loaded, by which they are tried"))
	}
	lacks, err := udp.Lacks()
	return append(found, offloads(lacks, err))
}

// part judges something that one backend cannot do without.
func part(name, module string, p presence, backendType, neededBy string) Finding {
	load := "run \"modprobe " + module + "\" and see what it says, install the package with all modules of this kernel, or choose another backend"
	switch {
	case p == present:
		return ok(name, "the kernel has it")
	case p == loadable:
		return ok(name, "a module, which the kernel loads when it is first used")
	case backendType != neededBy && backendType != "":
		return ok(name, "the kernel does not have it, and the backend %s does without", backendType)
	case p == unknown:
		return warning(name, "where this is not a container, "+load, "it is not loaded, and the modules of this kernel are not to be seen here")
	case backendType == "":
		return warning(name, load, "the kernel does not have it, which the backend %s needs", neededBy)
	}
	return failure(name, load, "the kernel does not have it, which the backend %s needs", neededBy)
}

// askNextHops asks the kernel for its next-hop objects, which is an error before
// there were such.
func askNextHops() error {
	s, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer s.Close()
	return s.NextHops(func(rtnl.NextHop) {})
}

func nextHops(backendType string, err error) Finding {
	const name = "next-hop objects"
	switch {
	case err == nil:
		return ok(name, "the kernel has them")
	case backendType == udp.Type:
		return ok(name, "the kernel does not have them, and the backend %s does without", udp.Type)
	case errors.Is(err, unix.EOPNOTSUPP):
		return warning(name, "with thousands of hosts use Linux 5.3 or newer", "the kernel does not have them: with %s or %s and thousands of hosts, a start takes many times as long", vxlan.Type, hostgw.Type)
	}
	return warning(name, "see whether something keeps flanneld from netlink", "they cannot be asked for: %v", err)
}

func offloads(lacks string, err error) Finding {
	const name = "udp offloads"
	switch {
	case err != nil:
		return skipped(name, "they cannot be tried: %v", err)
	case lacks != "":
		return warning(name, "use Linux 6.2 or newer if that matters", "packets will be carried more slowly than could be: the kernel lacks %s", lacks)
	}
	return ok(name, "the kernel has all")
}
