package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Program says what to start, where [Node.Start]'s arguments are not enough.
type Program struct {
	Name   string   // of the process in the lab, and of its log
	Args   []string // the command and its arguments
	Env    []string // "KEY=value", added to the environment of the lab
	Dir    string   // to start in; empty is the node's Dir
	Notify bool     // listen to its sd_notify messages
}

// A Process is a program that runs, or ran, in a node's namespace.
type Process struct {
	Name string
	Pid  int

	node   *Node
	cmd    *exec.Cmd
	log    string // path
	start  int64  // where in the log its output begins
	notify *notify

	done chan struct{} // closed when it has ended

	mu       sync.Mutex
	stopping bool  // its end is asked for
	status   int   // valid after done
	end      int64 // of its output in the log, valid after done
}

// Start starts a command in the namespace, in the node's Dir, in the
// background. Its output goes to <Dir>/<name>.log. When it ends and nobody
// asked for that, the lab's log says so.
func (n *Node) Start(name string, argv ...string) *Process {
	n.lab.Helper()
	return n.StartProgram(Program{Name: name, Args: argv})
}

// StartProgram is [Node.Start] with a choice of environment, directory and
// sd_notify.
func (n *Node) StartProgram(pr Program) *Process {
	n.lab.Helper()
	p, err := n.start(pr)
	if err != nil {
		n.lab.Fatalf("starting %s in %s: %v", pr.Name, n.Name, err)
	}
	return p
}

func (n *Node) start(pr Program) (*Process, error) {
	if len(pr.Args) == 0 {
		return nil, errors.New("no command given")
	}
	if err := known(pr.Args[0]); err != nil {
		return nil, err
	}
	p := &Process{
		Name: pr.Name,
		node: n,
		log:  filepath.Join(n.Dir, pr.Name+".log"),
		done: make(chan struct{}),
	}
	// Appended to, so that one file tells the story of restarts.
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.start = size(out)
	p.cmd = exec.Command(pr.Args[0], pr.Args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), pr.Env...)
	p.cmd.Dir = pr.Dir
	if p.cmd.Dir == "" {
		p.cmd.Dir = n.Dir
	}
	// A group of its own: ^C is for the program that drives the lab, and what
	// the process starts is killed with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if pr.Notify {
		if p.notify, err = listenNotify(filepath.Join(n.Dir, pr.Name+".notify")); err != nil {
			return nil, err
		}
		p.cmd.Env = append(p.cmd.Env, "NOTIFY_SOCKET="+p.notify.path)
	}
	if err := n.Do(p.cmd.Start); err != nil {
		p.notify.close()
		return nil, err
	}
	p.Pid = p.cmd.Process.Pid
	n.lab.mu.Lock()
	n.lab.processes = append(n.lab.processes, p)
	n.lab.mu.Unlock()
	go p.wait() // ends with the process, which Kill ends at the latest
	return p, nil
}

func (p *Process) wait() {
	err := p.cmd.Wait()
	p.notify.close()
	p.mu.Lock()
	if p.cmd.ProcessState != nil {
		p.status = exitStatus(p.cmd.ProcessState.Sys().(syscall.WaitStatus))
	} else {
		p.status = -1
		p.node.lab.Logf("waiting for %v: %v", p, err)
	}
	if f, err := os.Open(p.log); err == nil {
		p.end = size(f)
		f.Close()
	}
	asked := p.stopping
	p.mu.Unlock()
	if !asked {
		p.node.lab.Logf("%v ended by itself with status %d; its log ends with:\n%s", p, p.status, tail(p.read(p.end), 10))
	}
	close(p.done)
}

// String is the process as messages name it.
func (p *Process) String() string { return fmt.Sprintf("%s/%s (pid %d)", p.node.Name, p.Name, p.Pid) }

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("sending %v to %v: %w", sig, p, err)
	}
	return nil
}

// Wait waits for the process to end by itself and returns its exit status,
// 128 + n after signal n; it is an error if that takes longer than timeout.
func (p *Process) Wait(timeout time.Duration) (status int, err error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
	// Asked again, as select picks any of two that are ready.
	if !p.Running() {
		return p.status, nil
	}
	return -1, fmt.Errorf("%v has not ended within %v", p, timeout)
}

// Stop asks the process to end, by a signal, and returns its exit status as
// [Process.Wait] does. If it has not ended in time, it is killed and that is
// an error.
func (p *Process) Stop(sig syscall.Signal, timeout time.Duration) (status int, err error) {
	p.expectEnd()
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return -1, err
	}
	status, err = p.Wait(timeout)
	if err != nil {
		p.Kill()
		return -1, fmt.Errorf("after %v: %w", sig, err)
	}
	return status, nil
}

// Kill ends the process and its process group with SIGKILL and returns when it
// is gone. Killing a process that has ended does nothing to it.
func (p *Process) Kill() {
	p.expectEnd()
	// Once the process has ended its number may be another's; what is left of
	// its group then ends with its node.
	if p.Running() {
		unix.Kill(-p.Pid, unix.SIGKILL)
	}
	<-p.done
}

func (p *Process) expectEnd() {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
}

// Pause stops the process and its group in their tracks, like a host that
// hangs, and returns when the process does nothing any more;
// [Process.Continue] lets them go on.
func (p *Process) Pause() {
	p.node.lab.Helper()
	p.node.lab.Must(p.signalGroup(unix.SIGSTOP))
	// The signal is sent, but a thread goes on until it notices.
	Eventually(p.node.lab, 10*time.Second, "pausing "+p.String(), p.still)
}

// still returns nil if no thread of the process can run code of its own.
func (p *Process) still() error {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
	if err != nil {
		return err
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // this thread has ended
		}
		// proc(5): the state follows the command's name in parentheses. D
		// counts as still: a thread waits there for the child it has just
		// forked, which is stopped itself, or stops on its way out.
		_, state, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
		if state != "" && strings.ContainsRune("RS", rune(state[0])) {
			return fmt.Errorf("a thread is in state %c", state[0])
		}
	}
	return nil
}

// Continue undoes [Process.Pause].
func (p *Process) Continue() { p.node.lab.Must(p.signalGroup(unix.SIGCONT)) }

func (p *Process) signalGroup(sig syscall.Signal) error {
	if err := unix.Kill(-p.Pid, sig); err != nil {
		return fmt.Errorf("sending %v to the group of %v: %w", sig, p, err)
	}
	return nil
}

// Log is what the process has printed so far, on both outputs.
func (p *Process) Log() string {
	select {
	case <-p.done:
		return p.read(p.end)
	default:
		return p.read(-1)
	}
}

// read reads the process's part of the log, up to end or, if that is negative,
// to the end of the file.
func (p *Process) read(end int64) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Sprintf("(%v)", err)
	}
	if end < 0 || end > int64(len(b)) {
		end = int64(len(b))
	}
	return string(b[min(p.start, end):end])
}

// WaitLog waits until the process's log matches a regular expression. It is an
// error, which repeats the end of the log, if that takes longer than timeout
// or if the process ends without.
func (p *Process) WaitLog(pattern string, timeout time.Duration) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	return p.waitFor(fmt.Sprintf("log %q", pattern), timeout, func() bool { return re.MatchString(p.Log()) })
}

// WaitNotify waits until the process has sent the given line by sd_notify, as
// "READY=1", within the same limits as [Process.WaitLog]. The process has to
// be started with Notify.
func (p *Process) WaitNotify(line string, timeout time.Duration) error {
	_, err := p.NotifiedAt(line, timeout)
	return err
}

// NotifiedAt is [Process.WaitNotify] for who wants to know when the line came.
// It returns as soon as it is there.
func (p *Process) NotifiedAt(line string, timeout time.Duration) (time.Time, error) {
	if p.notify == nil {
		return time.Time{}, fmt.Errorf("%v was not started with Notify", p)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		ended := !p.Running() // before looking, so that its last words count
		at, more, found := p.notify.find(line)
		if found {
			return at, nil
		}
		if ended {
			return at, fmt.Errorf("%v ended with status %d before it would notify %s; its log ends with:\n%s", p, p.status, line, tail(p.Log(), 20))
		}
		select {
		case <-more:
		case <-p.done:
		case <-timer.C:
			return at, fmt.Errorf("waiting for %v to notify %s: not within %v; its log ends with:\n%s", p, line, timeout, tail(p.Log(), 20))
		}
	}
}

// WaitReady is [Process.WaitNotify] for "READY=1".
func (p *Process) WaitReady(timeout time.Duration) error { return p.WaitNotify("READY=1", timeout) }

// Notified are the lines that the process has sent by sd_notify, in order,
// such as "READY=1" or "STATUS=...".
func (p *Process) Notified() []string {
	if p.notify == nil {
		return nil
	}
	return p.notify.lines()
}

// waitFor waits until the process has done something, unless it ends first.
func (p *Process) waitFor(what string, timeout time.Duration, done func() bool) error {
	over := false
	err := Poll(timeout, fmt.Sprintf("waiting for %v to %s", p, what), func() error {
		over = !p.Running() // before looking, so that its last words count
		switch {
		case done():
			over = false
			return nil
		case over:
			return nil
		}
		return errors.New("it has not")
	})
	if over {
		err = fmt.Errorf("%v ended with status %d before it would %s", p, p.status, what)
	}
	if err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, tail(p.Log(), 20))
	}
	return nil
}

func size(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
