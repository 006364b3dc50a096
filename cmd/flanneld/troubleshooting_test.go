package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// TestTroubleshooting does what dist/TROUBLESHOOTING.md says: for each of its
// entries it makes the trouble, types all commands of the entry in their order, sees
// them print what the page shows, and sees at the end that all is well.
func TestTroubleshooting(t *testing.T) {
	entries := readTroubleshooting(t)
	for name := range troubles {
		if !slices.ContainsFunc(entries, func(e entry) bool { return e.symptom == name }) {
			t.Errorf("the page has no entry %q", name)
		}
	}
	for _, e := range entries {
		t.Run(e.symptom, func(t *testing.T) {
			begin := troubles[e.symptom]
			if begin == nil {
				t.Fatal("nothing here makes this trouble")
			}
			x := newScene(t)
			begin(x)
			for _, s := range e.steps {
				x.do(s)
			}
			x.well()
		})
	}
}

// entry is a section of the page.
type entry struct {
	symptom string
	steps   []step
}

// step is a command of the page.
type step struct {
	line    int
	place   string // where it is typed: a host, or a container
	command string
	prints  []string
}

// prompt is how a command begins in the page: with where it is typed.
var prompt = regexp.MustCompile(`^(h1|h2|c1|c2|etcd)# (.+)$`)

// readTroubleshooting reads the page's entries: a heading each, and below it code
// blocks, which are commands with what they print. The page's contents have to list
// just the entries that come after them.
func readTroubleshooting(t *testing.T) (entries []entry) {
	t.Helper()
	text, err := os.ReadFile("../../dist/TROUBLESHOOTING.md")
	if err != nil {
		t.Fatal(err)
	}
	var contents, headings []string
	var last *step // so far
	for i, line := range strings.Split(string(text), "\n") {
		code, isCode := strings.CutPrefix(line, "    ")
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			entries, last = append(entries, entry{symptom: heading}), nil
			if len(contents) > 0 {
				headings = append(headings, fmt.Sprintf("[%s](#%s)", heading, anchor(heading)))
			}
		} else if _, link, ok := strings.Cut(line, ". ["); ok && strings.HasSuffix(line, ")") {
			contents = append(contents, "["+link)
		} else if command := prompt.FindStringSubmatch(code); isCode && command != nil && len(entries) > 0 {
			e := &entries[len(entries)-1]
			e.steps = append(e.steps, step{line: i + 1, place: command[1], command: command[2]})
			last = &e.steps[len(e.steps)-1]
		} else if isCode && last == nil {
			t.Errorf("line %d: no command prints this: %s", i+1, code)
		} else if isCode && strings.HasSuffix(last.command, "\\") {
			last.command += "\n" + code
		} else if isCode {
			last.prints = append(last.prints, code)
		}
	}
	if !slices.Equal(contents, headings) {
		t.Errorf("the contents list\n%s\nand the headings are\n%s", strings.Join(contents, "\n"), strings.Join(headings, "\n"))
	}
	return slices.DeleteFunc(entries, func(e entry) bool { return e.symptom == "Contents" })
}

// anchor is where a link in Markdown finds a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

// scene is where the page's stories take place: two hosts, h1 and h2, with a
// container each, c1 and c2, and etcd on a third.
type scene struct {
	*cluster.Cluster
	lan        *lab.Segment
	hosts      map[string]*cluster.Node
	containers map[string]*lab.Container
	startEtcd  func() // where etcd is the trouble
}

func newScene(t *testing.T) *scene {
	t.Helper()
	if err := lab.Tools("curl", "ping"); err != nil {
		t.Fatal(err)
	}
	c, s := newCluster(t)
	return &scene{Cluster: c, lan: s, hosts: map[string]*cluster.Node{}, containers: map[string]*lab.Container{}}
}

// host adds a host that is to get the subnet 10.1.<n>.0/24, with options as an
// operator sets them.
func (x *scene) host(n int, s *lab.Segment, addr, options string) *cluster.Node {
	x.Helper()
	h := x.Node(fmt.Sprintf("h%d", n), s, netip.MustParseAddr(addr))
	reserve(x.Cluster, h, n)
	x.Must(writeFile(filepath.Join(h.Dir, "flanneld"), fmt.Sprintf("FLANNEL_ETCD_ENDPOINTS=%s\nFLANNEL_OPTIONS=%q\n", x.Etcd.Endpoint(), options)))
	x.hosts[h.Name] = h
	return h
}

// start starts flanneld in the way its unit does.
func (x *scene) start(h *cluster.Node) {
	x.Helper()
	h.Daemon = h.StartProgram(lab.Program{
		Name: "flanneld", Notify: true, Env: []string{"FLANNEL_ETCD_PREFIX=" + cluster.Prefix, "FLANNELD_SUBNET_FILE=" + h.SubnetFile()},
		Args: []string{"sh", "-ec", ". ./flanneld; exec " + lab.Binary("flanneld") +
			" -etcd-endpoints=$FLANNEL_ETCD_ENDPOINTS -etcd-prefix=$FLANNEL_ETCD_PREFIX $FLANNEL_OPTIONS"},
	})
}

// up starts flanneld on a host, and dockerd when it is ready.
func (x *scene) up(h *cluster.Node) {
	x.Helper()
	x.start(h)
	h.AwaitReady()
	x.startDocker(h)
}

// startDocker does what dockerd does when it starts: docker0 as the subnet file has
// it, and the container.
func (x *scene) startDocker(h *cluster.Node) {
	x.Helper()
	h.RemoveContainers()
	x.containers["c"+h.Name[1:]] = h.AddContainer("c")
}

// pair is two hosts with the same options, with which all is well so far.
func (x *scene) pair(config, options string) (h1, h2 *cluster.Node) {
	x.Helper()
	x.SetConfig(config)
	h1, h2 = x.host(1, x.lan, "172.30.0.11", options), x.host(2, x.lan, "172.30.0.12", options)
	x.up(h1)
	x.up(h2)
	x.well()
	return h1, h2
}

// do types a command. One that shows something is typed until it prints just that;
// one that shows nothing is typed once, and has to work.
func (x *scene) do(s step) {
	x.Helper()
	if f := strings.Fields(s.command); f[0] == "systemctl" {
		x.systemctl(s.place, f[1], f[len(f)-1])
		return
	}
	at, command := x.place(s.place), x.translated(s.command)
	text, err := at.Exec("sh", "-c", command)
	if len(s.prints) == 0 {
		if err != nil {
			x.Fatalf("line %d: %v", s.line, err)
		}
		return
	}
	want := pattern(s.prints)
	lab.Eventually(x, 20*time.Second, fmt.Sprintf("line %d: %s# %s", s.line, s.place, s.command), func() error {
		if want.MatchString(usual(text)) {
			return nil
		}
		err := fmt.Errorf("it prints\n%s\nand not\n%s", text, strings.Join(s.prints, "\n"))
		text, _ = at.Exec("sh", "-c", command)
		return err
	})
}

// place is what a prompt names.
func (x *scene) place(name string) *lab.Node {
	if h := x.hosts[name]; h != nil {
		return h.Node
	}
	if c := x.containers[name]; c != nil {
		return c.Node
	}
	return x.Etcd.Host().Node
}

// translated is a command as it is typed in the lab, where hosts share one file system
// and have no systemd.
func (x *scene) translated(command string) string {
	x.Helper()
	script, err := filepath.Abs("../../dist/remove-docker0.sh")
	x.Must(err)
	return "export LC_ALL=C no_proxy='*' PATH=" + filepath.Dir(lab.Binary("flanneld")) + ":$PATH\n" + strings.NewReplacer(
		"journalctl -u flanneld -o cat", "cat ./flanneld.log",
		"remove-docker0.sh", "sh "+script+" -f ./subnet.env",
		"/run/flannel/", "./", "/etc/default/", "./",
	).Replace(command)
}

// systemctl does what systemd would.
func (x *scene) systemctl(host, verb, unit string) {
	x.Helper()
	h := x.hosts[host]
	switch verb + " " + unit {
	case "start flanneld", "restart flanneld":
		if h.Daemon.Running() {
			h.Stop()
		}
		x.start(h)
		h.AwaitReady()
	case "stop flanneld":
		h.Stop()
	case "kill flanneld":
		h.Daemon.Kill()
	case "start docker", "restart docker":
		x.startDocker(h)
	case "stop docker": // which leaves docker0 where it is
		addr := strings.Fields(h.Run("ip", "-4", "-o", "addr", "show", "docker0"))[3]
		h.RemoveContainers()
		h.Run("sh", "-ec", "ip link add docker0 type bridge; ip addr add "+addr+" dev docker0")
	case "start etcd", "restart etcd":
		x.startEtcd()
	default:
		x.Fatalf("nothing here does systemctl %s %s", verb, unit)
	}
}

// well waits until all is well on all hosts, and their containers reach each other
// with as large packets as they may send.
func (x *scene) well() {
	x.Helper()
	for _, h := range x.hosts {
		lab.Eventually(x, 20*time.Second, "all is well on "+h.Name, func() error {
			_, err := h.Exec(lab.Binary("flanneld"), "status")
			return err
		})
	}
	for name, from := range x.containers {
		e := lab.Echo{Size: x.hosts["h"+name[1:]].Env().MTU, DF: true, Timeout: 200 * time.Millisecond}
		for _, to := range x.containers {
			lab.EventuallyPing(x, 5*time.Second, from, to.Addr(), e)
		}
	}
}

// changingParts are what no command prints twice, with what they are taken for.
var changingParts = []struct {
	text *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`(?m)^([IWEF])\d{4} [0-9:.]+ +\d+ [^ ]+\]`), "$1]"},
	{regexp.MustCompile(`process \d+`), "process N"},
	{regexp.MustCompile(`(?m)^(flanneld +)\S+, process`), "${1}VERSION, process"},
	{regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`), "MAC"},
	{regexp.MustCompile(`\b[0-9.]+ ms`), "N ms"},
	{regexp.MustCompile(`\b(\d+d)?([0-9.]+(h|ms|m|s|µs))+\b`), "TIME"},
	{regexp.MustCompile(`\bnhid \d+ `), ""},
	{regexp.MustCompile(` +`), " "},
	{regexp.MustCompile(`\s*\n`), "\n"},
}

// usual is a text with its changing parts made alike, and no blank lines.
func usual(text string) string {
	for _, c := range changingParts {
		text = c.text.ReplaceAllString(text, c.by)
	}
	return strings.TrimSpace(text) + "\n"
}

// pattern is what a command has to print. Three dots stand for anything; in a line of
// their own, for any number of lines.
func pattern(prints []string) *regexp.Regexp {
	text := regexp.QuoteMeta(usual(strings.Join(prints, "\n")))
	text = regexp.MustCompile(`(?m)^\\\.\\\.\\\.\n`).ReplaceAllString(text, `(.*\n)*`)
	return regexp.MustCompile(`^` + strings.ReplaceAll(text, `\.\.\.`, `.*`) + `$`)
}
