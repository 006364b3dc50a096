package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

func parse(env map[string]string, args ...string) (options, error) {
	return parseFlags(daemon, args, func(name string) string { return env[name] }, io.Discard)
}

func TestDefaults(t *testing.T) {
	o, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := o.node
	if !slices.Equal(o.etcd.Endpoints, []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}) || o.etcd.Prefix != "/coreos.com/network" ||
		n.SubnetFile != "/run/flannel/subnet.env" || n.RenewMargin != time.Hour || n.IPMasq || n.FirewallResync != 5*time.Second ||
		!n.ForwardRules || n.HealthAddr.IsValid() || n.PublicIP.IsValid() || len(n.Interface.Ifaces) != 0 {
		t.Errorf("%+v", o)
	}
}

// The command lines in the field, word by word, after systemd and the shell
// have expanded their variables, empty ones among them.
func TestCommandLinesInTheField(t *testing.T) {
	for line, check := range map[string]func(o options) bool{
		"--public-ip=10.4.7.21 --etcd-endpoints=https://10.4.7.12:2379,https://10.4.7.21:2379,https://10.4.7.22:2379 --etcd-keyfile=./cert/client-key.pem --etcd-certfile=./cert/client.pem --etcd-cafile=./cert/ca.pem --iface=eth0 --subnet-file=./subnet.env --healthz-port=2401": func(o options) bool {
			return o.node.PublicIP == netip.MustParseAddr("10.4.7.21") && len(o.etcd.Endpoints) == 3 && o.etcd.KeyFile == "./cert/client-key.pem" &&
				o.etcd.CertFile == "./cert/client.pem" && o.etcd.CAFile == "./cert/ca.pem" && o.node.Interface.Ifaces[0] == "eth0" &&
				o.node.SubnetFile == "./subnet.env" && o.node.HealthAddr == netip.MustParseAddrPort("0.0.0.0:2401")
		},
		"-etcd-endpoints=http://10.0.0.1:2379 -iface=eth1 -etcd-prefix=/atomic.io/network -ip-masq=true -v=0": func(o options) bool {
			return o.node.IPMasq && o.node.Interface.Ifaces[0] == "eth1" && o.etcd.Prefix == "/atomic.io/network"
		},
		"-etcd-endpoints=http://10.0.0.1:2379 -iface= -etcd-prefix=/atomic.io/network ": func(o options) bool { return len(o.etcd.Endpoints) == 1 },
		"-etcd-endpoints=http://10.0.0.1:2379 -etcd-prefix=/kubernetes/network":         func(o options) bool { return o.etcd.Prefix == "/kubernetes/network" },
		" -ip-masq": func(o options) bool { return o.node.IPMasq },
		"-etcd-endpoints=http://10.99.132.21:2379 -etcd-prefix=/dudu_flannel/network -logtostderr=true -v=3 -iface=eth0": func(o options) bool { return o.etcd.Prefix == "/dudu_flannel/network" },
		"--iface eth0 --iface 10.0.0.7 --iface-regex ^10\\.1\\. -iface-regex ^ens --iface-can-reach 10.0.0.1 --subnet-lease-renew-margin 30 --iptables-resync 60 --iptables-forward-rules=false --healthz-ip 127.0.0.1 --healthz-port 80 --etcd-username u --etcd-password p": func(o options) bool {
			i := o.node.Interface
			return slices.Equal(i.Ifaces, []string{"eth0", "10.0.0.7"}) && slices.Equal(i.Regexes, []string{`^10\.1\.`, "^ens"}) && i.CanReach == netip.MustParseAddr("10.0.0.1") &&
				o.node.RenewMargin == 30*time.Minute && o.node.FirewallResync == time.Minute && !o.node.ForwardRules &&
				o.node.HealthAddr == netip.MustParseAddrPort("127.0.0.1:80") && o.etcd.Username == "u" && o.etcd.Password == "p"
		},
	} {
		o, err := parse(nil, strings.Split(line, " ")...)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		} else if !check(o) {
			t.Errorf("%s: %+v", line, o)
		}
	}
}

func TestEnvironment(t *testing.T) {
	env := map[string]string{
		"FLANNELD_ETCD_ENDPOINTS": "http://10.0.0.1:2379", "FLANNELD_IP_MASQ": "true", "FLANNELD_IFACE": "eth3",
		"FLANNELD_VERSION": "v0.11.0", "FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "7", "FLANNELD_ETCD_PREFIX": "", "FLANNELD_V": "0",
	}
	o, err := parse(env, "--subnet-lease-renew-margin=8")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.etcd.Endpoints, []string{"http://10.0.0.1:2379"}) || !o.node.IPMasq || o.node.Interface.Ifaces[0] != "eth3" ||
		o.node.RenewMargin != 8*time.Minute || o.etcd.Prefix != "/coreos.com/network" {
		t.Errorf("%+v", o)
	}
	_, err = parse(map[string]string{"FLANNELD_IPTABLES_RESYNC": "often"})
	if err == nil || !strings.HasPrefix(err.Error(), "FLANNELD_IPTABLES_RESYNC=often in the environment: ") {
		t.Error(err)
	}
}

func TestBadUsage(t *testing.T) {
	for line, want := range map[string]string{
		"--nonsense":                     "flag provided but not defined: -nonsense",
		"lease":                          `"lease" is neither a flag nor a command, see --help`,
		"--etcd-endpoints=10.0.0.1:2379": `--etcd-endpoints: "10.0.0.1:2379" is not a URL like http://10.0.0.1:2379`,
		"--etcd-endpoints=":              "--etcd-endpoints: no endpoint is given",
		"--etcd-prefix=/":                "--etcd-prefix: must not be empty",
		"--etcd-certfile=x":              "--etcd-certfile needs --etcd-keyfile beside it",
		"--etcd-keyfile=x":               "--etcd-keyfile needs --etcd-certfile beside it",
		"--etcd-username=x":              "--etcd-username needs --etcd-password beside it",
		"--etcd-password=x":              "--etcd-password needs --etcd-username beside it",
		"--etcd-endpoints=http://user:open-sesame@10.0.0.1:2379": `--etcd-endpoints: there is an @ with something before it in the URL with "@10.0.0.1:2379": a user is given by --etcd-username and FLANNELD_ETCD_PASSWORD`,
		"--etcd-endpoints=htp://user:open-s@esame@10.0.0.1:2379": `--etcd-endpoints: there is an @ with something before it in the URL with "@10.0.0.1:2379"`,
		"--subnet-lease-renew-margin=0":                          "--subnet-lease-renew-margin=0: must be from 1 to 1439",
		"--subnet-lease-renew-margin=1440":                       "--subnet-lease-renew-margin=1440: must be from 1 to 1439",
		"--iptables-resync=0":                                    "--iptables-resync=0: must be from 1 to 86400",
		"--iptables-resync=x":                                    `invalid value "x" for flag -iptables-resync: parse error`,
		"--healthz-port=65536":                                   "--healthz-port=65536: must be from 0 to 65535",
		"--healthz-port=1 --healthz-ip=x":                        "--healthz-ip=x: not an IP address",
		"--public-ip=fd00::1":                                    "--public-ip=fd00::1: not an IPv4 address",
		"--public-ip=0.0.0.0":                                    "--public-ip=0.0.0.0: not an address of a host",
		"--public-ip=127.0.0.1":                                  "--public-ip=127.0.0.1: not an address of a host",
		"--iface-can-reach=gateway":                              "--iface-can-reach=gateway: not an IPv4 address",
		"--iface-regex=(":                                        "--iface-regex=( is not a regular expression",
		"--subnet-file=":                                         "--subnet-file: must not be empty",
		"--ip-masq=maybe":                                        `invalid boolean value "maybe" for -ip-masq: parse error`,
	} {
		o, err := parse(nil, strings.Fields(line)...)
		if err == nil {
			t.Errorf("%s: accepted as %+v", line, o)
		} else if !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "esame") {
			t.Errorf("%s:\n got %v\nwant %s", line, err, want)
		}
		var stdout, stderr bytes.Buffer
		if status := run(strings.Fields(line), func(string) string { return "" }, &stdout, &stderr); status != 2 || strings.Count(stderr.String(), "\n") != 1 || stdout.Len() != 0 {
			t.Errorf("%s: status %d, stdout %q, stderr %q", line, status, &stdout, &stderr)
		}
	}
}

// Whatever is wrong with the quotes and blanks of a command line, what may be of
// the password is not shown; and as much of the rest as there can be is.
func TestBadUsageKeepsPassword(t *testing.T) {
	const hidden = "an argument cannot be read; it is not shown, as it may hold the password: see the quotes and blanks around --etcd-password"
	const stray = "there is an argument that is neither a flag nor a command, see --help; it is not shown, as it may hold the password: see the quotes"
	defer klog.CaptureState().Restore()
	t.Chdir(t.TempDir()) // klog keeps what its flags were set to last
	inEnvironment := map[string]string{"FLANNELD_IP_MASQ": "true -etcd-password=open-sesame"}
	for _, test := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{nil, []string{"--etcd-username=x", "--etcd-password=very", "open-sesame"}, stray},
		{nil, []string{"--etcd-password=", "open-sesame"}, stray},
		{nil, []string{"--etcd-password=", "open-sesame", "--help"}, stray},
		{nil, []string{`"--etcd-password=open-sesame"`}, stray},
		{nil, []string{"“--etcd-password=open-sesame”"}, stray},
		{nil, []string{"etcd-password=open-sesame"}, stray},
		{nil, []string{`"--etcd-pass=open-sesame"`}, `"\"--etcd-pass" is neither a flag nor a command`},
		{nil, []string{"-etcd-password open-sesame"}, "flag provided but not defined: -etcd-password"},
		{nil, []string{"-etcd-pasword open-sesame"}, "flag provided but not defined: -etcd-pasword"},
		{nil, []string{"-etcd-pass open-sesame"}, "flag provided but not defined: -etcd-pass"},
		{nil, []string{"-etcd-pasword", "open-sesame"}, "flag provided but not defined: -etcd-pasword"},
		{nil, []string{"-etcd-password:open-sesame"}, hidden},
		{nil, []string{"-etcd-passwordopen-sesame"}, hidden},
		{nil, []string{"---etcd-password=open-sesame"}, hidden},
		{nil, []string{"-=open-sesame"}, "bad flag syntax: -"},
		{nil, []string{"--etcd-password=", "-open-sesame"}, hidden},
		{nil, []string{"--etcd-password=very", "--iptables-resync=5open-sesame"}, "--iptables-resync: its value cannot be read; it is not shown, "},
		{nil, []string{"-ip-masq=true -etcd-username=u -etcd-password=open-sesame"}, "--ip-masq: its value cannot be read; it is not shown, as it may hold the password: see the quotes"},
		{nil, []string{"-v=0 -etcd-username=u -etcd-password=open-sesame"}, "--v: its value cannot be read; it is not shown, "},
		{nil, []string{"--iptables-resync", "--etcd-password=open-sesame"}, "--iptables-resync: its value cannot be read; it is not shown, "},
		{nil, []string{"-iface=eth0 -etcd-username=u -etcd-password=open-sesame"}, "--iface: its value has --etcd-password in it: "},
		{nil, []string{"--public-ip", "--etcd-password=open-sesame"}, "--public-ip: its value has --etcd-password in it: "},
		{nil, []string{"-log_dir", "-etcd-password=open-sesame"}, "--log_dir: its value has --etcd-password in it: "},
		{inEnvironment, nil, "FLANNELD_IP_MASQ in the environment: its value cannot be read; it is not shown, "},
		{nil, []string{"--etcd-endpoints=http://user:hunt,open-sesame@10.0.0.1:2379"}, `--etcd-endpoints: there is an @ with something before it in the URL with "@10.0.0.1:2379"`},
		{nil, []string{"--etcd-endpoints=http://u:open-sesame@10.0.0.1:2379,http://u:open-sesame@10.0.0.2:2379"}, `--etcd-endpoints: there is an @ with something before it in the URL with "@10.0.0.2:2379"`},

		{nil, []string{"--nonsense", "--etcd-password=open-sesame"}, "flag provided but not defined: -nonsense"},
		{nil, []string{"--nonsense=7", "--etcd-password=open-sesame"}, "flag provided but not defined: -nonsense"},
		{nil, []string{"--etcd-username=x", "--etcd-password=open-sesame", "--iface"}, "flag needs an argument: -iface"},
		{nil, []string{"--etcd-username=x", "--etcd-password=open-sesame", "--healthz-port=65536"}, "--healthz-port=65536: must be from 0 to 65535"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(test.args, func(name string) string { return test.env[name] }, &stdout, &stderr)
		said := stderr.String()
		if status != 2 || strings.Count(said, "\n") != 1 || stdout.Len() != 0 || !strings.HasPrefix(said, "flanneld: "+test.want) || strings.Contains(said, "esame") {
			t.Errorf("%q: status %d, stdout %q, stderr\n%swant\n%s", test.args, status, &stdout, said, test.want)
		}
	}
}

// A password in which there is the name of a flag, or files that are called after
// it, are no bad usage.
func TestPasswordTakenAsItIs(t *testing.T) {
	o, err := parse(nil, "--etcd-username=u", "--etcd-password", "--etcd-password=x y", "--etcd-prefix=/passwords", "--etcd-cafile=/etc/etcd-password/ca.pem")
	if err != nil || o.etcd.Password != "--etcd-password=x y" {
		t.Errorf("%q, %v", o.etcd.Password, err)
	}
}

// Log files that cannot be written are bad usage, and on a file system that is
// read-only, as all is in a unit's sandbox, there is a hint.
func TestLogFilesUnwritable(t *testing.T) {
	there := t.TempDir()
	if err := os.WriteFile(there+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hint := func(dir string) string {
		return "; is it the unit's sandbox? add ReadWritePaths=" + dir + " to it, and have the directory there before it starts"
	}
	ro := readOnly(t)
	for _, test := range []struct{ arg, want string }{
		{"-log_dir=" + ro + "/new", "making the directory for the log files: mkdir " + ro + "/new: read-only file system" + hint(ro+"/new")},
		{"-log_dir=" + ro + "/old", "making log files in " + ro + "/old: read-only file system" + hint(ro+"/old")},
		{"-log_file=" + ro + "/old/log", "opening the log file: open " + ro + "/old/log: read-only file system" + hint(ro+"/old")},
		{"-log_dir=" + there + "/file", "making the directory for the log files: mkdir " + there + "/file: not a directory"},
		{"-log_file=" + there, "opening the log file: open " + there + ": is a directory"},
	} {
		state := klog.CaptureState() // klog's flags are the process's
		var stdout, stderr bytes.Buffer
		status := run([]string{test.arg}, func(string) string { return "" }, &stdout, &stderr)
		state.Restore()
		if want := "flanneld: " + test.want + "\n"; status != 2 || stderr.String() != want {
			t.Errorf("%s: status %d,\n got %swant %s", test.arg, status, &stderr, want)
		}
	}
	defer klog.CaptureState().Restore()
	if _, err := parse(nil, "-logtostderr=true", "-log_dir="+ro+"/old"); err != nil {
		t.Errorf("where it is not used: %v", err)
	}
}

// readOnly is a file system that is so, with a directory old. The test's mounts are
// its own.
func readOnly(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(dir+"/old", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestHelpAndVersion(t *testing.T) {
	for _, arg := range []string{"-version", "--version"} {
		var stdout, stderr bytes.Buffer
		if status := run([]string{arg}, func(string) string { return "" }, &stdout, &stderr); status != 0 || stdout.String() != "flanneld "+version+"\n" || stderr.Len() != 0 {
			t.Errorf("%s: status %d, stdout %q, stderr %q", arg, status, &stdout, &stderr)
		}
	}
	for _, arg := range []string{"-h", "-help", "--help"} {
		var stdout, stderr bytes.Buffer
		status := run([]string{arg}, func(string) string { return "" }, &stdout, &stderr)
		if status != 0 || stderr.Len() != 0 {
			t.Errorf("%s: status %d, stderr %q", arg, status, &stderr)
		}
		for _, name := range []string{"--etcd-endpoints=URLs", "--iface-can-reach", "--healthz-port", "--subnet-lease-renew-margin", "--vmodule", "--v="} {
			if !strings.Contains(stdout.String(), name) {
				t.Errorf("%s does not list %s", arg, name)
			}
		}
	}
	if _, err := parse(nil, "--help"); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

// What is the daemon and what a command, by the arguments of a process.
func TestIsDaemon(t *testing.T) {
	for line, want := range map[string]bool{
		"": true, "-iface=eth0": true, " -v=0": true, // an empty variable of a unit
		"status": false, "help": false, "help status": false, "check --output json": false, "--help": true,
	} {
		if got := isDaemon(strings.Split(line, " ")); got != want {
			t.Errorf("flanneld %s: %v", line, got)
		}
	}
}
