// Package lab makes hosts and containers out of network namespaces, starts
// processes in them and takes everything down again, whatever happens. It is
// meant for tests and for demo programs that need several machines on one.
//
// # What it does
//
// [Main] (for a TestMain) and [Enter] (for an ordinary program) start the
// running binary once more, in mount, network and pid namespaces of its own,
// and in a user namespace when the caller is not root. All that the lab makes
// lives in there, so the kernel is the cleaner: when the first process of that
// pid namespace ends, for whatever reason, the kernel kills all others, and
// with them go their network namespaces, devices and mounts. The first process
// ends when the program ends, when it is interrupted, and when the process the
// user started is killed, even with SIGKILL. The network, /run and processes
// of the machine are never touched.
//
// In there a [Lab] holds [Segment]s (bridges in a router's namespace, which
// forwards between them), [Host]s on segments, and [Container]s on hosts,
// behind a docker0 bridge like the one dockerd makes. Each host or container
// is a [Node]: a namespace in which functions, commands and [Process]es run,
// and which sends and answers pings and TCP streams.
//
// # What it does not do
//
// Hosts share one file system, one hostname and one /run: give each process
// paths below its node's Dir. A program has one lab open at a time, so tests
// that use it do not run in parallel (packages do). The lab speaks IPv4 only,
// and knows nothing of the programs that run in it, except how to start etcd.
//
// # Failing
//
// Methods that build or command the lab (Segment, Host, Container, Run, Start,
// ...) have no error result: they end the test through its Fatalf, or the
// function given to [Run] with that error, and so belong on the goroutine of
// the test or of that function. Methods that observe what runs in the lab
// (Ping, Transfer, WaitLog, Wait, ...) return errors and may be called from
// any goroutine; Must turns such an error into a failure.
//
// # Use
//
//	func TestMain(m *testing.M) { lab.Main(m, lab.BuildEtcd(), lab.BuildGo("daemon", "./cmd/daemon")) }
//
//	func TestDaemon(t *testing.T) {
//		l := lab.ForTest(t)
//		s := l.Segment("lan", netip.MustParsePrefix("172.16.16.0/24"))
//		h1, h2 := l.Host("h1", s), l.Host("h2", s)
//		e := h1.Etcd()
//		p := h2.StartProgram(lab.Program{
//			Name:   "daemon",
//			Args:   []string{lab.Binary("daemon"), "--etcd-endpoints", e.Endpoint()},
//			Notify: true,
//		})
//		l.Must(p.WaitReady(5 * time.Second))
//		_, err := h1.Ping(h2.Addr(), lab.Echo{Count: 3})
//		l.Must(err)
//	}
//
// # Where to start reading
//
// enter.go for how a program gets into namespaces and why nothing is left
// behind; lab.go and node.go for the rest; lab_test.go for use.
package lab
