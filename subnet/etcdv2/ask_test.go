package etcdv2_test

import (
	"net/http"
	"testing"
	"time"

	"flanneld/subnet/etcdv2"
)

// A member's clock is told by the date of its answer, where that has one.
func TestMembersAhead(t *testing.T) {
	for _, test := range []struct {
		name string
		date func() string
		want time.Duration
	}{
		{"as here", func() string { return time.Now().UTC().Format(http.TimeFormat) }, 0},
		{"ahead", func() string { return time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) }, time.Hour},
		{"behind", func() string { return time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat) }, -time.Hour},
		{"no date", func() string { return "" }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := fake(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Date"] = nil // or the server writes its own
				if d := test.date(); d != "" {
					w.Header().Set("Date", d)
				}
			})
			m := open(t, etcdv2.Options{Endpoints: []string{server.URL}, Prefix: "net"}).Members(t.Context())[0]
			if m.Err != nil || (m.Ahead-test.want).Abs() > 2*time.Second {
				t.Errorf("%+v, want a clock that is ahead by %v", m, test.want)
			}
		})
	}
}
