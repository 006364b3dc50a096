// Package dist_test tests the scripts that operators install, under every shell
// that may be /bin/sh somewhere.
package dist_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// shells are the ways in which units and people call a shell script.
var shells = map[string][]string{
	"dash":         {"dash"},
	"bash":         {"bash"},
	"bash --posix": {"bash", "--posix"},
	"busybox sh":   {"busybox", "sh"},
	"as a program": nil,
}

// eachShell runs test once for each shell there is; it gets what to put in
// front of the script's name.
func eachShell(t *testing.T, script string, test func(t *testing.T, command []string)) {
	path, err := filepath.Abs(script)
	if err != nil {
		t.Fatal(err)
	}
	for name, shell := range shells {
		t.Run(name, func(t *testing.T) {
			if len(shell) > 0 {
				if _, err := exec.LookPath(shell[0]); err != nil {
					t.Skipf("needs %s", shell[0])
				}
			}
			test(t, append(shell[:len(shell):len(shell)], path))
		})
	}
}

// result is what a script did.
type result struct {
	status         int
	stdout, stderr string
}

func run(t *testing.T, dir string, env []string, command ...string) result {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const sample = `FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.74.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
`

const each = `DOCKER_OPT_BIP="--bip=10.1.74.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=true"
DOCKER_OPT_MTU="--mtu=1472"
`

func TestDockerOpts(t *testing.T) {
	const all = `DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"` + "\n"
	replace := func(old, new string) string { return strings.Replace(sample, old, new, 1) }
	tests := []struct {
		name string
		in   string // sample when empty
		args []string
		env  []string
		want string
	}{
		{name: "both", want: each + all},
		{name: "both asked for", args: []string{"-ic"}, want: each + all},
		{name: "each", args: []string{"-i"}, want: each},
		{name: "combined", args: []string{"-c"}, want: all},
		{name: "name", args: []string{"-c", "-k", "DOCKER_NETWORK_OPTIONS"}, want: strings.Replace(all, "DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS", 1)},
		{name: "without ip-masq", args: []string{"-m"}, want: "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n" +
			"DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"},
		{name: "reverse", in: replace("=false", "=true"), args: []string{"-c"}, want: strings.Replace(all, "=true", "=false", 1)},
		{name: "options there", args: []string{"-c"}, env: []string{"DOCKER_OPTS=-H fd:// --debug"},
			want: `DOCKER_OPTS="-H fd:// --debug --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"` + "\n"},
		{name: "options there under a name", args: []string{"-ck", "X"}, env: []string{"X=--debug", "DOCKER_OPTS=--no"},
			want: `X="--debug --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"` + "\n"},
		{name: "options with all that is special", args: []string{"-c"}, env: []string{"DOCKER_OPTS=--label a=\"b c\" $HOME `id` \\ * -n %s 'x'"},
			want: `DOCKER_OPTS="--label a=\"b c\" \$HOME \` + "`id\\`" + ` \\ * -n %s 'x' --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"` + "\n"},
		{name: "flannel variables in the environment", env: []string{"FLANNEL_SUBNET=1.2.3.4/5", "FLANNEL_IPMASQ=true", "subnet=x", "mtu=y", "OPTIND=3", "DOCKER_OPT_BIP=z"}, want: each + all},
		{name: "quotes, comments, blank lines, other variables, no newline at the end", args: []string{"-i"}, want: each,
			in: "# by hand\n\n  \n  # more\n export FLANNEL_SUBNET=\"10.1.74.1/24\"\nOTHER=`false`\nFLANNEL_IPV6_NETWORK=\nFLANNEL_IPMASQ='false'\nFLANNEL_MTU=1472"},
		{name: "the last of two counts", args: []string{"-i"}, want: each, in: "FLANNEL_SUBNET=10.1.9.1/24\n" + sample},
		{name: "no ip-masq and not asked for", args: []string{"-mi"}, in: replace("FLANNEL_IPMASQ=false\n", ""),
			want: "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n"},
	}
	eachShell(t, "mk-docker-opts.sh", func(t *testing.T, command []string) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "a dir")
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				in, out := filepath.Join(dir, "subnet file"), filepath.Join(dir, "new $dir", "-more", "docker opts")
				if test.in == "" {
					test.in = sample
				}
				write(t, in, test.in)
				got := run(t, dir, test.env, append(command, append([]string{"-f", in, "-d", out}, test.args...)...)...)
				if got != (result{}) {
					t.Fatalf("%+v", got)
				}
				text, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.want, string(text)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if info, _ := os.Stat(out); info.Mode().Perm() != 0o644 {
					t.Errorf("mode %v", info.Mode())
				}
				if files, _ := os.ReadDir(filepath.Dir(out)); len(files) != 1 {
					t.Errorf("left behind: %v", files)
				}
			})
		}
	})
}

// What a shell gets from the file when it sources it is what was in the
// environment before, with the options behind.
func TestDockerOptsSourced(t *testing.T) {
	eachShell(t, "mk-docker-opts.sh", func(t *testing.T, command []string) {
		const before = "--label \"a b\" $HOME `id` \\\\ \\x 'y'"
		dir := t.TempDir()
		write(t, filepath.Join(dir, "in"), sample)
		if got := run(t, dir, []string{"DOCKER_OPTS=" + before}, append(command, "-c", "-f", "in", "-d", "out")...); got != (result{}) {
			t.Fatalf("%+v", got)
		}
		got := run(t, dir, nil, "sh", "-c", `. ./out; printf %s "$DOCKER_OPTS"`)
		if want := before + " --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"; got != (result{stdout: want}) {
			t.Errorf("%+v, want %s", got, want)
		}
	})
}

func TestDockerOptsErrors(t *testing.T) {
	replace := func(old, new string) string { return strings.Replace(sample, old, new, 1) }
	tests := []struct {
		name string
		in   string // sample when empty; "-" for no file
		args []string
		want result
	}{
		{"no file", "-", nil, result{1, "", "in does not exist: is flanneld running, with that --subnet-file?"}},
		{"a directory", "", []string{"-f", "."}, result{1, "", ". is a directory and not the file that flanneld writes"}},
		{"empty", "\n", nil, result{1, "", "in is broken: no FLANNEL_SUBNET in it"}},
		{"cut short", sample[:40], nil, result{1, "", "in is broken: line 2 is not NAME=VALUE: FLANNEL_SUBN"}},
		{"cut short between lines", replace("FLANNEL_IPMASQ=false\n", ""), nil, result{1, "", "in is broken: no FLANNEL_IPMASQ in it"}},
		{"no mtu", replace("FLANNEL_MTU=1472\n", ""), nil, result{1, "", "in is broken: no FLANNEL_MTU in it"}},
		{"ipmasq", replace("=false", "=yes"), nil, result{1, "", "in is broken: FLANNEL_IPMASQ=yes has to be true or false"}},
		{"ipmasq not asked for", replace("=false", "=yes"), []string{"-m"}, result{1, "", "in is broken: FLANNEL_IPMASQ=yes has to be true or false"}},
		{"mtu", replace("1472", "14x2"), nil, result{1, "", "in is broken: FLANNEL_MTU=14x2 has to be a number of bytes"}},
		{"subnet", replace("10.1.74.1/24", "10.1.74.1"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=10.1.74.1 has to be an address with a length, such as 10.1.74.1/24"}},
		{"subnet with a command", replace("10.1.74.1/24", "$(touch bad)/24"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=$(touch bad)/24 has to be an address with a length, such as 10.1.74.1/24"}},
		{"garbage", "FLANNEL_NETWORK=10.1.0.0/16\ntouch bad\n" + sample, nil, result{1, "", "in is broken: line 2 is not NAME=VALUE: touch bad"}},
		{"a command with =", "touch bad=1\n" + sample, nil, result{1, "", "in is broken: line 1 is not NAME=VALUE: touch bad=1"}},
		{"unknown option", "", []string{"-x"}, result{2, "", "there is no option -x; see mk-docker-opts.sh -h"}},
		{"long option", "", []string{"--file=x"}, result{2, "", "there is no option --; see mk-docker-opts.sh -h"}},
		{"no value", "", []string{"-k"}, result{2, "", "option -k needs a value; see mk-docker-opts.sh -h"}},
		{"no option", "", []string{"x y"}, result{2, "", "what is \"x y\" for? Only options are expected; see mk-docker-opts.sh -h"}},
		{"no name", "", []string{"-k", "A;touch bad"}, result{2, "", "-k \"A;touch bad\": not a name for a variable; see mk-docker-opts.sh -h"}},
		{"empty name", "", []string{"-k", ""}, result{2, "", "-k \"\": not a name for a variable; see mk-docker-opts.sh -h"}},
		{"output is a directory", "", []string{"-d", "."}, result{1, "", "cannot write .: it is a directory"}},
	}
	eachShell(t, "mk-docker-opts.sh", func(t *testing.T, command []string) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				dir := t.TempDir()
				if test.in == "" {
					test.in = sample
				}
				if test.in != "-" {
					write(t, filepath.Join(dir, "in"), test.in)
				}
				write(t, filepath.Join(dir, "out"), "before\n")
				got := run(t, dir, nil, append(command, append([]string{"-f", "in", "-d", "out"}, test.args...)...)...)
				want := test.want
				want.stderr = "mk-docker-opts.sh: " + want.stderr + "\n"
				if got != want {
					t.Errorf("got  %+v\nwant %+v", got, want)
				}
				if text, _ := os.ReadFile(filepath.Join(dir, "out")); string(text) != "before\n" {
					t.Errorf("output file changed to %q", text)
				}
				if _, err := os.Stat(filepath.Join(dir, "bad")); err == nil {
					t.Error("a command from outside was run")
				}
			})
		}
	})
}

func TestDockerOptsPlaces(t *testing.T) {
	eachShell(t, "mk-docker-opts.sh", func(t *testing.T, command []string) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "-in"), sample)
		opts := func(args ...string) result {
			t.Helper()
			return run(t, dir, nil, append(command, append([]string{"-i", "-f", "-in"}, args...)...)...)
		}
		check := func(name string) {
			t.Helper()
			if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(text) != each {
				t.Errorf("%s: %q, %v", name, text, err)
			}
		}
		if got := opts("-d", "-out"); got != (result{}) {
			t.Errorf("%+v", got)
		}
		check("-out")
		if got := opts("-d", "/dev/stdout"); got != (result{stdout: each}) {
			t.Errorf("to /dev/stdout: %+v", got)
		}
		// The same with its output redirected to a file, which this is then.
		redirected := append([]string{"sh", "-c", `exec "$@" >redirected`, "sh"}, append(slices.Clone(command), "-i", "-f", "-in", "-d", "/dev/stdout")...)
		if got := run(t, dir, nil, redirected...); got != (result{}) {
			t.Errorf("to /dev/stdout, a file: %+v", got)
		}
		check("redirected")
		for _, one := range []string{"-i", "-c"} {
			got := run(t, dir, nil, append(command, one, "-f", "-in", "-d", "/dev/full")...)
			if got.status != 1 || !strings.Contains(got.stderr, "cannot write /dev/full") {
				t.Errorf("to a full device: %+v", got)
			}
		}
		// A link stays a link.
		write(t, filepath.Join(dir, "real"), "")
		if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if got := opts("-d", "link"); got != (result{}) {
			t.Errorf("%+v", got)
		}
		check("real")
		if _, err := os.Readlink(filepath.Join(dir, "link")); err != nil {
			t.Error(err)
		}
		// No directory can be made there.
		if got := opts("-d", "real/x"); got.status != 1 || !strings.Contains(got.stderr, "cannot make the directory real for real/x") {
			t.Errorf("%+v", got)
		}
	})
}

func TestHelp(t *testing.T) {
	for _, script := range []string{"mk-docker-opts.sh", "remove-docker0.sh"} {
		eachShell(t, script, func(t *testing.T, command []string) {
			got := run(t, ".", nil, append(command, "-h")...)
			if got.status != 0 || got.stderr != "" || !strings.HasPrefix(got.stdout, "Usage: "+script+" ") {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestRemoveDocker0 has a namespace of its own for each run of the script.
func TestRemoveDocker0(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	for _, program := range []string{"unshare", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	if err := exec.Command("unshare", "--net", "true").Run(); err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	eachShell(t, "remove-docker0.sh", func(t *testing.T, command []string) {
		for _, test := range []struct {
			name, addresses, file string
			stays                 bool
		}{
			{"fits", "10.1.74.1/24", sample, true},
			{"fits, quoted", "10.1.74.1/24", `FLANNEL_SUBNET="10.1.74.1/24"`, true},
			{"fits, second address", "192.0.2.1/24 10.1.74.1/24", sample, true},
			{"another address", "172.17.0.1/16", sample, false},
			{"another length", "10.1.74.1/16", sample, false},
			{"longer address", "110.1.74.1/24", sample, false},
			{"no address", "", sample, false},
			{"no file", "10.1.74.1/24", "", false},
			{"no subnet in the file", "10.1.74.1/24", "FLANNEL_MTU=1472\n", false},
			{"no docker0", "none", sample, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				dir := t.TempDir()
				if test.file != "" {
					write(t, filepath.Join(dir, "subnet file"), test.file)
				}
				const around = `
					if [ "$1" != none ]; then
						ip link add docker0 type bridge || exit 9
						for a in $1; do ip addr add "$a" dev docker0 || exit 9; done
					fi
					shift
					"$@" || exit
					ip link show dev docker0 >/dev/null 2>&1 && echo stays || echo gone`
				got := run(t, dir, nil, append([]string{"unshare", "--net", "sh", "-c", around, "sh", test.addresses},
					append(command, "-f", "subnet file")...)...)
				want := "gone"
				if test.stays {
					want = "stays"
				}
				lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
				if got.status != 0 || got.stderr != "" || lines[len(lines)-1] != want {
					t.Errorf("%+v, want %s", got, want)
				}
			})
		}
	})
}
