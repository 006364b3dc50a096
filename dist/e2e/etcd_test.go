//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// admit writes the files for TLS of a host into a directory: ca.pem, client.pem
// and client-key.pem.
func admit(l *lab.Lab, dir string, ca *lab.CA) {
	l.Helper()
	c, err := ca.Issue("host", time.Now().Add(time.Hour))
	l.Must(err)
	l.Must(lab.Replace(filepath.Join(dir, "ca.pem"), ca.PEM))
	l.Must(lab.Replace(filepath.Join(dir, "client.pem"), c.Cert))
	l.Must(lab.Replace(filepath.Join(dir, "client-key.pem"), c.Key))
}

// Three members of etcd, which want a certificate, a user with a password, or both.
// Containers on two hosts reach each other; then one member after the other is
// killed, and while it is away a further host joins and is reached. No echo is
// lost, and no password is told.
func TestEtcdAccess(t *testing.T) {
	const user, password = "flannel", "open-sesame-4711"
	for _, test := range []struct {
		name         string
		certificates bool
		withUser     bool
	}{
		{name: "certificates", certificates: true},
		{name: "user and password", withUser: true},
		{name: "both", certificates: true, withUser: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := lab.ForTest(t)
			s := l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
			hosts := []*lab.Host{l.Host("e1", s), l.Host("e2", s), l.Host("e3", s)}
			var ca *lab.CA
			var members lab.EtcdMembers
			if test.certificates {
				var err error
				ca, err = lab.NewCA("ca")
				l.Must(err)
				members = lab.StartEtcdTLS(ca, hosts...)
			} else {
				members = lab.StartEtcd(hosts...)
			}
			c := cluster.On(l, members...)
			c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`)
			if test.withUser {
				members.EnableAuth()
				members[0].SetUser(user, password, c.Prefix)
				leastRights(t, members[0], user, password, c.Prefix)
			}
			var nodes []*cluster.Node
			join := func() *lab.Container {
				t.Helper()
				h := c.Node(fmt.Sprintf("h%d", len(nodes)+1), s)
				var args []string
				if test.certificates {
					admit(l, h.Dir, ca)
					args = append(args, "--etcd-cafile=ca.pem", "--etcd-certfile=client.pem", "--etcd-keyfile=client-key.pem")
				}
				if test.withUser {
					args = append(args, "--etcd-username="+user)
					h.Under = []string{"env", "FLANNELD_ETCD_PASSWORD=" + password}
				}
				h.Start(args...)
				h.AwaitReady()
				nodes = append(nodes, h)
				return h.AddContainer("c")
			}
			c1, c2 := join(), join()
			reached := func(to *lab.Container) {
				t.Helper()
				lab.EventuallyPing(t, 30*time.Second, c1, to.Addr(), lab.Echo{})
			}
			reached(c2)
			lossless := pingAllTheWhile(t, c1, c2.Addr())

			for _, e := range members[:2] {
				rest := members.Others(e)
				e.Stop()
				c.Etcd = rest[0]
				reached(join())
				e.Restart()
			}
			lossless()
			for _, h := range nodes {
				for what, text := range map[string]string{"the log": h.Daemon.Log(), "what systemd is told": strings.Join(h.Daemon.Notified(), "\n")} {
					if strings.Contains(text, password) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(user+":"+password))) {
						t.Errorf("on %s %s has the password:\n%s", h.Name, what, text)
					}
				}
			}
		})
	}
}

// leastRights checks that a user may do what flanneld has to, and nothing else.
func leastRights(t *testing.T, e *lab.Etcd, user, password, prefix string) {
	t.Helper()
	for key, want := range map[string]int{prefix + "/config": http.StatusOK, "/other": http.StatusUnauthorized} {
		req, err := http.NewRequest(http.MethodGet, e.Local()+"/v2/keys"+key, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(user, password)
		resp, err := e.Host().HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s reading %s gets %s", user, key, resp.Status)
		}
	}
}

// pingAllTheWhile pings from a container, every 20 ms, until lossless is called,
// which checks that each echo was answered.
func pingAllTheWhile(t *testing.T, from *lab.Container, to netip.Addr) (lossless func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	type outcome struct {
		stats lab.EchoStats
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		// An answer may be late on a busy machine, and is lost if it takes this long.
		stats, err := from.Ping(to, lab.Echo{Count: 1 << 30, Interval: 20 * time.Millisecond, Timeout: 5 * time.Second, Context: ctx})
		done <- outcome{stats, err}
	}()
	return func() {
		t.Helper()
		stop()
		o := <-done
		if o.err != nil || o.stats.Received != o.stats.Sent || o.stats.Sent == 0 {
			t.Errorf("%d of %d echoes were answered: %v", o.stats.Received, o.stats.Sent, o.err)
		}
		t.Logf("%d echoes", o.stats.Sent)
	}
}
