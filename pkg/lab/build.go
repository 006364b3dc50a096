package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Need puts one file, mostly a program, into dir, before the lab is entered:
// a build wants the machine's network, caches and home. [Main] and [Enter] move
// what is in dir into the lab, where [Binary] finds it by its base name.
// Cancelling ctx ends it early.
type Need func(ctx context.Context, dir string) error

// binVar names a directory of ready-made programs that are used as they are
// instead of being built, for machines without Go or without the sources.
const binVar = "LAB_BIN"

// Binary is the path inside the lab of a program that a [Need] made.
func Binary(name string) string { return filepath.Join(binDir, name) }

// BuildGo needs the Go program in package pkg, a path relative to the module's
// root such as ./cmd/flanneld, built from the sources as they are now and
// named name. Further arguments go to go build. If the environment's LAB_BIN
// is a directory that has name, that file is taken instead.
func BuildGo(name, pkg string, args ...string) Need {
	return func(ctx context.Context, dir string) error {
		if done, err := readyMade(name, dir); done {
			return err
		}
		root, err := moduleRoot()
		if err != nil {
			return err
		}
		out := filepath.Join(dir, name)
		return goBuild(ctx, root, append(append([]string{"-o", out}, args...), pkg)...)
	}
}

// BuildEtcd needs etcd, in the version that dist/etcd/go.mod names. It is kept
// as bin/etcd below the module's root and built when it is missing or older
// than that file, for which the Go module proxy has to be reachable once. The
// environment's LAB_BIN works as with [BuildGo].
func BuildEtcd() Need {
	return func(ctx context.Context, dir string) error {
		if done, err := readyMade("etcd", dir); done {
			return err
		}
		root, err := moduleRoot()
		if err != nil {
			return err
		}
		path, err := buildEtcd(ctx, root)
		if err != nil {
			return err
		}
		return os.Symlink(path, filepath.Join(dir, "etcd"))
	}
}

func buildEtcd(ctx context.Context, root string) (string, error) {
	bin := filepath.Join(root, "bin")
	path := filepath.Join(bin, "etcd")
	mod := filepath.Join(root, "dist", "etcd", "go.mod")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", fmt.Errorf("making the directory for etcd: %w", err)
	}
	// go test runs packages side by side: one builds, the others wait for it.
	lock, err := os.OpenFile(filepath.Join(bin, ".etcd.lock"), os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return "", fmt.Errorf("opening the lock for building etcd: %w", err)
	}
	defer lock.Close()
	if err := flock(ctx, lock); err != nil {
		return "", fmt.Errorf("waiting for another build of etcd: %w", err)
	}
	fresh, err := newer(path, mod, filepath.Join(root, "dist", "etcd", "go.sum"))
	if err != nil || fresh {
		return path, err
	}
	// Built beside and renamed, so that bin/etcd is never half a program.
	half := path + ".new"
	if err := goBuild(ctx, root, "-modfile="+mod, "-o", half, "go.etcd.io/etcd/server/v3"); err != nil {
		return "", err
	}
	if err := os.Rename(half, path); err != nil {
		return "", fmt.Errorf("putting etcd in place: %w", err)
	}
	return path, nil
}

// flock takes the lock in a way that ctx can end: a blocking flock(2) would
// sit through the first interrupt.
func flock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// newer reports whether path exists and is no older than any of the others.
func newer(path string, others ...string) (bool, error) {
	have, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	for _, o := range others {
		other, err := os.Stat(o)
		if err != nil {
			return false, err
		}
		if have.ModTime().Before(other.ModTime()) {
			return false, nil
		}
	}
	return true, nil
}

func goBuild(ctx context.Context, root string, args ...string) error {
	if err := Tools("go"); err != nil {
		return fmt.Errorf("%w, or put ready-made programs into a directory and name it in %s", err, binVar)
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-buildvcs=false"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	// Let it remove its own temporary files when it is told to stop.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

func readyMade(name, dir string) (done bool, err error) {
	bin := os.Getenv(binVar)
	if bin == "" {
		return false, nil
	}
	path, err := filepath.Abs(filepath.Join(bin, name))
	if err != nil {
		return true, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, os.Symlink(path, filepath.Join(dir, name))
}

// moduleRoot is the directory of go.mod at or above the working directory,
// where go test runs a package's tests.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod at or above %s: run in the source tree, or name a directory of ready-made programs in %s", start, binVar)
		}
	}
}
