// Command pack makes the archives of a release, one for each architecture, and
// SHA256SUMS. What it writes depends on the content of the files, the version
// and the time it is given, and on nothing else: not on who runs it, where,
// when, under which umask, nor on the tar and gzip of the machine, which is why
// it is not a shell script. (The Go release that built it counts, as it does for
// flanneld itself.) "make dist" runs it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const usage = `Usage: pack -version VERSION [-time SECONDS] DIR ARCH=PROGRAM... -- FILE...

Writes flannel-VERSION-linux-ARCH.tar.gz into DIR for each ARCH, with PROGRAM and
each FILE at its top, and SHA256SUMS of these. All files in them bear the time
SECONDS, since 1970. With VERSION alone it only says whether that will do.
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "pack: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("pack", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	version := flags.String("version", "", "")
	seconds := flags.String("time", "", "")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if err := checkVersion(*version); err != nil {
		return err
	}
	r := release{version: *version}
	args = flags.Args()
	if len(args) == 0 {
		return nil
	}
	r.dir, args = args[0], args[1:]
	for len(args) > 0 && args[0] != "--" {
		arch, path, ok := strings.Cut(args[0], "=")
		if !ok {
			return fmt.Errorf("%q is not ARCH=PROGRAM; see pack -h", args[0])
		}
		r.programs = append(r.programs, program{arch, path})
		args = args[1:]
	}
	if len(r.programs) == 0 || len(args) < 2 {
		return errors.New("give an ARCH=PROGRAM and, after --, a FILE at least; see pack -h")
	}
	r.files = args[1:]
	var err error
	if r.time, err = modified(*seconds, r.files); err != nil {
		return err
	}
	return r.write()
}

// checkVersion refuses what makes no file name, or would say nothing.
func checkVersion(version string) error {
	if version == "" || version == "unknown" {
		return errors.New("there is no git history to take a version from: give one, like make dist VERSION=v1.2.3")
	}
	if !regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+~_-]*$`).MatchString(version) {
		return fmt.Errorf("the version %q cannot be a part of a file's name: use letters, digits and . + ~ _ -", version)
	}
	return nil
}

// modified is the time that all entries bear. Where nobody knows one, as in
// sources without git history, it is that of the newest of the files, which
// unpacking has set to the time of the commit.
func modified(seconds string, files []string) (time.Time, error) {
	if seconds != "" {
		s, err := strconv.ParseInt(seconds, 10, 64)
		// What a tar header has room for: eleven octal digits.
		if err != nil || s < 0 || s >= 1<<33 {
			return time.Time{}, fmt.Errorf("the time %q, from SOURCE_DATE_EPOCH or the last commit, is not a number of seconds since 1970", seconds)
		}
		return time.Unix(s, 0), nil
	}
	var newest time.Time
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return time.Time{}, err
		}
		if t := info.ModTime().Truncate(time.Second); t.After(newest) {
			newest = t
		}
	}
	return newest, nil
}

// mode is what a file gets: its own mode depends on the umask of whoever made
// or checked it out.
func mode(info fs.FileInfo) int64 {
	if info.Mode()&0o100 != 0 {
		return 0o755
	}
	return 0o644
}
