package dist_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"flanneld/backend/table"
	"flanneld/pkg/jsonfields"
	"flanneld/subnet"
)

// Every sample config is one that flanneld takes without a warning, and shows
// each field, but for the one that it is named after, with its default.
func TestSampleConfigs(t *testing.T) {
	samples, err := filepath.Glob("config/*")
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, path := range samples {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kind, variant, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".json"), "-direct")
		c := parse(t, string(text))
		if c.BackendType != kind {
			t.Errorf("%s is for the backend %s", path, c.BackendType)
		}
		types = append(types, kind)
		want := ""
		if variant != "" {
			want = "Backend.DirectRouting is true instead of false"
		}
		least := parse(t, fmt.Sprintf(`{"Network": %q, "Backend": {"Type": %q}}`, c.Network, kind))
		if got := strings.Join(c.Differences(least), ", "); got != want {
			t.Errorf("%s differs from what flanneld does without its fields: %q, want %q", path, got, want)
		}
	}
	for name := range table.Backends {
		if !slices.Contains(types, name) {
			t.Errorf("there is no sample for the backend %s", name)
		}
	}
}

// parse reads a config as flanneld does.
func parse(t *testing.T, text string) subnet.Config {
	t.Helper()
	c, err := subnet.ParseConfig(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	backend, ok := table.Backends[c.BackendType]
	if !ok {
		t.Fatalf("%s: no such backend", text)
	}
	if _, err := backend(c.Backend); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if unknown := c.Unknown(); len(unknown) > 0 {
		t.Errorf("%s: unknown fields %v", text, unknown)
	}
	return c
}

// A sample shows every field there is, so that nobody has to look for them; what
// a host's interface decides is left out.
func TestSampleConfigsAreWhole(t *testing.T) {
	for path, fields := range map[string]string{
		"config/udp.json":                 "Type Port",
		"config/host-gw.json":             "Type",
		"config/vxlan.json":               "Type VNI Port GBP DirectRouting",
		"config/vxlan-directrouting.json": "Type VNI Port GBP DirectRouting",
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		o, err := jsonfields.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"Network", "SubnetLen", "SubnetMin", "SubnetMax"} {
			if !o.Has(name) {
				t.Errorf("%s has no %s", path, name)
			}
		}
		b, err := o.Object("Backend")
		if err != nil {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(fields) {
			if !b.Has(name) {
				t.Errorf("%s has no Backend.%s", path, name)
			}
		}
	}
}

// The sample of a subnet file is what the tests of the scripts have for one.
func TestSampleSubnetFile(t *testing.T) {
	text, err := os.ReadFile("sample_subnet.env")
	if err != nil || string(text) != sample {
		t.Errorf("%q, %v", text, err)
	}
}
