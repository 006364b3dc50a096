package dist_test

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sources is a directory that looks to install.sh like the top of the sources,
// after a build under a umask that would keep others from running anything.
func sources(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "the sources")
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "dist"), os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "LICENSE", "bin/flanneld"} {
		write(t, filepath.Join(dir, name), name+" calls /usr/bin/flanneld\n")
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// installing runs install.sh as make does. Its working directory is the
// sources.
func installing(t *testing.T, sources, umask string, env []string, args ...string) result {
	t.Helper()
	command := []string{"sh", "-c", "umask " + umask + `; exec sh dist/install.sh "$@"`, "sh"}
	return run(t, sources, env, append(command, args...)...)
}

// places are the directories of a default install below a DESTDIR.
func places(destdir string) []string {
	return []string{
		"DESTDIR=" + destdir, "bindir=/usr/local/bin",
		"docdir=/usr/local/share/doc/flannel", "unitdir=/usr/local/lib/systemd/system",
	}
}

// listing is all that is below dir, with modes.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if name := strings.TrimPrefix(path, dir); name != "" {
			all[name] = info.Mode().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A packager gets everything in place below DESTDIR, with modes that do not
// depend on a umask, and the same when it is done again.
func TestInstall(t *testing.T) {
	here, there := sources(t), filepath.Join(t.TempDir(), "a 'dest' $dir")
	want := map[string]string{}
	for _, dir := range []string{"", "/bin", "/lib", "/lib/systemd", "/lib/systemd/system", "/share", "/share/doc", "/share/doc/flannel", "/share/doc/flannel/config", "/share/doc/flannel/monitoring"} {
		want["/usr/local"+dir] = "drwxr-xr-x"
	}
	want["/usr"] = "drwxr-xr-x"
	for _, file := range []string{"flanneld", "mk-docker-opts.sh", "remove-docker0.sh"} {
		want["/usr/local/bin/"+file] = "-rwxr-xr-x"
	}
	want["/usr/local/lib/systemd/system/flanneld.service"] = "-rw-r--r--"
	for _, file := range []string{"README.md", "LICENSE", "TROUBLESHOOTING.md", "docker-flannel.conf", "flanneld.env", "sample_subnet.env",
		"config/udp.json", "config/host-gw.json", "config/vxlan.json", "config/vxlan-directrouting.json",
		"monitoring/flannel-alerts.yml", "monitoring/flannel-dashboard.json"} {
		want["/usr/local/share/doc/flannel/"+file] = "-rw-r--r--"
	}
	if _, err := os.Stat("supervisor"); err == nil {
		want["/usr/local/bin/flanneld-start.sh"] = "-rwxr-xr-x"
		want["/usr/local/share/doc/flannel/supervisor"] = "drwxr-xr-x"
		want["/usr/local/share/doc/flannel/supervisor/flanneld.ini"] = "-rw-r--r--"
	}
	files := 0
	for _, mode := range want {
		if mode[0] == '-' {
			files++
		}
	}
	for _, umask := range []string{"077", "000"} {
		got := installing(t, here, umask, places(there))
		if diff := cmp.Diff(want, listing(t, there)); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if said := strings.Count(got.stdout, "installed "+there); got.status != 0 || got.stderr != "" || said != files {
			t.Errorf("%+v", got)
		}
	}
	if text, _ := os.ReadFile(there + "/usr/local/bin/flanneld"); string(text) != "bin/flanneld calls /usr/bin/flanneld\n" {
		t.Errorf("the program was changed to %q", text)
	}

	// An operator's own files stay, also when all that was installed goes.
	for _, file := range []string{"/usr/local/share/doc/flannel/notes", "/etc/default/flanneld"} {
		if err := os.MkdirAll(filepath.Dir(there+file), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, there+file, "mine")
	}
	if got := installing(t, here, "022", places(there)); got.status != 0 {
		t.Errorf("%+v", got)
	}
	for range 2 {
		if got := installing(t, here, "022", places(there), "uninstall"); got.status != 0 || got.stderr != "" {
			t.Errorf("%+v", got)
		}
	}
	list := listing(t, there)
	maps.DeleteFunc(list, func(_, mode string) bool { return mode[0] == 'd' })
	left := slices.Sorted(maps.Keys(list))
	if diff := cmp.Diff([]string{"/etc/default/flanneld", "/usr/local/share/doc/flannel/notes"}, left); diff != "" {
		t.Errorf("left after uninstalling (-want +got):\n%s", diff)
	}
}

// Whatever names a program names it where it was installed, and dockerd, which
// is not ours, where it was.
func TestInstalledPaths(t *testing.T) {
	here, there := sources(t), t.TempDir()
	if got := installing(t, here, "022", append(places(there), "bindir=/opt/flannel-0.1/s+bin")); got.status != 0 {
		t.Fatalf("%+v", got)
	}
	for file, mode := range listing(t, there) {
		if mode[0] == 'd' || strings.HasSuffix(file, "bin/flanneld") {
			continue
		}
		text, err := os.ReadFile(there + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, program := range []string{"flanneld", "mk-docker-opts.sh", "remove-docker0.sh"} {
			if strings.Contains(string(text), "/usr/bin/"+program) {
				t.Errorf("%s calls /usr/bin/%s", file, program)
			}
		}
	}
	unit, _ := os.ReadFile(there + "/usr/local/lib/systemd/system/flanneld.service")
	for _, line := range []string{"\nExecStart=/opt/flannel-0.1/s+bin/flanneld -", "\nExecStartPost=/opt/flannel-0.1/s+bin/mk-docker-opts.sh -f ${FLANNELD_SUBNET_FILE} -k"} {
		if !strings.Contains(string(unit), line) {
			t.Errorf("the unit has no line%s…:\n%s", line, unit)
		}
	}
	source, _ := os.ReadFile("docker-flannel.conf")
	conf, _ := os.ReadFile(there + "/usr/local/share/doc/flannel/docker-flannel.conf")
	for line := range strings.Lines(string(source)) {
		if strings.HasPrefix(line, "ExecStart=") && !strings.Contains(string(conf), "\n"+line) {
			t.Errorf("the drop-in has no line %sbut:\n%s", line, conf)
		}
	}
}

// Where it cannot install, it says so and leaves nothing half done.
func TestInstallErrors(t *testing.T) {
	here := sources(t)
	there := t.TempDir()
	if err := os.MkdirAll(there+"/taken/bin/flanneld", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, there+"/file", "")
	for _, test := range []struct {
		bindir, want string
	}{
		{"bin", `cannot install into "bin": PREFIX, bindir, docdir and unitdir have to begin with /`},
		{"", `cannot install into "": PREFIX, bindir, docdir and unitdir have to begin with /`},
		{"/my programs", `cannot install into "/my programs": units and scripts that name it need a path without blanks and the like`},
		{"/taken/bin", "cannot install " + there + "/taken/bin/flanneld: it is a directory"},
		{"/file/bin", "cannot make the directory " + there + "/file/bin: as another user, or with DESTDIR, it may work"},
	} {
		got := installing(t, here, "022", append(places(there), "bindir="+test.bindir))
		if got.status != 1 || got.stdout != "" || !strings.HasSuffix(got.stderr, "install.sh: "+test.want+"\n") {
			t.Errorf("%+v, want %s", got, test.want)
		}
	}
	if files, _ := os.ReadDir(there); len(files) != 2 {
		t.Errorf("left behind: %v", files)
	}
}

// What follows make's PREFIX and comes from its environment.
func TestInstallDirectories(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		lacking(t, "needs make")
	}
	for _, test := range []struct {
		args []string
		env  string
		want string // DESTDIR, bindir, docdir, unitdir
	}{
		{nil, "", ";/usr/local/bin;/usr/local/share/doc/flannel;/usr/local/lib/systemd/system"},
		{nil, "DESTDIR=/a 'b'", "/a 'b';/usr/local/bin;/usr/local/share/doc/flannel;/usr/local/lib/systemd/system"},
		{[]string{"PREFIX=/usr/", "DESTDIR=rel"}, "", "rel;/usr/bin;/usr/share/doc/flannel;/usr/lib/systemd/system"},
		{[]string{"PREFIX=/opt/f"}, "", ";/opt/f/bin;/opt/f/share/doc/flannel;/etc/systemd/system"},
		{[]string{"PREFIX=/usr", "bindir=/usr/sbin", "docdir=/d o c", "unitdir=/lib/systemd/system"}, "", ";/usr/sbin;/d o c;/lib/systemd/system"},
	} {
		dir := sources(t)
		makefile, err := os.ReadFile("../Makefile")
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "Makefile"), string(makefile))
		write(t, filepath.Join(dir, "dist", "install.sh"), `printf '%s;%s;%s;%s' "$DESTDIR" "$bindir" "$docdir" "$unitdir"`)
		// uninstall: nothing is built for it.
		got := run(t, dir, []string{test.env}, append([]string{"make", "-s", "uninstall"}, test.args...)...)
		if got.status != 0 || got.stdout != test.want {
			t.Errorf("make %v: %+v, want %s", test.args, got, test.want)
		}
	}
}
