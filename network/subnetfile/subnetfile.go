// Package subnetfile is what this host keeps on disk of its subnet: the file from
// which dockerd's options are made, and, beside it, what the next run needs to
// prove that the lease is its own.
package subnetfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"flanneld/subnet"
)

// Write writes the file from which dockerd's options are made.
func Write(name string, network, own netip.Prefix, mtu int, masq bool) error {
	text := fmt.Sprintf("FLANNEL_NETWORK=%v\nFLANNEL_SUBNET=%v\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n",
		network, netip.PrefixFrom(own.Addr().Next(), own.Bits()), mtu, masq)
	if err := replaceFile(name, text); err != nil {
		return fmt.Errorf("writing the subnet file %s, without which dockerd must not start: %w%s", name, err, sandboxHint(name, err))
	}
	return nil
}

// sandboxHint is what to do about an error of writing a file, if it is one that
// the sandbox of flanneld.service makes, where hardly anything may be written: the
// file system is seldom read-only for another reason.
func sandboxHint(name string, err error) string {
	if !errors.Is(err, syscall.EROFS) {
		return ""
	}
	dir := filepath.Dir(name)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return fmt.Sprintf(" (is it the sandbox of the unit? add ReadWritePaths=%s to it)", dir)
}

// Read returns the subnet that the subnet file names. Such a file may
// have been written by hand, for a shell to read: FLANNEL_SUBNET is all it needs
// to have.
func Read(name string) (own netip.Prefix, err error) {
	return readPrefix(name, "FLANNEL_SUBNET")
}

// Network is the Network of the last run, invalid if the subnet file does
// not tell.
func Network(name string) netip.Prefix {
	p, err := readPrefix(name, "FLANNEL_NETWORK")
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// readPrefix returns the prefix that a variable in the subnet file holds. Of
// several lines with it the last counts.
func readPrefix(name, variable string) (p netip.Prefix, err error) {
	text, err := readFile(name)
	if err != nil {
		return netip.Prefix{}, err
	}
	err = fmt.Errorf("it has no line %s=…", variable)
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		value, ok := strings.CutPrefix(strings.TrimSpace(line), variable+"=")
		if !ok {
			continue
		}
		value, _, _ = strings.Cut(value, " #")
		value = strings.Trim(strings.TrimRight(value, "; \t"), `"'`)
		found, perr := netip.ParsePrefix(value)
		if perr != nil || !found.Addr().Is4() {
			err = fmt.Errorf("%s is %q, which is no IPv4 prefix", variable, value)
			continue
		}
		p, err = found.Masked(), nil
	}
	return p, err
}

// Memory keeps, beside the subnet file, what the file itself does not say: which
// lease the subnet was held by. With it a host whose address has changed can
// prove that the lease under its old address is its own.
type Memory struct {
	// File is the subnet file.
	File string
	// MAC is that of this host's interface. A clone of the host has the file
	// too, and must not take the lease from the host it was made of; it has
	// other MACs.
	MAC string
	// HasMAC reports whether some interface of this host has a MAC.
	HasMAC func(mac string) bool
}

// memoryJSON is the content of the Memory's file.
type memoryJSON struct {
	Subnet   netip.Prefix
	PublicIP netip.Addr
	Revision uint64
	MAC      string
}

// file is where a Memory is kept.
func (m Memory) file() string { return Beside(m.File) }

// Beside is the file that is kept beside a subnet file.
func Beside(subnetFile string) string { return subnetFile + ".lease" }

// Recall reads what is left of the last run. A file that is damaged is worth no
// more than one that is missing, as nothing is lost but the same subnet.
func (m Memory) Recall() subnet.Remembered {
	p, err := Read(m.File)
	if errors.Is(err, fs.ErrNotExist) {
		return subnet.Remembered{}
	} else if err != nil {
		klog.Warningf("The subnet file %s of the last run cannot be used: %v", m.File, err)
		return subnet.Remembered{}
	}
	last := subnet.Remembered{Subnet: p}
	kept, err := readMemory(m.file())
	if errors.Is(err, fs.ErrNotExist) {
		return last
	} else if err != nil {
		klog.Warningf("%s, about the lease of the last run, cannot be used: %v", m.file(), err)
		return last
	}
	if kept.Subnet == p && kept.MAC != "" && m.HasMAC(kept.MAC) {
		last.PublicIP, last.Revision = kept.PublicIP, kept.Revision
	}
	return last
}

// readMemory reads the file of a Memory.
func readMemory(name string) (kept memoryJSON, err error) {
	text, err := readFile(name)
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	return kept, err
}

// Keep notes the lease for the next run.
func (m Memory) Keep(l subnet.Lease) {
	text, err := json.Marshal(memoryJSON{Subnet: l.Subnet, PublicIP: l.PublicIP, Revision: l.Revision, MAC: m.MAC})
	if err == nil {
		err = replaceFile(m.file(), string(text)+"\n")
	}
	if err != nil {
		klog.Warningf("The lease cannot be noted for the next run, in which this host's address may be another: %v", err)
	}
}

// HostHasMAC is a Memory's HasMAC for the host this runs on.
func HostHasMAC(mac string) bool {
	ifaces, err := net.Interfaces()
	if err != nil {
		return false
	}
	for _, i := range ifaces {
		if i.HardwareAddr.String() == mac {
			return true
		}
	}
	return false
}

// Files are those of the files of a subnet file's name that a daemon has written and
// are there. A subnet file that does not tell the Network is one that an operator
// wrote, for the first start, and a file beside it that does not tell a lease is
// somebody's.
func Files(name string) (written []string) {
	if Network(name).IsValid() {
		written = append(written, name)
	}
	if kept, err := readMemory(Beside(name)); err == nil && kept.Subnet.IsValid() {
		written = append(written, Beside(name))
	}
	return written
}

// readFile reads a regular file. Any other, such as a named pipe, might keep its
// reader waiting forever.
func readFile(name string) ([]byte, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	return os.ReadFile(name)
}

// replaceFile writes a file whole or not at all, readable by all, and makes its
// directory if it is missing.
func replaceFile(name, text string) (err error) {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.WriteString(text); err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
