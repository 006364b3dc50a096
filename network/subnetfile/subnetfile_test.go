package subnetfile

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"flanneld/subnet"
)

func TestSubnetFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a", "b", "subnet.env")
	network, own := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.74.0/24")
	if err := Write(name, network, own, 1472, false); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if want := "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"; err != nil || string(text) != want {
		t.Errorf("%v, got\n%swant\n%s", err, text, want)
	}
	if got, err := Read(name); err != nil || got != own {
		t.Errorf("read back as %v, %v", got, err)
	}
}

// A file system that may not be written is most often the doing of the unit's
// sandbox, and the error says what to add to it.
func TestSandboxHint(t *testing.T) {
	const name = "/etc/flannel/subnet.env"
	for err, want := range map[error]string{
		&fs.PathError{Op: "open", Path: name, Err: syscall.EROFS}:  " (is it the sandbox of the unit? add ReadWritePaths=/etc/flannel to it)",
		&fs.PathError{Op: "open", Path: name, Err: syscall.ENOSPC}: "",
	} {
		if got := sandboxHint(name, err); got != want {
			t.Errorf("%v: %q", err, got)
		}
	}
}

func TestReadSubnetFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "subnet.env")
	for text, want := range map[string]string{
		"FLANNEL_SUBNET=172.7.21.1/24\n":                               "172.7.21.0/24",
		"FLANNEL_SUBNET=172.7.21.1/24":                                 "172.7.21.0/24",
		"# mine\r\n  FLANNEL_SUBNET=\"172.7.21.1/24\"\r\nX=1\n":        "172.7.21.0/24",
		"export FLANNEL_SUBNET=172.7.21.1/24 # rack 7\n":               "172.7.21.0/24",
		"\ufeffFLANNEL_SUBNET=172.7.21.1/24;\n":                        "172.7.21.0/24",
		"FLANNEL_SUBNET=x\nFLANNEL_SUBNET=172.7.21.1/24\n":             "172.7.21.0/24",
		"FLANNEL_SUBNET=172.7.20.1/24\nFLANNEL_SUBNET=172.7.21.1/24\n": "172.7.21.0/24",
		"FLANNEL_SUBNET='172.7.21.0/24'":                               "172.7.21.0/24",
		"":                                                             "it has no line FLANNEL_SUBNET=…",
		"FLANNEL_SUBNET=":                                              `FLANNEL_SUBNET is "", which is no IPv4 prefix`,
		"FLANNEL_SUBNET=172.7.21.1":                                    `FLANNEL_SUBNET is "172.7.21.1", which is no IPv4 prefix`,
		"FLANNEL_SUBNET=fd00::1/64":                                    `FLANNEL_SUBNET is "fd00::1/64", which is no IPv4 prefix`,
		"FLANNEL_NETWORK=172.7.0.0/16\n":                               "it has no line FLANNEL_SUBNET=…",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Read(name)
		if s := got.String(); err != nil && err.Error() != want || err == nil && s != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
}

// The Network of the last run is in the subnet file, unless an operator wrote that
// by hand.
func TestNetwork(t *testing.T) {
	name := filepath.Join(t.TempDir(), "subnet.env")
	for text, want := range map[string]netip.Prefix{
		"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n":          netip.MustParsePrefix("10.1.0.0/16"),
		"export FLANNEL_NETWORK=\"10.1.0.1/16\"\nFLANNEL_SUBNET=10.1.74.1/24": netip.MustParsePrefix("10.1.0.0/16"),
		"FLANNEL_SUBNET=10.1.74.1/24\n":                                       {},
		"FLANNEL_NETWORK=mine\n":                                              {},
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := Network(name); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if got := Network(name + ".none"); got.IsValid() {
		t.Errorf("without a file: %v", got)
	}
}

// A subnet file that an operator wrote by hand is not the daemon's, nor is a file beside
// it that only bears the name.
func TestFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "subnet.env")
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...string) {
		t.Helper()
		if got := Files(name); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	check()
	write(name, "FLANNEL_SUBNET=10.1.74.1/24\n")
	check()
	write(name+".bak", "")
	for _, others := range []string{"", "{}", "mine\n", `{"MAC": "02:00:00:00:00:01"}`} {
		write(name+".lease", others)
		check()
	}
	memory := Memory{File: name}
	memory.Keep(subnet.Lease{Subnet: netip.MustParsePrefix("10.1.74.0/24"), Attrs: subnet.Attrs{PublicIP: netip.MustParseAddr("172.30.0.11")}})
	check(name + ".lease")
	if err := Write(name, netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.74.0/24"), 1450, true); err != nil {
		t.Fatal(err)
	}
	check(name, name+".lease")
}

// What is no regular file is neither waited for nor removed.
func TestNoRegularFile(t *testing.T) {
	for what, make := range map[string]func(name string) error{
		"a named pipe": func(name string) error { return syscall.Mkfifo(name, 0o644) },
		"a directory":  func(name string) error { return os.Mkdir(name, 0o755) },
	} {
		name := filepath.Join(t.TempDir(), "subnet.env")
		for _, file := range []string{Beside(name), name} {
			if err := make(file); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := Read(name); err == nil || err.Error() != "it is not a regular file" {
			t.Errorf("%s: read as %v, %v", what, p, err)
		}
		if got := Files(name); len(got) > 0 {
			t.Errorf("%s: %q count as the daemon's", what, got)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		own := netip.MustParsePrefix("10.1.74.0/24")
		if err := Write(name, netip.MustParsePrefix("10.1.0.0/16"), own, 1450, true); err != nil {
			t.Fatal(err)
		}
		memory := Memory{File: name, HasMAC: func(string) bool { return true }}
		if got := memory.Recall(); got != (subnet.Remembered{Subnet: own}) {
			t.Errorf("%s beside it: recalled %+v", what, got)
		}
	}
}

// What is remembered over a restart, and by whom it is believed.
func TestMemory(t *testing.T) {
	name := filepath.Join(t.TempDir(), "subnet.env")
	own := netip.MustParsePrefix("10.1.74.0/24")
	lease := subnet.Lease{Subnet: own, Attrs: subnet.Attrs{PublicIP: netip.MustParseAddr("172.30.0.11")}, Revision: 42}
	whole := subnet.Remembered{Subnet: own, PublicIP: lease.PublicIP, Revision: 42}

	here := Memory{File: name, MAC: "02:00:00:00:00:01", HasMAC: func(mac string) bool { return mac == "02:00:00:00:00:01" }}
	clone := Memory{File: name, MAC: "02:00:00:00:00:02", HasMAC: func(mac string) bool { return mac == "02:00:00:00:00:02" }}
	if got := here.Recall(); got != (subnet.Remembered{}) {
		t.Errorf("with nothing there: %+v", got)
	}
	here.Keep(lease)
	if got := here.Recall(); got != (subnet.Remembered{}) {
		t.Errorf("without a subnet file: %+v", got)
	}
	write := func(own netip.Prefix) {
		if err := Write(name, netip.MustParsePrefix("10.1.0.0/16"), own, 1500, true); err != nil {
			t.Fatal(err)
		}
	}
	write(own)
	if got := here.Recall(); got != whole {
		t.Errorf("recalled %+v, want %+v", got, whole)
	}
	if got := clone.Recall(); got != (subnet.Remembered{Subnet: own}) {
		t.Errorf("a clone of the host recalls %+v", got)
	}
	if err := os.WriteFile(here.file(), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := here.Recall(); got != (subnet.Remembered{Subnet: own}) {
		t.Errorf("from a damaged file: %+v", got)
	}
	here.Keep(lease)
	write(netip.MustParsePrefix("10.1.75.0/24"))
	if got := here.Recall(); got.PublicIP.IsValid() || got.Subnet.String() != "10.1.75.0/24" {
		t.Errorf("with a subnet file about another subnet: %+v", got)
	}
	if err := os.WriteFile(name, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := here.Recall(); got != (subnet.Remembered{}) {
		t.Errorf("with a damaged subnet file: %+v", got)
	}
}

// A file is replaced whole or not at all, and nothing is left beside it.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	for _, text := range []string{"one", "two"} {
		if err := replaceFile(name, text); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	if err := replaceFile(dir, "x"); err == nil {
		t.Error("a directory was replaced")
	}
	if err := replaceFile(filepath.Join(name, "below"), "x"); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("below a file: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
