package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The program passes through three processes, told apart by stageVar:
//
//	outer   started by the user; builds what is needed, clones init, waits for it
//	init    pid 1 of the new namespaces; makes the mounts, starts inside, reaps orphans
//	inside  the program proper; Enter returns in this one only
//
// init is a process of its own because whoever is pid 1 has to reap orphans,
// and a wait for "any child" in the program itself would steal the exit
// statuses that os/exec waits for.
const (
	stageVar = "LAB_STAGE"
	filesVar = "LAB_FILES" // directory with the files that the needs made, from outer to init
)

// Paths inside, all on init's tmpfs over /run.
const (
	netnsDir = "/run/netns" // where `ip netns` looks
	labDir   = "/run/lab"
	binDir   = labDir + "/bin"
	tmpDir   = labDir + "/tmp"
)

// forwarded are the signals by which users and tools end a program: the
// terminal, kill, a lost terminal, and go test for a stack dump.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT}

// Main runs a package's tests inside the lab's namespaces; it is the whole
// body of a TestMain. It does not return. The needs are met beforehand, where
// the machine's network and caches are within reach.
func Main(m *testing.M, needs ...Need) {
	// go test -fuzz starts the program once more for each of its workers. They are
	// inside already, and stay there with the files by which they are told what
	// to do.
	if !slices.Contains(os.Args, "-test.fuzzworker") {
		Enter(needs...)
	}
	os.Exit(m.Run())
}

// Enter brings an ordinary program into the lab's namespaces; call it first
// thing in main. It returns only in there: the process that the user started
// stays outside until the program inside has ended, and exits with its status
// (128 + n after signal n). Inside, the program is root, TMPDIR is private,
// and the loopback interface is the only one.
func Enter(needs ...Need) {
	stage := os.Getenv(stageVar)
	// What the program starts later begins outside again, should it use the
	// lab itself.
	os.Unsetenv(stageVar)
	var status int
	var err error
	switch stage {
	case "inside":
		return
	case "init":
		status, err = initStage()
	default:
		status, err = outerStage(needs)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

// outerStage is the process that the user started.
func outerStage(needs []Need) (status int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), forwarded...)
	defer stop()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return 1, fmt.Errorf("making a directory for built files: %w", err)
	}
	defer os.RemoveAll(dir) // init has removed it already, unless something failed
	for _, need := range needs {
		if err := need(ctx, dir); err != nil {
			if ctx.Err() != nil {
				return 128 + int(unix.SIGINT), errors.New("interrupted while preparing")
			}
			return 1, err
		}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	if ctx.Err() != nil {
		return 128 + int(unix.SIGINT), errors.New("interrupted while preparing")
	}

	// Pdeathsig fires when the *thread* that cloned the child ends; a locked
	// thread lives as long as this goroutine, which is main's.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVar+"=init", filesVar+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	rootless := !canAdminister()
	if rootless {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		if rootless {
			return 1, fmt.Errorf("making namespaces without root (%w): %s", err, rootlessHint)
		}
		return 1, fmt.Errorf("making namespaces: %w", err)
	}
	go func() {
		first := true
		for sig := range signals {
			// ^C at the terminal reaches the program inside directly, as it
			// is in the same process group: it should not get it twice. A
			// second one is passed on, as somebody means it.
			if first && sig != unix.SIGTERM && sig != unix.SIGHUP && inForeground() {
				first = false
				continue
			}
			cmd.Process.Signal(sig) // it may have ended; Wait below tells
		}
	}()
	err = cmd.Wait()
	if cmd.ProcessState == nil {
		return 1, fmt.Errorf("waiting for the program in the lab: %w", err)
	}
	return exitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

const rootlessHint = "run as root, or allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1 " +
	"(Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), user.max_user_namespaces above 0 (all)"

// canAdminister reports whether this process may make namespaces as it is.
// Being uid 0 is not enough: root in a container often may not.
func canAdminister() bool {
	var data [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	return has(unix.CAP_SYS_ADMIN) && has(unix.CAP_NET_ADMIN)
}

// inForeground reports whether a ^C at the controlling terminal reaches this
// process group.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// initStage is pid 1 of the new namespaces. When it returns, the process ends
// and the kernel kills and removes all that is left in them.
func initStage() (status int, err error) {
	if os.Getpid() != 1 {
		return 1, fmt.Errorf("%s=init is set in the environment of an ordinary process; unset it", stageVar)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	if err := furnish(os.Getenv(filesVar)); err != nil {
		return 1, err
	}
	os.Unsetenv(filesVar)
	os.Setenv(stageVar, "inside")
	os.Setenv("TMPDIR", tmpDir)
	// Rootless users may lack the directories of ip and iptables in PATH.
	os.Setenv("PATH", strings.TrimPrefix(os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin", ":"))
	program, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 1, fmt.Errorf("starting the program in the lab: %w", err)
	}
	// The program stays in the process group of the terminal; init leaves it,
	// so that what it gets comes from outer only and needs to be passed on.
	if err := unix.Setpgid(0, 0); err != nil {
		return 1, fmt.Errorf("leaving the process group: %w", err)
	}
	go func() {
		for sig := range signals {
			program.Signal(sig) // it may have ended; Wait4 below tells
		}
	}()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 1, fmt.Errorf("waiting for the program in the lab: %w", err)
		case pid == program.Pid:
			return exitStatus(syscall.WaitStatus(ws)), nil
		}
	}
}

// furnish makes the mounts that keep the lab's files off the machine, and
// moves the needed files from dir into them.
func furnish(dir string) error {
	// Open what was built and remove it at once: after this nothing of it is
	// on disk, and /run may go, which dir may be below of.
	files, err := takeFiles(dir)
	if err != nil {
		return err
	}
	mounts := []struct {
		what, source, target, fstype string
		flags                        uintptr
		data                         string
	}{
		{"keeping mounts private", "", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"mounting /proc (in a container, its /proc must not be masked)",
			"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"mounting a tmpfs on /run", "lab", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			if errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%s: %w; %s", m.what, err, rootlessHint)
			}
			return fmt.Errorf("%s: %w", m.what, err)
		}
	}
	for _, d := range []string{netnsDir, labDir, binDir, tmpDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := copyFile(filepath.Join(binDir, filepath.Base(f.Name())), f); err != nil {
			return fmt.Errorf("copying %s into the lab: %w", f.Name(), err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}

func takeFiles(dir string) ([]*os.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the built files: %w", err)
	}
	var files []*os.File
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	return files, nil
}

func copyFile(to string, from *os.File) error {
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// exitStatus is the status as a shell gives it: 128 + n after signal n.
func exitStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
