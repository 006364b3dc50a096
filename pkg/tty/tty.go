// Package tty tells whether what is written is for a person at a terminal.
package tty

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Colour reports whether to write in colour: to a terminal that can show it, for
// somebody who has not asked for none (no-color.org).
func Colour(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	if !ok || getenv("NO_COLOR") != "" || getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
