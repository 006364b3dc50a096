package jsonfields_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flanneld/pkg/jsonfields"
)

func parse(t *testing.T, text string) *jsonfields.Object {
	t.Helper()
	o, err := jsonfields.Parse([]byte(text))
	if err != nil {
		t.Fatalf("Parse(%s): %v", text, err)
	}
	return o
}

// message is an error's text, "" where there is none.
func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestParseErrors(t *testing.T) {
	long := strings.Repeat("x", 200)
	for text, want := range map[string]string{
		``:                     "an empty value is not valid JSON: it ends too early",
		" \n\t":                "an empty value is not valid JSON: it ends too early",
		`{`:                    "{ is not valid JSON: it ends too early",
		`{"A"`:                 `{"A" is not valid JSON: it ends too early`,
		`{"A":`:                `{"A": is not valid JSON: it ends too early`,
		`{"A":1`:               `{"A":1 is not valid JSON: it ends too early`,
		`{"A":"`:               `{"A":" is not valid JSON: it ends too early`,
		`{"A":[1,`:             `{"A":[1, is not valid JSON: it ends too early`,
		`[]`:                   `[] is not a JSON object like {"Network": …}`,
		`null`:                 `null is not a JSON object like {"Network": …}`,
		`"{}"`:                 `"{}" is not a JSON object like {"Network": …}`,
		`12`:                   `12 is not a JSON object like {"Network": …}`,
		`{} {}`:                "{} {} is not valid JSON: something follows the closing brace",
		`{}}`:                  "{}} is not valid JSON: something follows the closing brace",
		`{"A":1} x`:            `{"A":1} x is not valid JSON: something follows the closing brace`,
		`{"A":1,"a":2}`:        "a is given twice (first as A)",
		`{"A":1,"A":1}`:        "A is given twice (first as A)",
		`{"Port":1,"port":{}}`: "port is given twice (first as Port)",
		`"` + long + `"`:       `"` + long[:79] + `… is not a JSON object like {"Network": …}`,
	} {
		if _, err := jsonfields.Parse([]byte(text)); message(err) != want {
			t.Errorf("Parse(%s): %q, want %q", text, message(err), want)
		}
	}
	for _, text := range []string{`{"A" 1}`, `{"A":1 "B":2}`, `{A:1}`, `{'A':1}`, `{"A":01}`, `{"A":tru}`, `{,}`, `{"A":1,}`, `{"A":1]`, "{\"A\":\"\n\"}"} {
		if _, err := jsonfields.Parse([]byte(text)); !strings.HasPrefix(message(err), text+" is not valid JSON: ") &&
			!strings.Contains(message(err), "is not valid JSON: ") {
			t.Errorf("Parse(%s): %q", text, message(err))
		}
	}
}

func TestString(t *testing.T) {
	o := parse(t, `{"Name":"x\u00e4","Empty":"","Null":null,"Number":5,"List":["x"]}`)
	for _, test := range []struct{ name, want, err string }{
		{"Name", "xä", ""},
		{"nAME", "xä", ""},
		{"Empty", "", ""},
		{"Null", "default", ""},
		{"Missing", "default", ""},
		{"Number", "default", "Number is 5: must be a string"},
		{"List", "default", `List is ["x"]: must be a string`},
	} {
		if got, err := o.String(test.name, "default"); got != test.want || message(err) != test.err {
			t.Errorf("String(%s) = %q, %q, want %q, %q", test.name, got, message(err), test.want, test.err)
		}
	}
}

func TestBool(t *testing.T) {
	o := parse(t, `{"Yes":true,"No":false,"Null":null,"Text":"true","Number":1}`)
	for _, test := range []struct {
		name      string
		def, want bool
		err       string
	}{
		{"yes", false, true, ""},
		{"NO", true, false, ""},
		{"Null", true, true, ""},
		{"Null", false, false, ""},
		{"Missing", true, true, ""},
		{"Text", false, false, `Text is "true": must be true or false`},
		{"Number", false, false, "Number is 1: must be true or false"},
	} {
		if got, err := o.Bool(test.name, test.def); got != test.want || message(err) != test.err {
			t.Errorf("Bool(%s, %v) = %v, %q, want %v, %q", test.name, test.def, got, message(err), test.want, test.err)
		}
	}
}

func TestInt(t *testing.T) {
	const rule = ": must be a whole number from 1 to 65535"
	o := parse(t, `{"Port":7890,"Least":1,"Most":65535,"Zero":0,"Over":65536,"Minus":-1,"Part":1.5,"Whole":80.0,"Exp":1e3,
		"Huge":99999999999999999999999,"Text":"7890","NoText":"","Null":null,"True":true,"Obj":{},"List":[1]}`)
	for _, test := range []struct {
		name string
		want int
		err  string
	}{
		{"Port", 7890, ""},
		{"port", 7890, ""},
		{"Least", 1, ""},
		{"Most", 65535, ""},
		{"Null", -5, ""},    // the default may lie outside
		{"Missing", -5, ""}, // the same
		{"Zero", 0, "Zero is 0" + rule},
		{"Over", 0, "Over is 65536" + rule},
		{"Minus", 0, "Minus is -1" + rule},
		{"Part", 0, "Part is 1.5" + rule},
		{"Huge", 0, "Huge is 99999999999999999999999" + rule},
		{"Text", 0, `Text is "7890"` + rule},
		{"NoText", 0, `NoText is ""` + rule},
		{"True", 0, "True is true" + rule},
		{"Obj", 0, "Obj is {}" + rule},
		{"List", 0, "List is [1]" + rule},
		// Whole numbers in a spelling that encoding/json refuses for an int.
		{"Whole", 0, "Whole is 80.0" + rule},
		{"Exp", 0, "Exp is 1e3" + rule},
	} {
		if got, err := o.Int(test.name, -5, 1, 65535); got != test.want || message(err) != test.err {
			t.Errorf("Int(%s) = %v, %q, want %v, %q", test.name, got, message(err), test.want, test.err)
		}
	}
}

func TestObject(t *testing.T) {
	o := parse(t, `{"Backend": {"Type":"udp","port":"x","Deep":{"A":1}},"Null":null,"Text":"{}","List":[],"Twice":{"A":1,"a":2},"Empty":{}}`)
	b, err := o.Object("backend")
	if err != nil || b == nil {
		t.Fatalf("Object: %v, %v", b, err)
	}
	if got, err := b.String("Type", ""); got != "udp" || err != nil {
		t.Errorf("Type is %q, %v", got, err)
	}
	if _, err := b.Int("Port", 0, 1, 2); message(err) != `backend.Port is "x": must be a whole number from 1 to 2` {
		t.Errorf("a field's error is %q", message(err))
	}
	deep, err := b.Object("Deep")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deep.Bool("A", false); message(err) != "backend.Deep.A is 1: must be true or false" {
		t.Errorf("an inner field's error is %q", message(err))
	}
	for _, name := range []string{"Null", "Missing"} {
		if got, err := o.Object(name); got != nil || err != nil {
			t.Errorf("Object(%s) = %v, %v", name, got, err)
		}
	}
	if got, err := o.Object("Empty"); got == nil || err != nil || len(got.Unknown()) != 0 {
		t.Errorf("Object(Empty) = %v, %v", got, err)
	}
	for name, want := range map[string]string{
		"Text":  `Text is "{}": must be an object like {"Type": …}`,
		"List":  `List is []: must be an object like {"Type": …}`,
		"Twice": "Twice.a is given twice (first as A)",
	} {
		if _, err := o.Object(name); message(err) != want {
			t.Errorf("Object(%s): %q, want %q", name, message(err), want)
		}
	}
}

func TestHasAndUnknown(t *testing.T) {
	o := parse(t, `{"b":1,"Asked":"","NULL":null,"A":{"x":1,"Y":2}}`)
	for name, want := range map[string]bool{"B": true, "asked": true, "Null": false, "Missing": false, "a": true} {
		if o.Has(name) != want {
			t.Errorf("Has(%s) = %v", name, !want)
		}
	}
	if d := cmp.Diff([]string{"A", "Asked", "NULL", "b"}, o.Unknown()); d != "" {
		t.Errorf("Unknown before asking (-want +got):\n%s", d)
	}
	o.String("asked", "")
	o.Int("null", 0, 0, 1)
	o.Int("Missing", 0, 0, 1)
	inner, err := o.Object("a")
	if err != nil {
		t.Fatal(err)
	}
	inner.Int("y", 0, 0, 9)
	if d := cmp.Diff([]string{"b"}, o.Unknown()); d != "" {
		t.Errorf("Unknown (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"a.x"}, inner.Unknown()); d != "" {
		t.Errorf("Unknown within (-want +got):\n%s", d)
	}
	// A field that was wrong is known all the same.
	o.Bool("b", false)
	if got := o.Unknown(); got != nil {
		t.Errorf("Unknown at last: %v", got)
	}
}

func TestErrorf(t *testing.T) {
	o := parse(t, `{"Network":"10.1.0.0/99","Long":"`+strings.Repeat("ä", 200)+`"}`)
	for name, want := range map[string]string{
		"network": `network is "10.1.0.0/99": is bad, /28 at least`,
		"Missing": "Missing is bad, /28 at least",
		"Long":    `Long is "` + strings.Repeat("ä", 79) + `…: is bad, /28 at least`,
	} {
		if got := o.Errorf(name, "is bad, /%d at least", 28).Error(); got != want {
			t.Errorf("Errorf(%s) = %q, want %q", name, got, want)
		}
	}
}

// What encoding/json takes for an object is one here too, unless two of its
// names differ only in case; and nothing else is.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		`{"Network": "172.17.0.1/16","SubnetLen":24,"Backend":{"Type":"vxlan","Directrouting": true}}`,
		`{"A":1,"a":2}`, `{"A":null,"B":[1,{"C":"\u00e4"}],"D":-1.5e3}`, ` {} `, `{}{}`, `[]`, `null`, `"`, ``, `{"A"`, "{\"\xff\":1}", `{"\ud800":1}`, `{"K":1,"K":2}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var plain map[string]json.RawMessage
		perr := json.Unmarshal(text, &plain)
		object := perr == nil && plain != nil
		o, err := jsonfields.Parse(text)
		if err != nil {
			if msg := err.Error(); object && !strings.Contains(msg, "is given twice") {
				t.Fatalf("%q is an object, Parse: %v", text, err)
			} else if msg == "" {
				t.Fatal("an error without a message")
			}
			return
		}
		if !object {
			t.Fatalf("%q is no object (%v), but Parse takes it", text, perr)
		}
		if len(o.Unknown()) != len(plain) {
			t.Fatalf("%q has the fields %q, want %q", text, o.Unknown(), plain)
		}
		for name, raw := range plain {
			if o.Has(name) != (string(raw) != "null") {
				t.Fatalf("Has(%q) in %q", name, text)
			}
			var s string
			got, err := o.String(name, "")
			if uerr := json.Unmarshal(raw, &s); (err == nil) != (uerr == nil) || err == nil && got != s {
				t.Fatalf("String(%q) in %q is %q, %v; encoding/json has %q, %v", name, text, got, err, s, uerr)
			}
			var b, gotB bool
			gotB, err = o.Bool(name, false)
			if uerr := json.Unmarshal(raw, &b); (err == nil) != (uerr == nil) || gotB != b {
				t.Fatalf("Bool(%q) in %q is %v, %v; encoding/json has %v, %v", name, text, gotB, err, b, uerr)
			}
			var n, gotN int
			const limit = 1 << 30
			gotN, err = o.Int(name, 0, -limit, limit)
			if uerr := json.Unmarshal(raw, &n); (err == nil) != (uerr == nil && -limit <= n && n <= limit) || err == nil && gotN != n {
				t.Fatalf("Int(%q) in %q is %d, %v; encoding/json has %d, %v", name, text, gotN, err, n, uerr)
			}
			if _, err := o.Object(name); err == nil && string(raw) != "null" && !json.Valid(raw) {
				t.Fatalf("Object(%q) in %q", name, text)
			}
		}
		if got := o.Unknown(); got != nil {
			t.Fatalf("of %q, %q is still unknown", text, got)
		}
	})
}

// What differs is the values that were asked for, not how they are written.
func TestDifferences(t *testing.T) {
	read := func(text string, port bool) *jsonfields.Object {
		o, err := jsonfields.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		o.String("Type", "udp")
		o.Int("VNI", 1, 0, 100)
		o.Bool("GBP", false)
		if port {
			o.Int("Port", 8472, 1, 65535)
		}
		return o
	}
	for _, test := range []struct {
		before, now string
		port        bool
		want        []string
	}{
		{`{}`, `{ "type": "udp", "vni": 1, "GBP": false, "Port": null, "Speed": 9 }`, false, nil},
		{`{"VNI": 1}`, `{"VNI": 2, "Type": "vxlan"}`, false, []string{"Type is vxlan instead of udp", "VNI is 2 instead of 1"}},
		{`{"GBP": true}`, `{"Port": 9}`, true, []string{"GBP is false instead of true", "Port is 9 instead of not there"}},
		{`{"Type": "a"}`, `{"Type": "b\u001b[31m\nc"}`, false, []string{"Type is b [31m c instead of a"}},
	} {
		if got := read(test.now, test.port).Differences(read(test.before, false)); !slices.Equal(got, test.want) {
			t.Errorf("%s after %s: %q, want %q", test.now, test.before, got, test.want)
		}
	}
}
