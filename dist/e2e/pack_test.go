//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machines are the architectures of a release.
var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM,
	"ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "riscv64": elf.EM_RISCV,
}

const (
	releaseTag  = "v9.8.7"
	releaseTime = "1700000000"
)

// A release can be unpacked and run as operators do it, and whoever packs it
// again gets the same, byte by byte: out of a clone or of sources without
// history, in whatever directory, environment and umask.
func TestRelease(t *testing.T) {
	first, second := filepath.Join(t.TempDir(), "clone"), filepath.Join(t.TempDir(), "an archive's content")
	copySources(t, first, 0o022)
	history(t, first)
	makeIn(t, first, nil, "dist")
	copySources(t, second, 0o077)
	makeIn(t, second, []string{
		"SOURCE_DATE_EPOCH=" + releaseTime, "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8",
		"GOARCH=arm64", "GOARM=5", "GOAMD64=v3", "GOFLAGS=-trimpath=false", "USER=other",
	}, "dist", "ARCHES=arm amd64", "VERSION="+releaseTag)

	dist := filepath.Join(first, "bin/dist")
	sums, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	for arch, machine := range machines {
		name := fmt.Sprintf("flannel-%s-linux-%s.tar.gz", releaseTag, arch)
		archive, err := os.ReadFile(filepath.Join(dist, name))
		if err != nil {
			t.Error(err)
			continue
		}
		checkArchive(t, name, archive, machine)
		if !strings.Contains(string(sums), "  "+name+"\n") {
			t.Errorf("SHA256SUMS has no %s:\n%s", name, sums)
		}
		if arch == "arm" || arch == "amd64" {
			again, err := os.ReadFile(filepath.Join(second, "bin/dist", name))
			if err != nil || !bytes.Equal(archive, again) {
				t.Errorf("%s is another one when packed again (%v)", name, err)
			}
		}
	}
	if n := bytes.Count(sums, []byte("\n")); n != len(machines) {
		t.Errorf("SHA256SUMS has %d lines:\n%s", n, sums)
	}
	sh(t, dist, "sha256sum -c SHA256SUMS")
	sh(t, filepath.Join(second, "bin/dist"), "sha256sum -c SHA256SUMS")

	// As operators do it.
	here := t.TempDir()
	sh(t, here, fmt.Sprintf("tar -xzf '%s'/flannel-%s-linux-%s.tar.gz", dist, releaseTag, runtime.GOARCH))
	if out := sh(t, here, "ls"); out != "README.md\nflanneld\nmk-docker-opts.sh\n" {
		t.Errorf("unpacked are\n%s", out)
	}
	if out := sh(t, here, "./flanneld --version"); out != "flanneld "+releaseTag+"\n" {
		t.Errorf("flanneld says %s", out)
	}
	if out := sh(t, here, "./mk-docker-opts.sh -h"); !strings.HasPrefix(out, "Usage: mk-docker-opts.sh") {
		t.Errorf("mk-docker-opts.sh says %s", out)
	}

	// What is no release does not look like one.
	sh(t, first, "echo >>README.md")
	if out := makeIn(t, first, nil, "-n", "build"); !strings.Contains(string(out), "main.version="+releaseTag+"-dirty") {
		t.Errorf("a change that is in no commit does not show in the version: %s", out)
	}
}

// A version that makes no name for a file is refused before anything is built.
func TestReleaseWithoutVersion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sources")
	copySources(t, dir, 0o022)
	// A history further up is not that of the sources.
	history(t, filepath.Dir(dir))
	for version, want := range map[string]string{
		"":                  "pack: there is no git history to take a version from: give one, like make dist VERSION=v1.2.3",
		"VERSION=release/1": `pack: the version "release/1" cannot be a part of a file's name: use letters, digits and . + ~ _ -`,
	} {
		out := sh(t, dir, "unset MAKEFLAGS; ! make dist "+version)
		if !strings.Contains(out, want+"\n") || strings.Contains(out, "Building") {
			t.Errorf("%s\nwant %s", out, want)
		}
	}
}

// checkArchive is silent about an archive with just what operators expect.
func checkArchive(t *testing.T, name string, archive []byte, machine elf.Machine) {
	t.Helper()
	// The header of a gzip file that has neither name nor time (RFC 1952, 2.3).
	if flags := archive[3:8]; !bytes.Equal(flags, make([]byte, 5)) {
		t.Errorf("%s has a name or a time in its head: %x", name, flags)
	}
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got = append(got, fmt.Sprintf("%s %o %d:%d %q %q %d", h.Name, h.Mode, h.Uid, h.Gid, h.Uname, h.Gname, h.ModTime.Unix()))
		if h.Name != "flanneld" {
			continue
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		program, err := elf.NewFile(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if program.Machine != machine {
			t.Errorf("%s is for %v", name, program.Machine)
		}
		info, err := buildinfo.Read(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, s := range info.Settings {
			if s.Key == "GOARM" && !strings.HasPrefix(s.Value, "6") {
				t.Errorf("%s is for version %s of arm", name, s.Value)
			}
		}
		for _, p := range program.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s is not static", name)
			}
		}
	}
	want := []string{
		`README.md 644 0:0 "" "" ` + releaseTime,
		`flanneld 755 0:0 "" "" ` + releaseTime,
		`mk-docker-opts.sh 755 0:0 "" "" ` + releaseTime,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// copySources copies what is in the work tree, as somebody with that umask gets it.
func copySources(t *testing.T, to string, umask fs.FileMode) {
	t.Helper()
	const top = "../.."
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch {
		case name == ".git" && !d.IsDir(): // of a worktree
			return nil
		case name == ".git" || name == "bin":
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(target, 0o777&^umask)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, text, info.Mode().Perm()&^umask)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// history puts all that is in a directory into one commit with a tag.
func history(t *testing.T, dir string) {
	t.Helper()
	sh(t, dir, `
		export GIT_CONFIG_GLOBAL=/dev/null GIT_COMMITTER_DATE="`+releaseTime+` +0000" GIT_AUTHOR_DATE="`+releaseTime+` +0000"
		git init -q && git add . && git -c user.name=n -c user.email=e commit -q -m m && git tag `+releaseTag)
}

// sh is what a line of shell says.
func sh(t *testing.T, dir, line string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}
