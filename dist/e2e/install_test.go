//go:build e2e

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// passed reports whether a test's output says that a test below it was passed.
func passed(out []byte, name string) bool {
	return bytes.Contains(out, []byte("--- PASS: "+name+" ("))
}

// makeIn runs make as a user does, not as a part of the make that runs the tests.
func makeIn(t *testing.T, dir string, env []string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("make", args...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=") || strings.HasPrefix(v, "GOFLAGS=")
	}), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Installed into a machine, wherever that is, systemd finds the unit and has
// nothing to say against it, and the programs run.
func TestInstalledOnAMachine(t *testing.T) {
	const top = "../.."
	makeIn(t, top, nil, "bin/flanneld")
	for prefix, unitdir := range map[string]string{
		"/usr":       "/usr/lib/systemd/system",
		"/usr/local": "/usr/local/lib/systemd/system",
		"/opt/net":   "/etc/systemd/system",
	} {
		t.Run(filepath.Base(prefix), func(t *testing.T) {
			root := newMachineRoot(t)
			settings := filepath.Join(root, "etc/default/flanneld")
			if err := os.WriteFile(settings, []byte("mine\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			// There is no Go where root installs: nothing is built any more.
			makeIn(t, top, nil, "install", "GO=/nonexistent", "PREFIX="+prefix, "DESTDIR="+root)
			if text, err := os.ReadFile(settings); err != nil || string(text) != "mine\n" {
				t.Errorf("the operator's settings are %q now, %v", text, err)
			}
			if drop, err := os.ReadDir(filepath.Join(root, "etc/systemd/system/docker.service.d")); err == nil {
				t.Errorf("docker's unit was changed, by %v", drop)
			}
			// The path systemd finds it by, without being told.
			if out := inRoot(t, root, "systemd-analyze", "verify", "flanneld.service"); out != "" {
				t.Errorf("systemd-analyze verify says:\n%s", out)
			}
			if out := inRoot(t, root, "find", "/usr", "/etc", "/opt", "-name", "flanneld.service"); out != unitdir+"/flanneld.service\n" {
				t.Errorf("the unit is %s", out)
			}
			if out := inRoot(t, root, prefix+"/bin/flanneld", "--version"); !strings.HasPrefix(out, "flanneld ") {
				t.Errorf("flanneld says %q", out)
			}
			doc := prefix + "/share/doc/flannel"
			inRoot(t, root, prefix+"/bin/mk-docker-opts.sh", "-f", doc+"/sample_subnet.env")
			const want = `DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"`
			if out := inRoot(t, root, "tail", "-n", "1", "/run/docker_opts.env"); out != want+"\n" {
				t.Errorf("the options for dockerd are %s", out)
			}
			makeIn(t, top, nil, "uninstall", "PREFIX="+prefix, "DESTDIR="+root)
			if out := inRoot(t, root, "find", "/usr", "/etc", "/opt", "-name", "*flannel*", "!", "-path", "/etc/default/*"); out != "" {
				t.Errorf("left behind:\n%s", out)
			}
		})
	}
}

// inRoot is what a program says whose root directory is root.
func inRoot(t *testing.T, root string, command ...string) string {
	t.Helper()
	out, err := exec.Command("chroot", append([]string{root}, command...)...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}
