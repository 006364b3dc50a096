// Package jsonfields reads a JSON object that people write by hand, field by
// field: names match in any case, a field of the wrong type or out of range is
// an error that names the field and shows the value, and what nobody asked for
// can be listed afterwards. Start reading at Parse.
package jsonfields

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Object is one JSON object being read.
type Object struct {
	path   string // how messages name the object: "" or "Backend."
	fields map[string]field
	asked  map[string]string // what was returned for each field that was asked for
}

type field struct {
	name string // as written, but fit for a message
	raw  json.RawMessage
	read bool
}

// Parse reads text, which must be one JSON object and nothing else. Two fields
// whose names differ only in case are an error, as there is no telling which
// one was meant.
func Parse(text []byte) (*Object, error) {
	return parse(text, "")
}

func parse(text []byte, path string) (*Object, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	tok, err := dec.Token()
	if err == nil && tok != json.Delim('{') {
		return nil, fmt.Errorf("%s is not a JSON object like {\"Network\": …}", shorten(text))
	}
	o := &Object{path: path, fields: map[string]field{}, asked: map[string]string{}}
	for err == nil && dec.More() {
		if tok, err = dec.Token(); err != nil {
			break
		}
		name := tok.(string) // the decoder admits nothing else here
		var raw json.RawMessage
		if err = dec.Decode(&raw); err != nil {
			break
		}
		key := strings.ToLower(name)
		name = shorten([]byte(name))
		if first, twice := o.fields[key]; twice {
			return nil, fmt.Errorf("%s%s is given twice (first as %s)", path, name, first.name)
		}
		o.fields[key] = field{name: name, raw: raw}
	}
	if err == nil {
		_, err = dec.Token() // the closing brace
	}
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it ends too early")
		}
		return nil, fmt.Errorf("%s is not valid JSON: %w", shorten(text), err)
	}
	if _, err = dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s is not valid JSON: something follows the closing brace", shorten(text))
	}
	return o, nil
}

// Has reports whether the field is there and not null.
func (o *Object) Has(name string) bool {
	f, ok := o.fields[strings.ToLower(name)]
	return ok && string(f.raw) != "null"
}

// String returns the field's value, or def where it is missing or null.
func (o *Object) String(name, def string) (string, error) {
	s, err := get(o, name, def, "a string")
	o.asked[name] = s
	return s, err
}

// Bool returns the field's value, or def where it is missing or null.
func (o *Object) Bool(name string, def bool) (bool, error) {
	b, err := get(o, name, def, "true or false")
	o.asked[name] = strconv.FormatBool(b)
	return b, err
}

// Int returns the field's value, or def where it is missing or null. A value
// outside min to max is an error; def may lie outside.
func (o *Object) Int(name string, def, min, max int) (int, error) {
	o.asked[name] = strconv.Itoa(def)
	if !o.Has(name) {
		return get(o, name, def, "")
	}
	want := fmt.Sprintf("a whole number from %d to %d", min, max)
	n, err := get(o, name, json.Number(""), want)
	if err != nil {
		return 0, err
	}
	i, err := strconv.Atoi(n.String())
	if err != nil || i < min || i > max || o.quoted(name) {
		return 0, o.wrong(name, want)
	}
	o.asked[name] = strconv.Itoa(i)
	return i, nil
}

// Object returns the field as an object to read, or nil where it is missing or
// null. Its own fields are named with this one's name in front.
func (o *Object) Object(name string) (*Object, error) {
	raw, err := get(o, name, json.RawMessage(nil), "an object")
	if err != nil || raw == nil {
		return nil, err
	}
	if raw[0] != '{' {
		return nil, o.wrong(name, "an object like {\"Type\": …}")
	}
	return parse(raw, o.path+name+".")
}

// Unknown lists, in alphabetical order, the fields that nobody has asked for.
func (o *Object) Unknown() []string {
	var names []string
	for _, f := range o.fields {
		if !f.read {
			names = append(names, o.path+f.name)
		}
	}
	slices.Sort(names)
	return names
}

// Differences says, in alphabetical order, which of the fields that were asked for
// have another value in o than in before. Objects themselves are left out.
func (o *Object) Differences(before *Object) []string {
	shown := func(value string, asked bool) string {
		if !asked {
			return "not there"
		}
		return shorten([]byte(value))
	}
	names := maps.Clone(o.asked)
	maps.Copy(names, before.asked)
	var all []string
	for name := range names {
		is, asked := o.asked[name]
		was, had := before.asked[name]
		if is != was || asked != had {
			all = append(all, fmt.Sprintf("%s%s is %s instead of %s", o.path, name, shown(is, asked), shown(was, had)))
		}
	}
	slices.Sort(all)
	return all
}

// Errorf makes an error that names the field and shows its value.
func (o *Object) Errorf(name, format string, args ...any) error {
	f := o.fields[strings.ToLower(name)]
	if f.raw == nil {
		return fmt.Errorf("%s%s "+format, append([]any{o.path, name}, args...)...)
	}
	return fmt.Errorf("%s%s is %s: "+format, append([]any{o.path, name, shorten(f.raw)}, args...)...)
}

func (o *Object) wrong(name, want string) error {
	return o.Errorf(name, "must be %s", want)
}

func (o *Object) quoted(name string) bool {
	return o.fields[strings.ToLower(name)].raw[0] == '"'
}

func get[T any](o *Object, name string, def T, want string) (T, error) {
	key := strings.ToLower(name)
	f, ok := o.fields[key]
	if !ok {
		return def, nil
	}
	f.read = true
	o.fields[key] = f
	if string(f.raw) == "null" {
		return def, nil
	}
	var v T
	if err := json.Unmarshal(f.raw, &v); err != nil {
		return def, o.wrong(name, want)
	}
	return v, nil
}

// shorten keeps a value that somebody pasted by mistake, over many lines or with
// characters that a terminal obeys, from filling the log.
func shorten(text []byte) string {
	const most = 80
	s := strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return ' '
	}, string(text))
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		return "an empty value"
	}
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
