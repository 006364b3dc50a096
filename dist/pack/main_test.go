package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Who made the files, when, and in which order they are named makes no
// difference; without a time given, that of the newest file beside the program
// is taken.
func TestPack(t *testing.T) {
	here := t.TempDir()
	commit := time.Unix(1_700_000_000, 0)
	put := func(name string, mode os.FileMode, at time.Time) string {
		t.Helper()
		path := filepath.Join(here, name)
		if err := os.WriteFile(path, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pack := func(args ...string) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "new", "dir")
		args = append([]string{"-version", "v1"}, args...)
		for i, a := range args {
			if a == "DIR" {
				args[i] = dir
			}
		}
		if err := run(args); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	program := put("flanneld", 0o700, time.Now())
	script, readme := put("script", 0o711, commit.Add(-time.Hour)), put("README", 0o600, commit.Add(time.Millisecond))
	first := pack("DIR", "z="+program, "a="+program, "--", script, readme)

	put("flanneld", 0o775, time.Unix(0, 0))
	put("script", 0o755, time.Now())
	put("README", 0o666, time.Now())
	second := pack("-time", "1700000000", "DIR", "a="+program, "z="+program, "--", readme, script)

	for _, name := range []string{"flannel-v1-linux-a.tar.gz", "flannel-v1-linux-z.tar.gz", "SHA256SUMS"} {
		one, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.ReadFile(filepath.Join(second, name))
		if err != nil || !bytes.Equal(one, other) {
			t.Errorf("%s is another one the second time (%v)", name, err)
		}
	}
}

func TestPackErrors(t *testing.T) {
	dir := t.TempDir()
	for want, args := range map[string]string{
		"there is no git history to take a version from":                       "-version unknown " + dir + " a=main.go -- main.go",
		`the version "../v1" cannot be a part of a file's name`:                "-version ../v1 " + dir + " a=main.go -- main.go",
		`the time "soon", from SOURCE_DATE_EPOCH or the last commit, is not a`: "-version v1 -time soon " + dir + " a=main.go -- main.go",
		`the time "-1", from SOURCE_DATE_EPOCH`:                                "-version v1 -time -1 " + dir + " a=main.go -- main.go",
		`"main.go" is not ARCH=PROGRAM`:                                        "-version v1 " + dir + " main.go -- main.go",
		"give an ARCH=PROGRAM and, after --, a FILE at least":                  "-version v1 " + dir + " a=main.go --",
		"making flannel-v1-linux-a.tar.gz: open none: no such file":            "-version v1 " + dir + " a=none -- main.go",
	} {
		if err := run(strings.Fields(args)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("pack %s: %v, want %s", args, err, want)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}
