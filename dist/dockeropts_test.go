package dist_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
		{name: "flannel variables in the environment", env: []string{"FLANNEL_SUBNET=1.2.3.4/5", "FLANNEL_IPMASQ=true", "subnet=x", "mtu=y", "OPTIND=3", "DOCKER_OPT_BIP=z", "IFS=./", "CDPATH=/", "LC_ALL=C.UTF-8", "name=n", "temp=/"}, want: each + all},
		{name: "quotes, comments, blank lines, other variables, no newline at the end", args: []string{"-i"}, want: each,
			in: "# by hand\n\n  \n  # more\n export FLANNEL_SUBNET=\"10.1.74.1/24\"\nOTHER=`false`\nFLANNEL_IPV6_NETWORK=\nFLANNEL_IPMASQ='false'\nFLANNEL_MTU=1472"},
		{name: "the last of two counts", args: []string{"-i"}, want: each, in: "FLANNEL_SUBNET=10.1.9.1/24\n" + sample},
		{name: "carriage returns", args: []string{"-i"}, want: each, in: "\xef\xbb\xbf" + strings.ReplaceAll("# elsewhere\n\n"+sample, "\n", "\r\n")},
		{name: "a mark, and no comment", args: []string{"-i"}, want: each, in: "\xef\xbb\xbf" + strings.Replace(sample, "FLANNEL_NETWORK=10.1.0.0/16\n", "", 1)},
		{name: "comments behind values, blanks, semicolons", args: []string{"-i"}, want: each,
			in: "FLANNEL_SUBNET=10.1.74.1/24 # ours\nFLANNEL_MTU=\"1472\" ;\t \n\texport FLANNEL_IPMASQ=false;  \n"},
		{name: "commands that are no values of ours", args: []string{"-i"}, want: each, in: "A=$(touch bad)\nB=`touch bad`\nC=\"x\"; touch bad\nD=*\n" + sample},
		{name: "a long line", args: []string{"-i"}, want: each, in: sample + "A=" + strings.Repeat("x", 60_000)},
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
				// Files that dockerd's start-up is to read, whatever the umask.
				command := append([]string{"sh", "-c", `umask 077; exec "$@"`, "sh"}, command...)
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
				for in, n := range map[string]int{filepath.Dir(out): 1, dir: 2} {
					if files, _ := os.ReadDir(in); len(files) != n {
						t.Errorf("left behind: %v", files)
					}
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
		{"subnet out of range", replace("10.1.74.1/24", "10.1.256.1/24"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=10.1.256.1/24 has to be an address with a length, such as 10.1.74.1/24"}},
		{"length out of range", replace("10.1.74.1/24", "10.1.74.1/33"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=10.1.74.1/33 has to be an address with a length, such as 10.1.74.1/24"}},
		{"octal", replace("10.1.74.1/24", "10.1.074.1/24"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=10.1.074.1/24 has to be an address with a length, such as 10.1.74.1/24"}},
		{"an octet too few", replace("10.1.74.1/24", "10.1..1/24"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=10.1..1/24 has to be an address with a length, such as 10.1.74.1/24"}},
		{"two subnets", replace("10.1.74.1/24", "10.1.74.1/24,10.1.75.1/24"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=10.1.74.1/24,10.1.75.1/24 has to be an address with a length, such as 10.1.74.1/24"}},
		{"IPv6", replace("10.1.74.1/24", "fd00::1/64"), nil,
			result{1, "", "in is broken: FLANNEL_SUBNET=fd00::1/64 has to be an address with a length, such as 10.1.74.1/24"}},
		{"no bytes", replace("1472", "0"), nil, result{1, "", "in is broken: FLANNEL_MTU=0 has to be a number of bytes"}},
		{"too many bytes", replace("1472", "65536"), nil, result{1, "", "in is broken: FLANNEL_MTU=65536 has to be a number of bytes"}},
		{"a long value", replace("1472", strings.Repeat("7", 60_000)), nil,
			result{1, "", "in is broken: FLANNEL_MTU=" + strings.Repeat("7", 60) + " has to be a number of bytes"}},
		{"a long line", strings.Repeat("x", 60_000), nil, result{1, "", "in is broken: line 1 is not NAME=VALUE: " + strings.Repeat("x", 60)}},
		{"a large file", sample + strings.Repeat("#", 200_000), nil, result{1, "", "in is broken: it is much larger than what flanneld writes"}},
		{"NULs, as after a crash", strings.Repeat("\x00", len(sample)), nil, result{1, "", "in is broken: there are bytes in it that are no text"}},
		{"a NUL in a value", replace("1472", "14\x0072"), nil, result{1, "", "in is broken: there are bytes in it that are no text"}},
		{"an escape sequence", "\x1b[2J\n" + sample, nil, result{1, "", "in is broken: there are bytes in it that are no text"}},
		{"a format", "%s%n\n", nil, result{1, "", "in is broken: line 1 is not NAME=VALUE: %s%n"}},
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
		{"a name of its own", "", []string{"-k", "out_file"}, result{2, "", "-k \"out_file\": this script has a variable of that name itself; see mk-docker-opts.sh -h"}},
		{"no input", "", []string{"-f", ""}, result{2, "", "option -f needs the name of a file; see mk-docker-opts.sh -h"}},
		{"no output", "", []string{"-d", ""}, result{2, "", "option -d needs the name of a file; see mk-docker-opts.sh -h"}},
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

// What ordinary users may not read or write is said, and left as it was.
func TestDockerOptsPermissions(t *testing.T) {
	needRoot(t, "setpriv")
	eachShell(t, "mk-docker-opts.sh", func(t *testing.T, command []string) {
		dir := t.TempDir()
		// Others get to the files by way of these.
		for _, d := range []string{filepath.Dir(dir), dir} {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(dir, "in"), sample)
		write(t, filepath.Join(dir, "secret"), sample)
		write(t, filepath.Join(dir, "out"), "before\n")
		if err := os.Chmod(filepath.Join(dir, "secret"), 0); err != nil {
			t.Fatal(err)
		}
		for in, want := range map[string]string{
			"secret": "mk-docker-opts.sh: secret cannot be read: run this as root or mend its permissions\n",
			"in":     "mk-docker-opts.sh: cannot write out.",
		} {
			nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
			got := run(t, dir, nil, append(append(nobody, command...), "-f", in, "-d", "out")...)
			if got.status != 1 || got.stdout != "" || !strings.Contains(got.stderr, want) {
				t.Errorf("%s: %+v, want %s", in, got, want)
			}
		}
		if text, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(text) != "before\n" {
			t.Errorf("output file changed to %q, %v", text, err)
		}
	})
}

// Without options the files are where flanneld writes and dockerd's units look.
func TestDockerOptsDefaults(t *testing.T) {
	needRoot(t, "unshare", "mount")
	eachShell(t, "mk-docker-opts.sh", func(t *testing.T, command []string) {
		const around = `
			mount -t tmpfs tmpfs /run && mkdir /run/flannel && printf %s "$1" >/run/flannel/subnet.env || exit 9
			shift
			"$@" && cat /run/docker_opts.env`
		got := run(t, ".", nil, append([]string{"unshare", "--mount", "sh", "-c", around, "sh", sample}, command...)...)
		want := each + "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
		if got != (result{stdout: want}) {
			t.Errorf("%+v", got)
		}
	})
}
