//go:build e2e

package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// cgroupPrefix begins the names of all cgroups of tests. Other than processes
// and namespaces these do not go with the lab: the machine keeps them.
const cgroupPrefix = "flanneld-e2e-"

// newCgroupName is a name that no other test has.
func newCgroupName() string { return cgroupPrefix + rand.Text() }

// endCgroups kills all that is in these cgroups, and removes them.
func endCgroups(dirs ...string) error {
	return lab.Poll(time.Minute, "ending cgroups", func() error {
		for _, dir := range dirs {
			if err := killCgroup(dir); err != nil {
				return err
			}
			if err := removeCgroup(dir); err != nil {
				return err
			}
		}
		return nil
	})
}

// sweepCgroups removes from these directories what tests that were killed have
// left there. Others may test at the same time: what they are about to use is
// younger, and the kernel removes none that has a process.
func sweepCgroups(parents ...string) {
	for _, parent := range parents {
		left, _ := filepath.Glob(filepath.Join(parent, cgroupPrefix+"*")) // fails for bad patterns only
		for _, dir := range left {
			if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > 10*time.Minute {
				removeCgroup(dir) // the next run tries again
			}
		}
	}
}

// killCgroup kills what is in a cgroup and in those below.
func killCgroup(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, field := range strings.Fields(string(text)) {
			// 0 is a process outside the lab, which is none of ours.
			if pid, numberErr := strconv.Atoi(field); numberErr == nil && pid > 1 {
				unix.Kill(pid, unix.SIGKILL) // if it has not ended meanwhile
			}
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // it has just gone
		return nil
	}
	return err
}

// removeCgroup removes a cgroup and those below it, unless there are processes.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return fmt.Errorf("removing the cgroup %s: %w", dir, err)
	}
	return nil
}
