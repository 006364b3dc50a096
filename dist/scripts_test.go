// Package dist_test tests what operators install: the scripts under every shell
// that may be /bin/sh somewhere, the samples, and the installing itself.
package dist_test

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// everyShell is set where the tests are to find all there is to be found.
var everyShell = flag.Bool("every-shell", false, "fail where a shell, or a program the tests call, is missing, instead of skipping")

// lacking skips a test that cannot be run, or fails it where it ought to be.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if *everyShell {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// shells are the ways in which units and people call a shell script.
var shells = map[string][]string{
	"dash":         {"dash"},
	"bash":         {"bash"},
	"bash --posix": {"bash", "--posix"},
	"busybox sh":   {"busybox", "sh"},
	"as a program": nil,
}

// eachShell runs test once for each shell there is; it gets what to put in
// front of the script's name.
func eachShell(t *testing.T, script string, test func(t *testing.T, command []string)) {
	path, err := filepath.Abs(script)
	if err != nil {
		t.Fatal(err)
	}
	for name, shell := range shells {
		t.Run(name, func(t *testing.T) {
			if len(shell) > 0 {
				if _, err := exec.LookPath(shell[0]); err != nil {
					lacking(t, "needs %s", shell[0])
				}
			}
			test(t, append(shell[:len(shell):len(shell)], path))
		})
	}
}

// needRoot is for tests that change namespaces or users by way of programs.
func needRoot(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		lacking(t, "needs root")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			lacking(t, "needs %s", program)
		}
	}
}

// result is what a script did.
type result struct {
	status         int
	stdout, stderr string
}

func run(t *testing.T, dir string, env []string, command ...string) result {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestHelp(t *testing.T) {
	for _, script := range []string{"mk-docker-opts.sh", "remove-docker0.sh"} {
		eachShell(t, script, func(t *testing.T, command []string) {
			got := run(t, ".", nil, append(command, "-h")...)
			if got.status != 0 || got.stderr != "" || !strings.HasPrefix(got.stdout, "Usage: "+script+" ") {
				t.Errorf("%+v", got)
			}
		})
	}
}
