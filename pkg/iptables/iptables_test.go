package iptables

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// fake is a Tables whose listings and failures the test decides, and the
// commands it was asked to run.
type fake struct {
	Tables
	commands []string
	listing  func() (string, error)
	restored func(script string) error
}

func newFake() *fake {
	f := &fake{}
	f.patience = commandTime
	f.list = []string{"iptables", "-w"}
	f.restore = []string{"iptables-restore", "--noflush", "-w"}
	f.listing = func() (string, error) { return rightTable, nil }
	f.restored = func(string) error { return nil }
	f.output = func(ctx context.Context, stdin string, argv []string) (string, error) {
		f.commands = append(f.commands, strings.Join(argv, " "))
		if argv[0] == "iptables" {
			return f.listing()
		}
		return "", f.restored(stdin)
	}
	return f
}

// A plan is what Sync then does, and nothing is done yet.
func TestPlanChangesNothing(t *testing.T) {
	f := newFake()
	left := strings.Replace(rightTable, "-A POSTROUTING -j OURS\n", "-A POSTROUTING -j OURS\n-A POSTROUTING -s 10.9.0.0/16 -j RETURN\n", 1)
	text := left
	f.listing = func() (string, error) { return text, nil }
	f.restored = func(string) error { text = rightTable; return nil }
	f.TakeOver(testLeftovers)
	planned, err := f.Plan(t.Context(), testChains)
	if err != nil || len(planned) != 1 || text != left || strings.Contains(strings.Join(f.commands, "; "), "restore") {
		t.Errorf("planned %q, error %v, and ran %q", planned, err, f.commands)
	}
	if changes, err := f.Sync(t.Context(), testChains); err != nil || !slices.Equal(changes, planned) {
		t.Errorf("changed %q, error %v, and planned %q", changes, err, planned)
	}
}

// Every five seconds on every host: it has to be cheap.
func TestNothingWrongIsOneProcessPerTable(t *testing.T) {
	f := newFake()
	chains := append([]Chain{{Table: "filter", Name: "GONE", Absent: true}}, testChains...)
	if changes, err := f.Sync(t.Context(), chains); err != nil || len(changes) > 0 {
		t.Errorf("changed %q, error %v", changes, err)
	}
	if got, want := strings.Join(f.commands, "; "), "iptables -w -t filter -S; iptables -w -t nat -S"; got != want {
		t.Errorf("ran %s, want %s", got, want)
	}
}

// A change by somebody else between look and change makes the change fail
// whole; then it is worked out anew.
func TestLooksAgainWhenOthersWereQuicker(t *testing.T) {
	f := newFake()
	text := strings.Replace(rightTable, "-A OUTPUT -j MORE\n", "-A OUTPUT -j MORE\n-A OUTPUT -j MORE\n", 1)
	f.listing = func() (string, error) { return text, nil }
	f.restored = func(string) error { text = rightTable; return errors.New("line 2 failed") }
	if changes, err := f.Sync(t.Context(), testChains); err != nil || len(changes) > 0 {
		t.Errorf("changed %q, error %v", changes, err)
	}
}

// Rules like those of an older daemon are taken out once, also when the first
// tries fail; who adds one later means it.
func TestTakesOverOnce(t *testing.T) {
	f := newFake()
	left := strings.Replace(rightTable, "-A POSTROUTING -j OURS\n", "-A POSTROUTING -j OURS\n-A POSTROUTING -s 10.9.0.0/16 -j RETURN\n", 1)
	text, broken := left, true
	f.listing = func() (string, error) { return text, nil }
	f.restored = func(string) error {
		if broken {
			return errors.New("busy")
		}
		text = rightTable
		return nil
	}
	f.TakeOver(testLeftovers)
	if changes, err := f.Sync(t.Context(), testChains); err == nil || len(changes) > 0 {
		t.Errorf("changed %q, error %v", changes, err)
	}
	broken = false
	changes, err := f.Sync(t.Context(), testChains)
	if want := `nat: took out of POSTROUTING what an older daemon left: "-s 10.9.0.0/16 -j RETURN"`; err != nil || strings.Join(changes, ", ") != want {
		t.Errorf("changed %q, error %v", changes, err)
	}
	text = left
	if changes, err := f.Sync(t.Context(), testChains); err != nil || len(changes) > 0 {
		t.Errorf("what was added later: changed %q, error %v", changes, err)
	}
}

// What is no table is said as it is, and nothing is made of it.
func TestNoTable(t *testing.T) {
	for printed, want := range map[string]string{
		"":                                   "iptables -w -t nat -S printed nothing, which is no table",
		"Welcome!\n":                         "iptables -w -t nat -S printed Welcome!, which is no table",
		"\xff" + strings.Repeat("no ", 1000): "printed ?no no ",
		"-P INPUT ACCEPT\n":                  "there is no chain POSTROUTING to jump to OURS from",
	} {
		f := newFake()
		f.listing = func() (string, error) { return printed, nil }
		changes, err := f.Sync(t.Context(), testChains)
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 500 || len(changes) > 0 || len(f.commands) != 1 {
			t.Errorf("%.20q: changed %q, ran %q, error %v", printed, changes, f.commands, err)
		}
	}
}

// A lock that is held for long is one message, of the program that waits for it.
func TestLockHeld(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		if program != "iptables-legacy" {
			t.Skip("iptables-nft has no lock")
		}
		tables, err := NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		// Not the machine's lock, which others wait for.
		file := filepath.Join(t.TempDir(), "lock")
		t.Setenv("XTABLES_LOCKFILE", file)
		lock, err := os.OpenFile(file, os.O_CREATE|os.O_RDONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		tables.patience = time.Second
		_, err = tables.Sync(t.Context(), testChains)
		if want := "listing the iptables table nat: iptables-legacy: it did not end within 1s: it hangs, or another iptables process holds the lock"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		lock.Close()
		tables.patience = commandTime
		if changes, err := tables.Sync(t.Context(), testChains); err != nil || len(changes) != 4 {
			t.Errorf("with the lock free again: changed %q, error %v", changes, err)
		}
	})
}

// A program that hangs is not waited for when the caller ends.
func TestHangingProgram(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-restore"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexec sleep 600\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := NewWith(ctx, filepath.Join(dir, "iptables")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(start); took > commandTime/2 {
		t.Errorf("it took %v", took)
	}
}

// Rules in the other kind of iptables are counted by chain, and nobody else's.
func TestInLegacy(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		tables, err := NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		look := func() string {
			t.Helper()
			found, err := tables.InLegacy(t.Context(), testChains, testLeftovers)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(found, ", ")
		}
		if got := look(); got != "" {
			t.Errorf("with nothing there: %s", got)
		}
		script := "*nat\n:OURS - [0:0]\n:MORE - [0:0]\n:THEIRS - [0:0]\n" + rightTable[strings.Index(rightTable, "-A"):] +
			"-A POSTROUTING -s 10.9.0.0/16 -j RETURN\nCOMMIT\n*filter\n-A OUTPUT -s 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -d 10.9.0.0/16 -j ACCEPT\nCOMMIT\n"
		if _, err := tables.command(t.Context(), script, []string{"iptables-legacy-restore", "--noflush"}); err != nil {
			t.Fatal(err)
		}
		want := "1 rule in MORE of nat, 2 rules in OURS of nat, 1 rule in OUTPUT of nat, 2 rules in POSTROUTING of nat"
		if program == "iptables-legacy" {
			want = "" // iptables shows them itself
		}
		if got := look(); got != want {
			t.Errorf("found %q, want %q", got, want)
		}
	})
}

// The other kind of iptables is found where it has tables, and to look for them and at
// them makes none.
func TestBeside(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		tables, err := NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"iptables-nft": "iptables-legacy", "iptables-legacy": "iptables-nft"}[program]
		name, other, err := tables.Beside(t.Context())
		if name != want || other != nil || err != nil {
			t.Errorf("with nothing there: %s, %v, %v", name, other, err)
		}
		run := func(argv ...string) string {
			t.Helper()
			text, err := output(t.Context(), "", argv)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		made := func() string {
			t.Helper()
			var rules []string
			for line := range strings.Lines(run("iptables-nft-save")) {
				if line[0] != '#' { // when it was saved
					rules = append(rules, line)
				}
			}
			return strings.Join(append(rules, legacyTables()...), "")
		}
		if got := made(); got != "" {
			t.Errorf("to look has made %s", got)
		}
		run(want, "-t", "nat", "-N", "THEIRS")
		before := made()
		name, other, err = tables.Beside(t.Context())
		if name != want || other == nil || err != nil {
			t.Fatalf("with a table: %s, %v, %v", name, other, err)
		}
		for table, has := range map[string]bool{"nat": true, "filter": other.NFT()} {
			if other.Has(table) != has {
				t.Errorf("%s is there: %v", table, !has)
			}
			if !has {
				continue
			}
			if _, err := other.Rules(t.Context(), table); err != nil {
				t.Error(err)
			}
		}
		if rules, err := other.Rules(t.Context(), "nat"); len(rules) != 5 {
			t.Errorf("its chains are %q, %v", rules, err)
		}
		if got := made(); got != before {
			t.Errorf("to look at them has made\n%s\nof\n%s", got, before)
		}
	})
}

// What is there is counted by chain, whatever kind it is of, and looking makes no
// table of iptables-legacy.
func TestCount(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		tables, err := NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		if want := "/" + program + " v"; !strings.Contains(tables.String(), want) || tables.NFT() != (program == "iptables-nft") {
			t.Errorf("it is %q, of nf_tables: %v", tables, tables.NFT())
		}
		look := func() string {
			t.Helper()
			found, err := tables.Count(t.Context(), testChains, testLeftovers)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(found, ", ")
		}
		if got := look(); got != "" {
			t.Errorf("with nothing there: %s", got)
		}
		if made := legacyTables(); len(made) > 0 {
			t.Errorf("looking has made the tables %q", made)
		}
		script := "*nat\n:OURS - [0:0]\n:MORE - [0:0]\n:THEIRS - [0:0]\n" + rightTable[strings.Index(rightTable, "-A"):] +
			"-A POSTROUTING -s 10.9.0.0/16 -j RETURN\nCOMMIT\n*filter\n-A OUTPUT -s 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -d 10.9.0.0/16 -j ACCEPT\nCOMMIT\n"
		if _, err := tables.command(t.Context(), script, tables.restore); err != nil {
			t.Fatal(err)
		}
		if got, want := look(), "1 rule in MORE of nat, 2 rules in OURS of nat, 1 rule in OUTPUT of nat, 2 rules in POSTROUTING of nat"; got != want {
			t.Errorf("found %q, want %q", got, want)
		}
	})
}

func TestErrorsSayWhat(t *testing.T) {
	damaged := strings.Replace(rightTable, "-A OURS -j RETURN\n", "", 1)

	f := newFake()
	f.listing = func() (string, error) { return damaged, nil }
	f.restored = func(string) error { return errors.New("no such target") }
	_, err := f.Sync(t.Context(), testChains)
	if want := "changing the iptables table nat (nat: chain OURS: put in the 1 rule missing): no such target"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}

	// A rule that iptables prints in another form than given would otherwise
	// be changed every five seconds without a word.
	f = newFake()
	f.listing = func() (string, error) { return damaged, nil }
	_, err = f.Sync(t.Context(), testChains)
	if err == nil || !strings.Contains(err.Error(), "is wrong again right after it was put right") {
		t.Errorf("error %v", err)
	}

	// One table that cannot be read does not keep the other from being put right.
	f = newFake()
	text := damaged
	f.output = func(ctx context.Context, stdin string, argv []string) (string, error) {
		switch {
		case argv[0] == "iptables-restore":
			text = rightTable
			return "", nil
		case strings.Contains(strings.Join(argv, " "), "filter"):
			return "", errors.New("not supported")
		}
		return text, nil
	}
	changes, err := f.Sync(t.Context(), append([]Chain{{Table: "filter", Name: "GONE", Absent: true}}, testChains...))
	if want := "listing the iptables table filter: not supported"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if len(changes) != 1 || text != rightTable {
		t.Errorf("changes to the other table: %q", changes)
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		calls := 0
		f.listing = func() (string, error) {
			if calls++; calls == 2 {
				return "", errors.New("busy")
			}
			return rightTable, nil
		}
		ctx, cancel := context.WithCancel(context.Background())
		start := time.Now()
		var reports []string
		err := f.Run(ctx, testChains, 5*time.Second, func(_ []string, err error) {
			report := time.Since(start).String() + " fine"
			if err != nil {
				report = time.Since(start).String() + " " + err.Error()
			}
			if reports = append(reports, report); len(reports) == 3 {
				cancel()
			}
		})
		if err != nil {
			t.Errorf("Run: %v", err)
		}
		if got, want := strings.Join(reports, "; "), "0s fine; 5s listing the iptables table nat: busy; 10s fine"; got != want {
			t.Errorf("reports %s, want %s", got, want)
		}

		// An interval of 0 is once.
		f = newFake()
		ctx, cancel = context.WithCancel(context.Background())
		go func() { time.Sleep(time.Hour); cancel() }()
		n := 0
		if err := f.Run(ctx, testChains, 0, func([]string, error) { n++ }); err != nil || n != 1 {
			t.Errorf("with interval 0: %d reports, error %v", n, err)
		}
	})
}

func TestOutput(t *testing.T) {
	text, err := output(context.Background(), "in\n", []string{"cat"})
	if text != "in\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	_, err = output(context.Background(), "", []string{"sh", "-c", "echo two >&2; echo lines >&2; exit 4"})
	if want := "sh: exit status 4: two lines"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = output(ctx, "", []string{"sleep", "60"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestNewWithout(t *testing.T) {
	dir := t.TempDir()
	_, err := NewWith(t.Context(), filepath.Join(dir, "iptables"))
	if err == nil || !strings.Contains(err.Error(), "install the package iptables") {
		t.Errorf("without iptables: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "iptables"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = NewWith(t.Context(), filepath.Join(dir, "iptables"))
	if err == nil || !strings.Contains(err.Error(), "iptables-restore, which belongs beside") {
		t.Errorf("without iptables-restore: %v", err)
	}
}

// The options differ by version: what waits for the lock, and --random-fully.
func TestVersions(t *testing.T) {
	for _, test := range []struct {
		version, list, restore string
		randomFully            bool
	}{
		{"v1.4.7", "-t nat -S", "--noflush", false},
		{"v1.4.21", "-w -t nat -S", "--noflush", false},
		{"v1.6.2", "-w -t nat -S", "--noflush -w", true},
		{"v1.8.9 (nf_tables)", "-w -t nat -S", "--noflush -w", true},
	} {
		dir := t.TempDir()
		for _, name := range []string{"iptables", "iptables-restore"} {
			script := "#!/bin/sh\necho 'iptables " + test.version + "'\n"
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		tables, err := NewWith(t.Context(), filepath.Join(dir, "iptables"))
		if err != nil {
			t.Fatal(err)
		}
		list, restore := strings.Join(tables.listing("nat")[1:], " "), strings.Join(tables.restore[1:], " ")
		if list != test.list || restore != test.restore || tables.RandomFully() != test.randomFully {
			t.Errorf("%s: lists with %q, restores with %q, random fully %v", test.version, list, restore, tables.RandomFully())
		}
	}
}

// TestNoGap states the property that traffic depends on: while things are put
// right, nobody ever sees one of our rules or the jump missing.
func TestNoGap(t *testing.T) {
	inNamespace(t, func(t *testing.T, program string) {
		namespace, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(namespace)
		tables, err := NewWith(t.Context(), program)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tables.Sync(t.Context(), testChains); err != nil {
			t.Fatal(err)
		}

		var stop atomic.Bool
		watched := make(chan string, 1)
		go func() {
			runtime.LockOSThread()
			if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
				watched <- "entering the namespace: " + err.Error()
				return
			}
			for !stop.Load() {
				text, err := tables.command(context.Background(), "", tables.listing("nat"))
				if err != nil {
					watched <- err.Error()
					return
				}
				for _, want := range []string{"-A POSTROUTING -j OURS", "-A OURS -s 10.1.0.0/16 -j ACCEPT", "-A OURS -j RETURN", "-A OUTPUT -j MORE", "-A MORE -j ACCEPT"} {
					if !strings.Contains(text, want+"\n") {
						watched <- "for a moment there was no " + want + " in\n" + text
						return
					}
				}
			}
			watched <- ""
		}()
		for range 25 {
			script := "*nat\n-I OURS -s 192.0.2.1/32 -j RETURN\n-I POSTROUTING -s 192.0.2.1/32 -j RETURN\n-A OUTPUT -j MORE\nCOMMIT\n"
			if _, err := tables.command(context.Background(), script, tables.restore); err != nil {
				t.Error(err)
				break
			}
			if changes, err := tables.Sync(t.Context(), testChains); err != nil || len(changes) != 3 {
				t.Errorf("changed %q, error %v", changes, err)
				break
			}
		}
		stop.Store(true)
		if said := <-watched; said != "" {
			t.Error(said)
		}
	})
}

// inNamespace runs the test in a network namespace of its own, once for each
// iptables program there is. The thread is never given back, so that it and the
// namespace end with the test.
func inNamespace(t *testing.T, test func(t *testing.T, program string)) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	programs := 0
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		if _, err := exec.LookPath(program); err != nil {
			continue
		}
		programs++
		t.Run(program, func(t *testing.T) {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Skipf("cannot make a network namespace: %v", err)
			}
			test(t, program)
		})
	}
	if programs == 0 {
		t.Skip("needs iptables-nft or iptables-legacy (package iptables)")
	}
}
