package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// secret is a password that must not be seen anywhere.
const secret = "open-sesame-4711"

// keepsSecret checks that a text does not show a user's password, as such or as
// HTTP sends it.
func keepsSecret(t *testing.T, what, text, user, password string) {
	t.Helper()
	if password == "" {
		return
	}
	if strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(user+":"+password))) {
		t.Errorf("%s has the password, as HTTP sends it:\n%s", what, text)
	}
	if strings.Contains(text, password) {
		t.Errorf("%s has the password:\n%s", what, text)
	}
}

// newAuthority is a CA of the test's own.
func newAuthority(l *lab.Lab, name string) *lab.CA {
	l.Helper()
	ca, err := lab.NewCA(name)
	l.Must(err)
	return ca
}

// admit writes the files for TLS of a host into a directory, and returns the flags
// that name them.
func admit(l *lab.Lab, dir string, trusted, issuer *lab.CA, until time.Time) []string {
	l.Helper()
	c, err := issuer.Issue("host", until)
	l.Must(err)
	var flags []string
	for _, f := range []struct {
		flag, name string
		text       []byte
	}{{"cafile", "ca.pem", trusted.PEM}, {"certfile", "client.pem", c.Cert}, {"keyfile", "client-key.pem", c.Key}} {
		name := filepath.Join(dir, f.name)
		l.Must(lab.Replace(name, f.text))
		flags = append(flags, "--etcd-"+f.flag+"="+name)
	}
	return flags
}

// Each thing that may be wrong between a host and an etcd with TLS has a message of
// its own, which names what is to be put right, and is said once.
func TestEtcdTLSMessages(t *testing.T) {
	l, s := newSegment(t)
	ca, other := newAuthority(l, "ca"), newAuthority(l, "other")
	c := cluster.On(l, l.Host("etcd", s).EtcdTLS(ca))
	c.SetConfig(configOf(`{"Type": "vxlan"}`))
	h := c.Node("h1", s)
	good, over := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	date := func(at time.Time) string { return at.UTC().Format(time.RFC3339) }
	present := func(ca *lab.CA, until time.Time, addrs ...netip.Addr) func() {
		return func() {
			t.Helper()
			cert, err := ca.Issue("etcd", until, addrs...)
			l.Must(err)
			c.Etcd.Present(cert)
		}
	}
	addr, url := c.Etcd.Host().Addr(), c.Etcd.Endpoint()
	plain := strings.Replace(url, "https://", "http://", 1)
	file := func(name string) string { return filepath.Join(h.Dir, name) }
	mine := func() []string { return admit(l, h.Dir, ca, ca, good) }

	for _, test := range []struct {
		name      string
		present   func() // what etcd shows; nil for as it should be
		flags     func() []string
		endpoints []string
		want      string
	}{
		{"wrong CA", nil, func() []string { return admit(l, h.Dir, other, ca, good) }, nil,
			url + `: its certificate, issued by "ca", is of none of the CAs in ` + file("ca.pem") + "; put the certificate of etcd's CA there, or name another file with --etcd-cafile"},
		{"no CA", nil, func() []string { return mine()[1:] }, nil,
			url + `: its certificate, issued by "ca", is of none of the CAs that this system trusts; name the file with etcd's CA with --etcd-cafile`},
		{"etcd's has expired", present(ca, over, addr), mine, nil,
			url + ": its certificate has expired, at " + date(over) + "; renew it"},
		{"etcd's is for another address", present(ca, good, netip.MustParseAddr("10.9.9.9")), mine, nil,
			url + ": its certificate is for 10.9.9.9 and not for " + addr.String() + "; use one of its names in --etcd-endpoints, or have one issued that has this name"},
		{"etcd's is for nobody", present(ca, good), mine, nil,
			url + ": its certificate is for no name or address at all and not for " + addr.String() + "; "},
		{"expired", nil, func() []string { return admit(l, h.Dir, ca, ca, over) }, nil,
			url + ": it refuses the client certificate in " + file("client.pem") + ", which has expired, at " + date(over) + "; renew it"},
		{"of another CA", nil, func() []string { return admit(l, h.Dir, ca, other, good) }, nil,
			url + ": it refuses the client certificate in " + file("client.pem") + `, issued by "other", and does not trust who issued it; use one of a CA in its --trusted-ca-file`},
		{"none", nil, func() []string { return mine()[:1] }, nil,
			url + ": it wants a client certificate; give --etcd-certfile and --etcd-keyfile, of a CA that it trusts"},
		{"http for https", nil, func() []string { return nil }, []string{plain},
			plain + ": it hangs up: EOF (if etcd is served there with TLS, write https:// in --etcd-endpoints)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			present(ca, good, addr)()
			if test.present != nil {
				test.present()
			}
			h.Endpoints = test.endpoints
			h.Start(test.flags()...)
			w := watched{h: h}
			w.says(t, waits+"reading "+c.Prefix+"/config in etcd: "+test.want, 1, 30*time.Second)
			// What is put right is noticed, by files that have the same names.
			if len(test.endpoints) == 0 && len(test.flags()) == 3 {
				present(ca, good, addr)()
				mine()
				h.AwaitReady()
				w.says(t, worksOn, 1, within)
			}
			w.once(t, waits)
			h.Stop()
		})
	}

	t.Run("https for http", func(t *testing.T) {
		e := l.Host("plain", s).Etcd()
		wrong := strings.Replace(e.Endpoint(), "http://", "https://", 1)
		h.Endpoints = []string{wrong}
		h.Start(mine()...)
		w := watched{h: h}
		w.says(t, waits+"reading "+c.Prefix+"/config in etcd: "+wrong+": it hangs up: EOF (if etcd is served there without TLS, write http:// in --etcd-endpoints)", 1, 30*time.Second)
		w.once(t, waits)
		h.Stop()
	})

	// The one that is right is used, and those that are wrong are named in one line,
	// those with the same cause together.
	t.Run("two of three", func(t *testing.T) {
		closed, shut := fmt.Sprintf("https://%v:2", addr), fmt.Sprintf("https://%v:3", addr)
		h.Endpoints = []string{shut, url, closed}
		without := "Going on without some of the etcd endpoints: "
		both := without + closed + ", " + shut + ": connecting to it: connection refused"
		seen := false
		for range 30 { // the order is left to chance
			h.Start(mine()...)
			h.AwaitReady()
			w := watched{h: h}
			h.Stop()
			w.once(t)
			if n := w.count(waits); n > 0 || w.count(without) > 1 {
				t.Fatalf("it says\n%s", strings.Join(w.said(), "\n"))
			}
			if seen = w.count(both) == 1; seen {
				break
			}
		}
		if !seen {
			t.Errorf("the endpoints are never named")
		}
	})

	t.Run("http only", func(t *testing.T) {
		h.Endpoints = []string{plain}
		h.Start(mine()...)
		w := watched{h: h}
		w.says(t, "The files for TLS are of no use with "+plain+": write https:// in --etcd-endpoints if etcd is served there with TLS", 1, 30*time.Second)
		h.Stop()
	})

	// etcd takes the certificate's name for a user's, so that a password is not needed.
	t.Run("user by certificate", func(t *testing.T) {
		c.Etcd.EnableAuth()
		h.Endpoints = nil
		h.Start(mine()...)
		w := watched{h: h}
		w.says(t, waits+"reading "+c.Prefix+"/config: etcd says: The request requires user authentication (Insufficient credentials); give --etcd-username and --etcd-password, or a client certificate with the name of a user that may do this", 1, 30*time.Second)
		c.Etcd.SetUser("host", secret, c.Prefix) // as admit calls it
		h.AwaitReady()
		h.Stop()
	})

	// What another start may find put right is a failure, and no wrong usage.
	t.Run("no key", func(t *testing.T) {
		h.Endpoints = nil
		flags := mine()
		l.Must(os.Remove(file("client-key.pem")))
		h.Start(flags...)
		status, err := h.Daemon.Wait(30 * time.Second)
		l.Must(err)
		said := watched{h: h}.said()
		want := "Stopping: reading the key of the client certificate for etcd: open " + file("client-key.pem") + ": no such file or directory; put the file there, or name another with --etcd-keyfile"
		if status != 1 || said[len(said)-1] != want {
			t.Errorf("status %d after\n%s", status, strings.Join(said, "\n"))
		}
		if slices.Contains(h.Daemon.Notified(), "READY=1") {
			t.Error("it was ready")
		}
	})
}

// What may be wrong with a user of etcd's is said, as far as etcd tells, with the
// user's name and never with the password: not in the log, however much is logged,
// not to systemd, not by /healthz, and not to who lists the processes.
func TestEtcdUserMessages(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "vxlan"}`))
	c.Etcd.EnableAuth()
	c.Etcd.SetUser("host1", secret, c.Prefix)
	c.Etcd.SetUser("reader", secret, c.Prefix)
	c.Etcd.SetRole("reader", []string{c.Prefix + "/*"}, nil)
	h := c.Node("h1", s)
	rights := "flanneld has to read and write " + c.Prefix + "/*"
	config := c.Prefix + "/config"
	nobody := func(name string) string {
		return waits + "reading " + config + ": etcd says: The request requires user authentication (Insufficient credentials); there is no user \"" + name +
			"\" with the password given, or it may not do this: see to --etcd-username, --etcd-password and the roles of that user (" + rights + "; etcd's log says which it is)"
	}
	const health = "--healthz-port=10"

	for _, test := range []struct {
		name            string
		user, password  string
		prefix          string
		want            string
		byFlag, refused bool
	}{
		{name: "wrong password", user: "host1", password: secret + "0", want: nobody("host1"), refused: true},
		{name: "wrong password by flag", user: "host1", password: secret + "0", want: nobody("host1"), byFlag: true, refused: true},
		{name: "unknown user", user: "nobody", password: secret, want: nobody("nobody"), refused: true},
		{name: "no user", refused: true,
			want: waits + "reading " + config + ": etcd says: The request requires user authentication (Insufficient credentials); give --etcd-username and --etcd-password of a user that may do this (" + rights + ")"},
		{name: "may not write", user: "reader", password: secret, refused: true,
			want: waits + `writing ` + c.Prefix + `/subnets/10.1.7.0-24: etcd says: The request requires user authentication (Insufficient credentials); the user "reader" may read ` + config + ", so name and password are right: give it a role that may do this too (" + rights + ")"},
		{name: "right", user: "host1", password: secret, want: "Ready: "},
		{name: "right by flag", user: "host1", password: secret, byFlag: true, want: "Ready: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			reserve(c, h, 7)
			args := []string{"-v=10", health}
			h.Under = nil
			if test.user != "" {
				args = append(args, "--etcd-username="+test.user)
			}
			if test.byFlag {
				args = append(args, "--etcd-password="+test.password)
			} else if test.user != "" {
				h.Under = []string{"env", "FLANNELD_ETCD_PASSWORD=" + test.password}
			}
			h.Start(args...)
			w := watched{h: h}
			w.says(t, test.want, 1, 30*time.Second)
			body := healthOf(t, h, 10)
			if !test.byFlag {
				for _, pid := range processesIn(t, h) {
					line, _ := os.ReadFile(fmt.Sprintf("/proc/%s/cmdline", pid)) // it may have ended
					keepsSecret(t, "the command line of "+pid, string(line), test.user, test.password)
				}
			}
			if test.refused {
				w.once(t, waits)
			}
			_, err := h.Daemon.Stop(syscall.SIGTERM, 20*time.Second)
			c.Must(err)
			keepsSecret(t, "the log", h.Daemon.Log(), test.user, test.password)
			keepsSecret(t, "what systemd is told", strings.Join(h.Daemon.Notified(), "\n"), test.user, test.password)
			keepsSecret(t, "/healthz", body, test.user, test.password)
		})
	}
}

// The programs that are called get no password, also where the variable of unit
// files that flags are in, and may be one, is in the environment.
func TestProgramsGetNoPassword(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(configOf(`{"Type": "host-gw"}`))
	h := c.Node("h1", s)
	door := behindFrontDoor(t, h, "iptables-nft")
	seen := filepath.Join(h.Dir, "environments")
	door.set("cat /proc/$$/environ >>" + seen)
	h.Under = append(h.Under, "FLANNELD_ETCD_PASSWORD="+secret, "FLANNEL_OPTIONS=-etcd-username=u -etcd-password="+secret)
	h.Start("--etcd-username=u")
	h.AwaitReady()
	lab.Eventually(t, 30*time.Second, "rules", func() error {
		if calls := door.calls(); !slices.ContainsFunc(calls, func(c string) bool { return strings.HasPrefix(c, "iptables-restore ") }) {
			return fmt.Errorf("the calls are %q", calls)
		}
		return nil
	})
	h.Stop()
	text, err := os.ReadFile(seen)
	c.Must(err)
	if !strings.Contains(string(text), "PATH=") {
		t.Errorf("there is nothing to be seen: %q", text)
	}
	keepsSecret(t, "the environment of iptables", string(text), "u", secret)
}

// healthOf is what /healthz says.
func healthOf(t *testing.T, h *cluster.Node, port int) (body string) {
	t.Helper()
	lab.Eventually(t, 10*time.Second, "an answer of /healthz", func() error {
		resp, err := h.HTTP().Get(fmt.Sprintf("http://%v:%d/healthz", h.Addr(), port))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("it answers %s", resp.Status)
		}
		body = string(b)
		return err
	})
	return body
}

// processesIn are the processes in a host's namespace.
func processesIn(t *testing.T, h *cluster.Node) []string {
	t.Helper()
	all := strings.Fields(h.Run("ip", "netns", "pids", h.Name))
	if len(all) == 0 {
		t.Error("there is no process")
	}
	return all
}
