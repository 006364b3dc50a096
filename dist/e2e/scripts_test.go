//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The tests of the scripts pass in the tree too, where none of them is left out
// for want of a shell: each is there, and /bin/sh is dash.
func TestScriptsUnderEveryShell(t *testing.T) {
	root := newMachineRoot(t)
	dir := filepath.Join(root, "sources", "dist")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, "dist.test"), "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, script := range []string{"mk-docker-opts.sh", "remove-docker0.sh"} {
		text, err := os.ReadFile("../" + script)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, script), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	test := exec.Command("chroot", root, "sh", "-c", "cd /sources/dist && exec ./dist.test -test.v -test.run 'DockerOpts|RemoveDocker0|Help' -every-shell")
	test.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=/tmp"}
	out, err := test.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// As many shells as there are ways to call the scripts, each with each test.
	for _, want := range []string{"dash", "bash", "bash_--posix", "busybox_sh", "as_a_program"} {
		for _, name := range []string{"DockerOpts", "DockerOptsErrors", "DockerOptsDefaults", "DockerOptsPermissions", "RemoveDocker0", "RemoveDocker0Misuse", "Help"} {
			if !passed(out, "Test"+name+"/"+want) {
				t.Errorf("%s was not passed under %s", name, want)
			}
		}
	}
}
