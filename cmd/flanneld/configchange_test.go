package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// wholeConfig names every field, so that there is a text for each to replace.
const wholeConfig = `{"Network": "10.1.0.0/16", "SubnetLen": 24, "SubnetMin": "10.1.1.0", "SubnetMax": "10.1.99.0", "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472, "GBP": false, "DirectRouting": false, "MTU": 1500}}`

const (
	configChanged  = "The network config in the store was changed: "
	configUnusable = "The network config in the store was changed to one that cannot be used"
	configDeleted  = "The network config was deleted from the store"
	configBack     = "The network config in the store is again the one in use"
	strayHost      = "this host's subnet 10.1.1.0/24 is none of its subnets"
)

// changing is a host whose network config changes while flanneld runs.
type changing struct {
	t    *testing.T
	c    *cluster.Cluster
	h    *cluster.Node
	seen int // how much of the log has been looked at
}

// changingConfig starts a flanneld with the subnet 10.1.1.0/24 on a config.
func changingConfig(t *testing.T, config string) *changing {
	t.Helper()
	c, s := newCluster(t)
	c.SetConfig(config)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	h.Start("--healthz-port=2401")
	h.AwaitReady()
	awaitHealthz(t, h, http.StatusOK, "ok")
	x := &changing{t: t, c: c, h: h}
	x.seen = len(h.Daemon.Log())
	return x
}

// restart stops and starts flanneld.
func (x *changing) restart() {
	x.t.Helper()
	x.h.Stop()
	x.h.Start("--healthz-port=2401")
	x.h.AwaitReady()
	x.seen = 0
}

// said waits for the one line about the config that comes next in the log and
// begins with these words, and returns its text.
func (x *changing) said(words string) string {
	x.t.Helper()
	var line string
	lab.Eventually(x.t, within, "the log says: "+words, func() error {
		all := x.lines()
		if len(all) != 1 || !strings.HasPrefix(all[0], words) {
			return fmt.Errorf("the lines about the config are:\n%s", strings.Join(all, "\n"))
		}
		line = all[0]
		return nil
	})
	x.seen = len(x.h.Daemon.Log())
	return line
}

var aboutConfig = regexp.MustCompile(`(?m)^[IWE]\d{4} .*?\] (The network config .*)\n`)

// lines are those about the config that have not been looked at yet.
func (x *changing) lines() (all []string) {
	for _, line := range aboutConfig.FindAllStringSubmatch(x.h.Daemon.Log()[x.seen:], -1) {
		all = append(all, line[1])
	}
	return all
}

// healthy waits until /healthz says that all is well, and, unless there is
// nothing to say, has one more line, with all these words, about the config.
func (x *changing) healthy(words ...string) {
	x.t.Helper()
	lab.Eventually(x.t, healing, "healthz", func() error {
		body, status, err := getHealthz(x.h)
		if err != nil {
			return err
		}
		all := strings.Split(strings.TrimSpace(body), "\n")
		good := status == http.StatusOK && all[0] == "ok"
		if len(words) == 0 {
			good = good && len(all) == 1
		} else {
			good = good && len(all) == 2 && strings.HasPrefix(all[1], "config: ")
		}
		for _, w := range words {
			good = good && strings.Contains(all[len(all)-1], w)
		}
		if !good {
			return fmt.Errorf("it says %d\n%swant 200, ok, and of the config %q", status, body, words)
		}
		return nil
	})
}

// Each field that is changed while flanneld runs is named, with what it was and
// what it is now, in the log and by /healthz, for which all is well; fields that
// are as before are not named. Put back, there is nothing to say any more.
func TestConfigChange(t *testing.T) {
	x := changingConfig(t, wholeConfig)
	for _, test := range []struct {
		old, new string
		stray    bool // the host's subnet is no more
		fields   []string
	}{
		{`"10.1.0.0/16"`, `"10.0.0.0/15"`, false, []string{"Network is 10.0.0.0/15 instead of 10.1.0.0/16"}},
		{`"SubnetLen": 24`, `"SubnetLen": 25`, true, []string{"SubnetLen is 25 instead of 24"}},
		{`"SubnetMin": "10.1.1.0"`, `"SubnetMin": "10.1.0.0"`, false, []string{"SubnetMin is 10.1.0.0 instead of 10.1.1.0"}},
		{`"SubnetMin": "10.1.1.0"`, `"SubnetMin": "10.1.2.0"`, true, []string{"SubnetMin is 10.1.2.0 instead of 10.1.1.0"}},
		{`"SubnetMax": "10.1.99.0"`, `"SubnetMax": "10.1.98.0"`, false, []string{"SubnetMax is 10.1.98.0 instead of 10.1.99.0"}},
		{`"VNI": 1`, `"VNI": 7`, false, []string{"Backend.VNI is 7 instead of 1"}},
		{`"Port": 8472`, `"Port": 4789`, false, []string{"Backend.Port is 4789 instead of 8472"}},
		{`"GBP": false`, `"GBP": true`, false, []string{"Backend.GBP is true instead of false"}},
		{`"DirectRouting": false`, `"DirectRouting": true`, false, []string{"Backend.DirectRouting is true instead of false"}},
		{`"MTU": 1500`, `"MTU": 1400`, false, []string{"Backend.MTU is 1400 instead of 1500"}},
		{`"VNI": 1, "Port": 8472`, `"VNI": 7, "Port": 4789`, false, []string{"Backend.VNI is 7 instead of 1", "Backend.Port is 4789 instead of 8472"}},
		{`"SubnetMax": "10.1.99.0", "Backend": {"Type": "vxlan", "VNI": 1`, `"SubnetMax": "10.1.98.0", "Backend": {"Type": "vxlan", "VNI": 7`, false,
			[]string{"SubnetMax is 10.1.98.0 instead of 10.1.99.0", "Backend.VNI is 7 instead of 1"}},
	} {
		config := strings.Replace(wholeConfig, test.old, test.new, 1)
		if config == wholeConfig {
			t.Fatalf("%s is not in the config", test.old)
		}
		x.c.SetConfig(config)
		line := x.said(configChanged)
		for _, field := range test.fields {
			if !strings.Contains(line, field) {
				t.Errorf("%s: %q is not in %q", test.new, field, line)
			}
		}
		if n := strings.Count(line, " instead of "); n != len(test.fields) {
			t.Errorf("%s: %d fields are named, not %d: %q", test.new, n, len(test.fields), line)
		}
		if !strings.HasSuffix(line, "; restart flanneld to apply it") {
			t.Errorf("%s: what to do is not said: %q", test.new, line)
		}
		if got := strings.Contains(line, strayHost); got != test.stray {
			t.Errorf("%s: that the host's subnet is none of the new ones is said: %t: %q", test.new, got, line)
		}
		words := test.fields
		if test.stray {
			words = append(slices.Clone(words), strayHost)
		}
		x.healthy(words...)

		x.c.SetConfig(wholeConfig)
		x.said(configBack)
		x.healthy()
	}
	if !x.h.Daemon.Running() {
		t.Error("it has ended")
	}
}

// The backend may become another, with other fields.
func TestConfigChangeOfBackend(t *testing.T) {
	x := changingConfig(t, `{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	for _, backend := range []string{`{"Type": "vxlan"}`, `{"Type": "vxlan", "VNI": 7}`, `{"Type": "udp"}`, `{"Type": "udp", "Port": 7890}`} {
		x.c.SetConfig(fmt.Sprintf(`{"Network": "10.1.0.0/16", "Backend": %s}`, backend))
		want := fmt.Sprintf("Backend.Type is %s instead of host-gw", typeOf(backend))
		if line := x.said(configChanged); !strings.Contains(line, want) || strings.Contains(line, "Network is") || strings.Contains(line, "Subnet") {
			t.Errorf("%s: it says %q", backend, line)
		}
		x.healthy(want)
	}
	// No Backend is udp, and none of this is the one in use.
	x.c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
	x.said(configBack)
	x.c.SetConfig(`{"Network": "10.1.0.0/16"}`)
	if line := x.said(configChanged); !strings.Contains(line, "Backend.Type is udp instead of host-gw") {
		t.Errorf("it says %q", line)
	}
}

// A config that is deleted, or cannot be used, or is one change after another,
// is said each time, until it is put back.
func TestConfigChangeBroken(t *testing.T) {
	x := changingConfig(t, wholeConfig)
	other := strings.Replace(wholeConfig, `"VNI": 1`, `"VNI": 7`, 1)
	another := strings.Replace(wholeConfig, `"VNI": 1`, `"VNI": 8`, 1)
	alive := func() {
		t.Helper()
		body, status, err := getHealthz(x.h)
		if err != nil || status != http.StatusOK || !strings.HasPrefix(body, "ok\n") {
			t.Errorf("healthz is %d %s, %v", status, body, err)
		}
	}
	x.c.DeleteConfig()
	x.said(configDeleted)
	alive()
	x.c.SetConfig(wholeConfig)
	x.said(configBack)
	x.healthy()
	for _, broken := range []struct{ config, why string }{
		{`{"Network": 5}`, "Network is 5: must be a string"},
		{`hello`, "hello is not valid JSON"},
		{strings.Replace(wholeConfig, `"VNI": 1`, `"VNI": "one"`, 1), `Backend.VNI is "one"`},
		{strings.Replace(wholeConfig, `"vxlan"`, `"ipip"`, 1), `Backend.Type is "ipip"`},
	} {
		x.c.SetConfig(broken.config)
		if line := x.said(configUnusable); !strings.Contains(line, broken.why) {
			t.Errorf("%s: it says %q", broken.config, line)
		}
		alive()
	}
	x.c.DeleteConfig()
	x.said(configDeleted)
	x.c.SetConfig(other)
	x.said(configChanged)
	x.healthy("Backend.VNI is 7 instead of 1")
	x.c.SetConfig(another)
	if line := x.said(configChanged); !strings.Contains(line, "Backend.VNI is 8 instead of 1") {
		t.Errorf("it says %q", line)
	}
	x.healthy("Backend.VNI is 8 instead of 1")
	x.c.SetConfig(wholeConfig)
	x.said(configBack)
	x.healthy()
}

// The same config in other words is no change.
func TestConfigInOtherWords(t *testing.T) {
	const config = `{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`
	x := changingConfig(t, config)
	for _, same := range []string{
		config, // written again
		"{\n\t\"Backend\": {\"Type\": \"vxlan\"},\n\t\"Network\": \"10.1.0.0/16\"\n}\n",
		`{"Network":"10.1.7.1/16","Backend":{"Type":"vxlan"}}`,
		`{"network": "10.1.0.0/16", "BACKEND": {"type": "vxlan"}}`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "VXLAN"}}`,
		`{"Network": "10.1.0.0/16", "SubnetLen": 24, "SubnetMin": "10.1.1.0", "SubnetMax": "10.1.255.0", "Backend": {"Type": "vxlan"}}`,
		`{"Network": "10.1.0.0/16", "SubnetLen": null, "Backend": {"Type": "vxlan", "VNI": null}}`,
		`{"Network": "10.1.0.0/16", "Backend": {"VNI": 1, "Port": 8472, "GBP": false, "DirectRouting": false, "Type": "vxlan"}}`,
	} {
		reads := configReads(x.c)
		x.c.SetConfig(same)
		lab.Eventually(t, within, "flanneld reads the config", func() error {
			if n := configReads(x.c); n == reads {
				return errors.New("it has not")
			}
			return nil
		})
		// The next change is said, alone, and with it what this one is not.
		x.c.SetConfig(strings.Replace(config, `"vxlan"`, `"vxlan", "VNI": 7`, 1))
		if line := x.said(configChanged); !strings.Contains(line, "Backend.VNI is 7 ") || strings.Count(line, " instead of ") != 1 {
			t.Errorf("after %s it says %q", same, line)
		}
		x.c.SetConfig(same)
		x.said(configBack)
		x.healthy()
	}
}

// configReads is how many reads etcd has answered, which while nothing else goes
// on are flanneld's of the config.
func configReads(c *cluster.Cluster) (n int) {
	c.Helper()
	resp, err := c.Router.HTTP().Get(c.Etcd.Endpoint() + "/v2/stats/store")
	c.Must(err)
	defer resp.Body.Close()
	var stats struct{ GetsSuccess int }
	c.Must(json.NewDecoder(resp.Body).Decode(&stats))
	return stats.GetsSuccess
}

// A host whose subnet is none of the new config's keeps its lease, and each
// renewal says that it should be restarted; restarted, it has a lease of the new
// network and nothing of the old one.
func TestConfigLeavesHostOut(t *testing.T) {
	const config = `{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}`
	x := changingConfig(t, config)
	c, h := x.c, x.h
	own := leaseAt(c, 1).Value
	renewals := func() int {
		return len(regexp.MustCompile(`(?m)^W\d{4} .*\] Renewed the lease of 10\.1\.1\.0/24, although `).FindAllString(h.Daemon.Log(), -1))
	}
	renew := func() {
		t.Helper()
		c.PutLease(fakeKey(1), own, 4*time.Second)
		awaitRenewed(t, c, 1, leaseAt(c, 1))
	}
	const other = `{"Network": "10.2.0.0/16", "Backend": {"Type": "host-gw"}}`
	c.SetConfig(other)
	if line := x.said(configChanged); !strings.Contains(line, "Network is 10.2.0.0/16 instead of 10.1.0.0/16") ||
		!strings.Contains(line, "Backend.Type is host-gw instead of vxlan") || !strings.Contains(line, strayHost) {
		t.Errorf("it says %q", line)
	}
	x.healthy("Network is 10.2.0.0/16 instead of 10.1.0.0/16", strayHost)
	for want := 1; want <= 2; want++ {
		renew()
		lab.Eventually(t, within, "the renewal is warned of", func() error {
			if n := renewals(); n != want {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
	}

	// Not while the subnet is one of the config's, or is so again. (A flanneld
	// whose lease somebody else writes too often takes him for another host, so
	// this is a new one.)
	c.SetConfig(config)
	x.said(configBack)
	x.restart()
	c.SetConfig(strings.Replace(config, `"vxlan"`, `"vxlan", "VNI": 7`, 1))
	x.said(configChanged)
	renew()
	c.SetConfig(other)
	x.said(configChanged)
	c.SetConfig(config)
	x.said(configBack)
	x.healthy()
	renew()
	if n := renewals(); n != 0 {
		t.Errorf("%d renewals are warned of without a reason", n)
	}

	c.SetConfig(other)
	x.said(configChanged)
	x.restart()
	x.healthy()
	e := h.Env()
	if e.Network.String() != "10.2.0.0/16" || !e.Network.Contains(e.Gateway.Addr()) || e.MTU != 1500 {
		t.Errorf("the subnet file says %+v", e)
	}
	if all := c.Leases(); len(all) != 1 || all[strings.ReplaceAll(e.Subnet().String(), "/", "-")].Value == "" {
		t.Errorf("the leases are %v", all)
	}
	if links := h.Run("ip", "-o", "link"); strings.Contains(links, "flannel.1") {
		t.Errorf("the old network's device is still there:\n%s", links)
	}
	if all := x.lines(); len(all) != 0 {
		t.Errorf("after the restart the log says\n%s", strings.Join(all, "\n"))
	}
}
