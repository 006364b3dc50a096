//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// tree is the tree of Debian, which nothing writes to: tests get their roots by
// newRoot. The path is from this directory, in which go test runs the tests.
const tree = "../../bin/e2e/tree"

func TestMain(m *testing.M) { lab.Main(m, append(cluster.Needs(), makeTree, fetchPromtool)...) }

// makeTree is the lab.Need for the tree.
func makeTree(ctx context.Context, _ string) error {
	cmd := exec.CommandContext(ctx, "./tree.sh", tree)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("making the tree of Debian: %w", err)
	}
	return nil
}

// newRoot is a directory that looks like the tree, and may be written to. It
// goes with the test.
func newRoot(t *testing.T) string {
	t.Helper()
	lower, err := filepath.Abs(tree)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	upper, work, root := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "root")
	for _, d := range []string{upper, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, "overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	return root
}

// newMachineRoot is newRoot for programs that are started by chroot: with the
// file systems of a machine that runs, those of the lab.
func newMachineRoot(t *testing.T) string {
	t.Helper()
	root := newRoot(t)
	for _, d := range []string{"/proc", "/sys", "/dev", "/run/lab"} {
		target := filepath.Join(root, d)
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		mount(t, d, target, "", unix.MS_BIND|unix.MS_REC, "")
	}
	return root
}

// mount mounts something until the test ends.
func mount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mounting %s on %s: %v", source, target, err)
	}
	t.Cleanup(func() {
		// Detached: what a process of the test still holds goes with that process.
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", target, err)
		}
	})
}
