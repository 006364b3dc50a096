package iptables

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A program that is called gets what it needs of the environment, and none of the
// secrets that may be in it.
func TestEnvironment(t *testing.T) {
	path := t.TempDir()
	for name, value := range map[string]string{
		"FLANNEL_OPTIONS": "-etcd-password=open-sesame", "HTTPS_PROXY": "http://u:open-sesame@10.0.0.1", "NOTIFY_SOCKET": "/run/systemd/notify",
		"LC_ALL": "de_DE.UTF-8", "XTABLES_LOCKFILE": "/run/lock", "XTABLES_LIBDIR": "/lib/xtables",
	} {
		t.Setenv(name, value)
	}
	program := filepath.Join(path, "iptables")
	if err := os.WriteFile(program, []byte("#!/bin/sh\ntr '\\0' '\\n' </proc/self/environ\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := output(t.Context(), "", []string{program})
	if err != nil {
		t.Fatal(err)
	}
	got := slices.DeleteFunc(strings.Split(strings.TrimSpace(text), "\n"), func(v string) bool {
		return strings.HasPrefix(v, "PWD=") || strings.HasPrefix(v, "_=") // the shell's own
	})
	slices.Sort(got)
	want := []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "XTABLES_LIBDIR=/lib/xtables", "XTABLES_LOCKFILE=/run/lock"}
	if !slices.Equal(got, want) {
		t.Errorf("it gets %q, want %q", got, want)
	}
}
