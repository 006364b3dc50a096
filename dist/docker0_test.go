package dist_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRemoveDocker0 has a namespace of its own for each run of the script.
func TestRemoveDocker0(t *testing.T) {
	needRoot(t, "unshare", "ip", "setpriv", "mount")
	if err := exec.Command("unshare", "--net", "true").Run(); err != nil {
		lacking(t, "cannot make a network namespace: %v", err)
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
			{"a pattern", "10.1.74.1/24", "FLANNEL_SUBNET=*\n", false},
			{"a part of it", "10.1.74.1/24", "FLANNEL_SUBNET=10.1.74.1\n", false},
			{"a command", "10.1.74.1/24", "FLANNEL_SUBNET=$(touch bad)\nA=`touch bad`\ntouch bad\n", false},
			{"NULs", "10.1.74.1/24", strings.Repeat("\x00", 90), false},
			{"fits, by hand", "10.1.74.1/24", "\xef\xbb\xbf# by hand\r\n export FLANNEL_SUBNET='10.1.74.1/24' ; # ours\r\n", true},
			{"fits, the mark before it", "10.1.74.1/24", "\xef\xbb\xbfFLANNEL_SUBNET=10.1.74.1/24\r\n", true},
			{"fits, no newline at the end", "10.1.74.1/24", "FLANNEL_SUBNET=172.17.0.1/16\nFLANNEL_SUBNET=10.1.74.1/24", true},
			{"fits, among others", "10.1.74.1/24", "B=" + strings.Repeat("x", 60_000) + "\n" + sample, true},
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
						# A container, whose network ends with a bridge that does not fit.
						ip link add veth0 type veth peer name eth0 && ip link set veth0 master docker0 || exit 9
					fi
					shift
					"$@" || exit
					ip -o link show master docker0 2>/dev/null | grep -q veth0 && echo stays || {
						! ip link show dev docker0 >/dev/null 2>&1 && echo gone
					}`
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
				if said := len(lines) > 1; said != (!test.stays && test.addresses != "none") {
					t.Errorf("it said: %s", got.stdout)
				}
				if _, err := os.Stat(filepath.Join(dir, "bad")); err == nil {
					t.Error("a command from outside was run")
				}
			})
		}
		for _, test := range []struct {
			name, around, want string
		}{
			{"no ip", `program=$(readlink -f "$(command -v ip)") && mount --bind /dev/null "$program" || exit 9; "$@"`,
				"there is no program ip: install the package iproute2 (or iproute)"},
			{"no permission", `ip link add docker0 type bridge || exit 9
				setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$@"; status=$?
				ip link show dev docker0 >/dev/null || exit 9; exit $status`,
				"cannot remove docker0: run this as root, in the host's network namespace"},
		} {
			if test.name == "no ip" && command[0] == "busybox" {
				continue // it has one of its own
			}
			t.Run(test.name, func(t *testing.T) {
				got := run(t, t.TempDir(), nil, append([]string{"unshare", "--net", "--mount", "sh", "-c", test.around, "sh"},
					append(command, "-f", "subnet file")...)...)
				if got.status != 1 || got.stdout != "" || !strings.HasSuffix(got.stderr, "remove-docker0.sh: "+test.want+"\n") {
					t.Errorf("%+v", got)
				}
			})
		}
	})
}

func TestRemoveDocker0Misuse(t *testing.T) {
	eachShell(t, "remove-docker0.sh", func(t *testing.T, command []string) {
		for want, args := range map[string][]string{
			"there is no option -x":                              {"-x"},
			"option -f needs a value":                            {"-f"},
			"option -f needs the name of a file":                 {"-f", ""},
			"what is \"docker1\" for? Only options are expected": {"docker1"},
		} {
			if got := run(t, t.TempDir(), nil, append(command, args...)...); got != (result{2, "", "remove-docker0.sh: " + want + "; see remove-docker0.sh -h\n"}) {
				t.Errorf("%v: %+v", args, got)
			}
		}
	})
}
