package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// mending is how long flanneld may take to notice, with --iptables-resync=1, what
// iptables does now, on a busy machine.
const mending = 20 * time.Second

// kinds of iptables, each with rules of its own.
func iptablesKinds(t *testing.T, test func(t *testing.T, program string)) {
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(program, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				t.Fatalf("%v: install the package iptables", err)
			}
			test(t, program)
		})
	}
}

// A frontDoor stands between a node's flanneld and its iptables programs: it
// notes each call, and does on the way what it is told.
type frontDoor struct {
	t   *testing.T
	dir string
}

// behindFrontDoor puts one in front of a kind of iptables, for the flanneld that
// is started next.
func behindFrontDoor(t *testing.T, h *cluster.Node, program string) *frontDoor {
	t.Helper()
	d := &frontDoor{t, t.TempDir()}
	d.set("")
	for _, suffix := range []string{"", "-restore"} {
		real, err := exec.LookPath(program + suffix)
		if err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\necho \"${0##*/} $*\" >>%[1]s/calls\nreal=%[2]s\n. %[1]s/first\nexec %[2]s \"$@\"\n", d.dir, real)
		if err := os.WriteFile(filepath.Join(d.dir, "iptables"+suffix), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.Under = []string{"env", "PATH=" + d.dir + ":" + os.Getenv("PATH")}
	return d
}

// set has the door do something first: lines of shell in which $real is the
// program that was called.
func (d *frontDoor) set(first string) {
	d.t.Helper()
	if err := lab.Replace(filepath.Join(d.dir, "first"), []byte(first+"\n")); err != nil {
		d.t.Fatal(err)
	}
}

// calls are the commands so far.
func (d *frontDoor) calls() []string {
	text, err := os.ReadFile(filepath.Join(d.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// await waits for so many more calls.
func (d *frontDoor) await(more int) {
	d.t.Helper()
	before := len(d.calls())
	lab.Eventually(d.t, mending+time.Duration(more)*time.Second, fmt.Sprintf("%d calls of iptables", more), func() error {
		if now := len(d.calls()); now < before+more {
			return fmt.Errorf("%d so far", now-before)
		}
		return nil
	})
}

// healthSays waits for a status of /healthz, with something in its text.
func healthSays(t *testing.T, h *cluster.Node, status int, what string) {
	t.Helper()
	lab.Eventually(t, mending, "healthz", func() error {
		body, now, err := getHealthz(h)
		if err == nil && (now != status || !strings.Contains(body, what)) {
			err = fmt.Errorf("it says %d\n%swant %d and %s", now, body, status, what)
		}
		return err
	})
}

// logged is how many lines of the log match.
func logged(h *cluster.Node, pattern string) int {
	return len(regexp.MustCompile("(?m)"+pattern).FindAllString(h.Daemon.Log(), -1))
}

// Where nothing is wrong a resync is two processes, each of which only looks.
func TestResyncCost(t *testing.T) {
	iptablesKinds(t, func(t *testing.T, program string) {
		c, s := newCluster(t)
		c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}`)
		h := c.Node("h1", s)
		d := behindFrontDoor(t, h, program)
		h.Start("--ip-masq", "--iptables-resync=1")
		h.AwaitReady()
		lab.Eventually(t, mending, "the rules", func() error {
			if !strings.Contains(h.Run(program, "-S"), "-A FORWARD -j FLANNEL-FWD") {
				return fmt.Errorf("there is no jump")
			}
			return nil
		})
		d.await(2) // what followed that change
		start, before := time.Now(), len(d.calls())
		d.await(8)
		calls, took := d.calls()[before:], time.Since(start)
		for i, call := range calls {
			if i > 0 && call == calls[i-1] || call != "iptables -w -t nat -S" && call != "iptables -w -t filter -S" {
				t.Errorf("call %d is %q, want both tables in turn, to look at:\n%s", i+1, call, strings.Join(calls, "\n"))
				break
			}
		}
		if most := 2 * (int(took/time.Second) + 2); len(calls) > most {
			t.Errorf("%d processes in %v, more than two a second", len(calls), took)
		}
	})
}

// Whatever is the matter with iptables is said once, and by /healthz as long as it
// lasts; the network works, and when iptables does again the rules are put right.
func TestIPTablesFails(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h := c.Node("h1", s)
	reserve(c, h, 1)
	d := behindFrontDoor(t, h, "iptables-nft")
	const noVersion = `Going on without firewall rules: asking \S+/iptables for its version: .*Welcome`
	d.set("echo Welcome; exit 0")
	h.Start("--healthz-port=2401", "--iptables-resync=1")
	h.AwaitReady()
	c.Must(h.Daemon.WaitLog(noVersion, mending))
	healthSays(t, h, http.StatusServiceUnavailable, "firewall: asking ")
	d.await(4)
	d.set("")
	c.Must(h.Daemon.WaitLog("Found an iptables program that works", mending))
	healthSays(t, h, http.StatusOK, "ok")
	if n := logged(h, noVersion); n != 1 {
		t.Errorf("said %d times that iptables has no version", n)
	}
	_, c2 := join(c, s, 2)
	c1 := h.AddContainer("c")
	forward := func(there bool) {
		t.Helper()
		lab.Eventually(t, mending, "the rules", func() error {
			if rules := h.Run("iptables-nft", "-S"); strings.Contains(rules, "-A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT") != there {
				return fmt.Errorf("of FLANNEL-FWD there is\n%s", rules)
			}
			return nil
		})
	}
	for _, test := range []struct {
		name, first, says string
		filter            bool // is kept right all the same
	}{
		{"no permission", `exec setpriv --bounding-set=-net_admin,-net_raw "$real" "$@"`,
			`listing the iptables table nat: iptables: exit status 4: .*Permission denied \(you must be root\)`, false},
		{"a kernel without nat", `case "$*" in *"-t nat"*) echo "iptables v1.8.9 (legacy): can't initialize iptables table \` + "`" + `nat': Table does not exist (do you need to insmod?)" >&2; exit 3;; esac`,
			`listing the iptables table nat: iptables: exit status 3: iptables v1.8.9 \(legacy\): can't initialize iptables table .nat': Table does not exist`, true},
		{"rubbish", "echo Welcome; exit 0", `listing the iptables table nat: \S+/iptables -w -t nat -S printed Welcome, which is no table`, false},
		{"changes that fail", `case $0 in *restore) echo "no space left" >&2; exit 1;; esac`, `changing the iptables table filter .*: iptables-restore: exit status 1: no space left`, false},
	} {
		mark := len(h.Daemon.Log())
		count := func(pattern string) int {
			return len(regexp.MustCompile(pattern).FindAllString(h.Daemon.Log()[mark:], -1))
		}
		d.set(test.first)
		h.Run("iptables-nft", "-F", "FLANNEL-FWD")
		c.Must(h.Daemon.WaitLog(test.says, mending))
		body := regexp.MustCompile(test.says)
		lab.Eventually(t, mending, "healthz", func() error {
			text, status, err := getHealthz(h)
			if err == nil && (status != http.StatusServiceUnavailable || !body.MatchString(text) || !strings.HasPrefix(text, "firewall: ")) {
				err = fmt.Errorf("%s: it says %d\n%s", test.name, status, text)
			}
			return err
		})
		d.await(4)
		forward(test.filter)
		if n := count(test.says); n != 1 {
			t.Errorf("%s: said %d times", test.name, n)
		}
		reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)
		d.set("")
		healthSays(t, h, http.StatusOK, "ok")
		forward(true)
		if n := count("iptables: all is right again"); n != 1 {
			t.Errorf("%s: said %d times that all is right again", test.name, n)
		}
	}

	// It stops in good order while a change hangs.
	d.set(`case $0 in *restore) exec sleep 600;; esac`)
	before := len(d.calls())
	h.Run("iptables-nft", "-F", "FLANNEL-FWD")
	lab.Eventually(t, mending, "a change", func() error {
		if calls := strings.Join(d.calls()[before:], "\n"); !strings.Contains(calls, "iptables-restore ") {
			return fmt.Errorf("the calls are\n%s", calls)
		}
		return nil
	})
	start := time.Now()
	h.Stop()
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("stopping took %v; supervisord and the like wait for 10 seconds", took)
	}
}

// Without an iptables program the network works all the same; one that is
// installed later is used.
func TestWithoutIPTables(t *testing.T) {
	c, s := newCluster(t)
	c.SetConfig(vxlanConfig)
	h1 := c.Node("h1", s)
	reserve(c, h1, 1)
	dir := t.TempDir()
	// Nothing is in these directories: not even sbin, which is looked in too.
	h1.Under = []string{"unshare", "--mount", "sh", "-c", "for d in /usr/sbin /sbin /usr/local/sbin; do mount -t tmpfs none $d 2>/dev/null; done; PATH=" + dir + " exec \"$@\"", "sh"}
	h1.Start("--healthz-port=2401", "--iptables-resync=1")
	h1.AwaitReady()
	const missing = "Going on without firewall rules: no iptables program .* install the package iptables"
	c.Must(h1.Daemon.WaitLog(missing, mending))
	healthSays(t, h1, http.StatusServiceUnavailable, "firewall: no iptables program in PATH or in /usr/sbin, /sbin, /usr/local/sbin: install the package iptables\n")
	_, c2 := join(c, s, 2)
	c1 := h1.AddContainer("c")
	reach(t, c1, c2, c2.Addr(), c1.Addr(), 1450)

	program, err := exec.LookPath("iptables-nft")
	c.Must(err)
	text, err := os.ReadFile(program)
	c.Must(err)
	c.Must(os.WriteFile(filepath.Join(dir, "xtables"), text, 0o755))
	for _, name := range []string{"iptables-restore", "iptables"} {
		c.Must(os.Symlink("xtables", filepath.Join(dir, name)))
	}
	c.Must(h1.Daemon.WaitLog("Found an iptables program that works", mending))
	healthSays(t, h1, http.StatusOK, "ok")
	if rules := h1.Run("iptables-nft", "-S"); !strings.Contains(rules, "-A FORWARD -j FLANNEL-FWD") {
		t.Errorf("there is no jump in\n%s", rules)
	}
	if n := logged(h1, missing); n != 1 {
		t.Errorf("said %d times that iptables is missing", n)
	}
}
