package main

import (
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// What is wrong with a command line goes to a log, and what is wrong may be the
// quotes or blanks around the password. So nothing is shown of what it may be in.
var (
	// aPassword finds arguments that a password is in or before, also where the
	// flag's name is misspelled.
	aPassword = regexp.MustCompile(`(?i)pas+wo?r?d`)
	// thePassword finds it in the value of another flag, where it is only by
	// mistake; files may well have password in their names.
	thePassword = regexp.MustCompile(`(?i)(^|[\s"'])--?etcd-password`)
)

const seePassword = "see the quotes and blanks around --etcd-password"

// showable is fs.Parse's error without what may be of a password: err is about the
// last of the arguments that were read, or the one after them.
func showable(fs *flag.FlagSet, args []string, err error) error {
	text := err.Error()
	at := slices.IndexFunc(args, aPassword.MatchString)
	read := len(args) - fs.NArg()
	switch name, unknown := strings.CutPrefix(text, "flag provided but not defined: "); {
	case unknown && (at < 0 || at >= read-1):
		// It is the first that may have to do with the password, and then is no more
		// than a misspelled name.
		name = upToValue(name)
		if in := aPassword.FindStringIndex(name); in == nil || in[1] == len(name) {
			return errors.New("flag provided but not defined: " + name)
		}
	case strings.HasPrefix(text, "flag needs an argument: "): // the name of one there is
		return err
	case at < 0 && strings.HasPrefix(text, "bad flag syntax: "):
		return fmt.Errorf("bad flag syntax: %s", upToValue(strings.TrimPrefix(text, "bad flag syntax: ")))
	case at < 0:
		return err
	}
	if name := valueOf(text); name != "" {
		return fmt.Errorf("--%s: its value cannot be read; it is not shown, as it may hold the password: %s", name, seePassword)
	}
	return errors.New("an argument cannot be read; it is not shown, as it may hold the password: " + seePassword)
}

// stray is the error about an argument that is no flag.
func stray(args []string, arg string) error {
	if slices.ContainsFunc(args, aPassword.MatchString) {
		return errors.New("there is an argument that is neither a flag nor a command, see --help; it is not shown, as it may hold the password: " + seePassword)
	}
	return fmt.Errorf("%q is neither a flag nor a command, see --help", upToValue(arg))
}

// misplaced is an error if the password is in the value of another flag, which
// would be shown when that is used: all of a variable in one argument, or a flag
// without a value before it.
func misplaced(fs *flag.FlagSet) (err error) {
	fs.Visit(func(f *flag.Flag) {
		if f.Name != "etcd-password" && thePassword.MatchString(f.Value.String()) {
			err = fmt.Errorf("--%s: its value has --etcd-password in it: what has several flags in it wants no quotes, and each flag a value; it is not shown, as it may hold the password", f.Name)
		}
	})
	return err
}

// upToValue is an argument's beginning, that its flag's name is in. An argument of
// one's own with a blank is most often several in one.
func upToValue(arg string) string {
	if i := strings.IndexAny(arg, "= \t\n"); i > 0 {
		return arg[:i]
	}
	return arg
}

// valueOf is the flag whose value an error of fs.Parse is about, empty if it is
// about something else.
func valueOf(text string) string {
	for before, after := range map[string]string{"invalid value ": " for flag -", "invalid boolean value ": " for -"} {
		rest, ok := strings.CutPrefix(text, before)
		if !ok {
			continue
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			continue
		}
		if rest, ok = strings.CutPrefix(rest[len(quoted):], after); ok {
			name, _, _ := strings.Cut(rest, ":")
			return name
		}
	}
	return ""
}
