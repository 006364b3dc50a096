package local

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Running is the process ID of a daemon on this host, or ErrNone. It finds those too
// that have no socket, as another version has none: processes named flanneld in this
// network namespace. isDaemon tells from the arguments, without the program's name,
// whether one of them is a daemon.
func Running(isDaemon func(args []string) bool) (pid int, err error) {
	if pid, err := Daemon(); err == nil {
		return pid, nil
	}
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return 0, fmt.Errorf("looking for a flanneld on this host: %w", err)
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		if comm, err := os.ReadFile(name); err != nil || string(comm) != "flanneld\n" {
			continue
		}
		dir := filepath.Dir(name)
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 { // it has ended
			continue
		}
		args := strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
		if !isDaemon(args[1:]) {
			continue
		}
		there, err := os.Readlink(dir + "/ns/net")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		} else if err != nil {
			return 0, fmt.Errorf("finding out whether the flanneld that is process %s runs on this host: %w", filepath.Base(dir), err)
		}
		if there == here {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, ErrNone
}
