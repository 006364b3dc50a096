package tty

import (
	"os"
	"strings"
	"testing"
)

// Colours are for terminals only, and for those whose user wants them.
func TestColour(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer terminal.Close()
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, test := range []struct {
		env  map[string]string
		want bool
	}{{nil, true}, {map[string]string{"TERM": "xterm"}, true}, {map[string]string{"TERM": "dumb"}, false}, {map[string]string{"NO_COLOR": "1"}, false}} {
		getenv := func(name string) string { return test.env[name] }
		if got := Colour(terminal, getenv); got != test.want {
			t.Errorf("on a terminal with %v: %v", test.env, got)
		}
		if Colour(file, getenv) || Colour(new(strings.Builder), getenv) {
			t.Errorf("in a file with %v there are colours", test.env)
		}
	}
}
