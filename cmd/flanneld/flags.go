package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"flanneld/network"
	"flanneld/network/cleanup"
	"flanneld/subnet"
	"flanneld/subnet/etcdv2"
)

// options is the command line, read.
type options struct {
	etcd    etcdv2.Options
	node    network.Options
	version bool
	// json says that a command's output is for a script.
	json bool
	// etcdGiven says that somebody has said where etcd is.
	etcdGiven bool
	// prefixGiven says that somebody has said which directory the network is under.
	prefixGiven bool
	// logDir is where log files are written, logFile the one there if it has a name;
	// both are empty where there are none.
	logDir, logFile string

	// What the commands' own flags set.
	status  statusOptions
	cleanup cleanup.Options
}

// prefix is the directory in etcd, as it is shown.
func (o options) prefix() string { return path.Join("/", o.etcd.Prefix) }

// envPrefix precedes a flag's name, in capitals and with underscores, in the
// environment.
const envPrefix = "FLANNELD_"

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// parseFlags reads the command line of a command and, for flags not on it, the
// environment. Its errors are one line about what is wrong; flag.ErrHelp means that help was
// asked for and has been written to help.
func parseFlags(c command, args []string, getenv func(string) string, help io.Writer) (options, error) {
	var (
		o                      options
		ifaces, regexes        list
		endpoints, canReach    string
		publicIP, healthIP     string
		margin, resync, health int
	)
	fs := flag.NewFlagSet("flanneld", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // its errors come back as such; usage is our own
	fs.StringVar(&endpoints, "etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "`URLs` of the etcd members, separated by commas")
	fs.StringVar(&o.etcd.Prefix, "etcd-prefix", "/coreos.com/network", "the `directory` in etcd that the network is under")
	fs.StringVar(&o.etcd.CAFile, "etcd-cafile", "", "`file` with the CA certificates that etcd's certificate is checked against")
	fs.StringVar(&o.etcd.CertFile, "etcd-certfile", "", "`file` with the client certificate shown to etcd")
	fs.StringVar(&o.etcd.KeyFile, "etcd-keyfile", "", "`file` with the key of the client certificate")
	fs.StringVar(&o.etcd.Username, "etcd-username", "", "`name` of the etcd user")
	fs.StringVar(&o.etcd.Password, "etcd-password", "", "the user's `password`; in the environment it is seen by fewer")
	fs.Var(&ifaces, "iface", "`name or IP` of the interface between hosts; repeatable, the first that matches is used (default the interface of the default route)")
	fs.Var(&regexes, "iface-regex", "`regexp` for the interface's IP or, if none matches, its name; repeatable, tried after --iface")
	fs.StringVar(&canReach, "iface-can-reach", "", "use the interface that packets to this `IP` leave by")
	fs.StringVar(&publicIP, "public-ip", "", "the `IP` that other hosts reach this one at (default the interface's)")
	fs.StringVar(&o.node.SubnetFile, "subnet-file", "/run/flannel/subnet.env", "the `file` that the subnet is written to for dockerd's start-up")
	fs.IntVar(&margin, "subnet-lease-renew-margin", 60, "renew the lease this many `minutes` before it ends, 1 to 1439")
	fs.BoolVar(&o.node.IPMasq, "ip-masq", false, "masquerade what leaves the network")
	fs.IntVar(&resync, "iptables-resync", 5, "compare the iptables rules every so many `seconds`")
	fs.BoolVar(&o.node.ForwardRules, "iptables-forward-rules", true, "accept the network's traffic in the FORWARD chain")
	fs.StringVar(&healthIP, "healthz-ip", "0.0.0.0", "the `IP` that /healthz is served on")
	fs.IntVar(&health, "healthz-port", 0, "the `port` that /healthz is served on; 0 turns it off")
	klog.InitFlags(fs)
	own := flag.NewFlagSet("", flag.ContinueOnError)
	c.flags(own, &o)
	own.VisitAll(func(f *flag.Flag) { fs.Var(f.Value, f.Name, f.Usage) })

	if err := parseAll(fs, args); errors.Is(err, flag.ErrHelp) {
		usage(c, fs, own, help)
		return options{}, err
	} else if err != nil {
		return options{}, err
	}
	if o.version {
		return o, nil
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	verbosity := fs.Lookup("v").Value.String()
	if err := fromEnvironment(fs, own, given, getenv); err != nil {
		return options{}, err
	}
	o.etcdGiven, o.prefixGiven = given["etcd-endpoints"], given["etcd-prefix"]
	if err := misplaced(fs); err != nil {
		return options{}, err
	}
	o.logDir, o.logFile = logPlace(fs, given)
	if c.name != "" {
		quiet(verbosity)
	} else if err := logToFiles(fs, given, o.logDir, o.logFile); err != nil {
		return options{}, err
	}

	// The shape of the values; what they stand for is judged when they are used.
	for _, check := range []error{
		parseEndpoints(endpoints, &o.etcd.Endpoints),
		parseIP("public-ip", publicIP, &o.node.PublicIP),
		parseIP("iface-can-reach", canReach, &o.node.Interface.CanReach),
		between("subnet-lease-renew-margin", margin, 1, 1439),
		between("iptables-resync", resync, 1, 24*60*60),
		between("healthz-port", health, 0, 65535),
		together("etcd-certfile", o.etcd.CertFile, "etcd-keyfile", o.etcd.KeyFile),
		together("etcd-username", o.etcd.Username, "etcd-password", o.etcd.Password),
		notEmpty("etcd-prefix", strings.Trim(o.etcd.Prefix, "/")),
		notEmpty("subnet-file", o.node.SubnetFile),
	} {
		if check != nil {
			return options{}, check
		}
	}
	o.node.RenewMargin = time.Duration(margin) * time.Minute
	o.node.FirewallResync = time.Duration(resync) * time.Second
	o.node.Interface.Ifaces, o.node.Interface.Regexes = ifaces, regexes
	o.node.Interface.PublicIP = o.node.PublicIP
	if err := o.node.Interface.Validate(); err != nil {
		return options{}, err
	}
	if health != 0 {
		ip, err := netip.ParseAddr(healthIP)
		if err != nil {
			return options{}, fmt.Errorf("--healthz-ip=%s: not an IP address", healthIP)
		}
		o.node.HealthAddr = netip.AddrPortFrom(ip, uint16(health))
	}
	return o, nil
}

// parseAll is fs.Parse for the command lines of unit files, in which a variable
// that is not set leaves an empty argument.
func parseAll(fs *flag.FlagSet, all []string) error {
	for args := all; ; {
		if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
			return err
		} else if err != nil {
			return showable(fs, all, err)
		}
		switch {
		case fs.NArg() == 0:
			return nil
		case fs.Arg(0) != "":
			return stray(all, fs.Arg(0))
		}
		args = fs.Args()[1:]
	}
}

// fromEnvironment sets the flags that are in the environment and not given on
// the command line, but for the command's own.
func fromEnvironment(fs, own *flag.FlagSet, given map[string]bool, getenv func(string) string) (err error) {
	fs.VisitAll(func(f *flag.Flag) {
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := getenv(name)
		if err != nil || value == "" || given[f.Name] || own.Lookup(f.Name) != nil {
			return
		}
		serr := fs.Set(f.Name, value)
		if serr != nil && aPassword.MatchString(value) {
			err = fmt.Errorf("%s in the environment: its value cannot be read; it is not shown, as it may hold the password", name)
			return
		} else if serr != nil {
			err = fmt.Errorf("%s=%s in the environment: %w", name, value, serr)
			return
		}
		given[f.Name] = true
	})
	return err
}

// logPlace is where --log_dir or --log_file have log files written: nowhere where the
// command line says that stderr is all.
func logPlace(fs *flag.FlagSet, given map[string]bool) (dir, file string) {
	if given["logtostderr"] && fs.Lookup("logtostderr").Value.String() == "true" {
		return "", ""
	}
	dir, file = fs.Lookup("log_dir").Value.String(), fs.Lookup("log_file").Value.String()
	if file != "" {
		dir = filepath.Dir(file)
	}
	return dir, file
}

// logToFiles makes --log_dir and --log_file do what they say. On their own they
// would have no effect, as klog writes to stderr alone unless told otherwise; so
// it writes to both, unless the command line says.
func logToFiles(fs *flag.FlagSet, given map[string]bool, dir, file string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the directory for the log files: %w%s", err, sandboxed(dir, err))
	}
	if !given["logtostderr"] {
		if err := fs.Set("logtostderr", "false"); err != nil {
			return err
		}
		if !given["alsologtostderr"] {
			if err := fs.Set("alsologtostderr", "true"); err != nil {
				return err
			}
		}
	}
	// klog would end the daemon in words of its own, or, if it is a directory, write
	// to that for temporary files, where nobody looks.
	if file == "" {
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("making log files in %s: %w%s", dir, err, sandboxed(dir, err))
		}
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666) // as klog has it
	if err != nil {
		return fmt.Errorf("opening the log file: %w%s", err, sandboxed(dir, err))
	}
	return f.Close()
}

// sandboxed is what to do where a directory cannot be written to because of
// systemd's ProtectSystem=, under which all looks like a file system that was
// mounted so.
func sandboxed(dir string, err error) string {
	if !errors.Is(err, syscall.EROFS) {
		return ""
	}
	if abs, aerr := filepath.Abs(dir); aerr == nil {
		dir = abs
	}
	return "; is it the unit's sandbox? add ReadWritePaths=" + dir + " to it, and have the directory there before it starts"
}

func parseEndpoints(s string, to *[]string) error {
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		// It may be a password, also with a comma in it, and this goes to a log. Nor
		// would it be used: the client takes name and password for all members from
		// elsewhere.
		return fmt.Errorf("--etcd-endpoints: there is an @ with something before it in the URL with %q: a user is given by --etcd-username and "+envPrefix+"ETCD_PASSWORD", s[at:])
	}
	for _, e := range strings.Split(s, ",") {
		e = strings.TrimSpace(e)
		if e == "" {
			continue
		}
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("--etcd-endpoints: %q is not a URL like http://10.0.0.1:2379", e)
		}
		*to = append(*to, e)
	}
	if len(*to) == 0 {
		return errors.New("--etcd-endpoints: no endpoint is given")
	}
	return nil
}

func parseIP(name, s string, to *netip.Addr) error {
	if s == "" {
		return nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return fmt.Errorf("--%s=%s: not an IPv4 address", name, s)
	}
	if !subnet.Reachable(a) {
		return fmt.Errorf("--%s=%s: not an address of a host", name, s)
	}
	*to = a
	return nil
}

func between(name string, n, min, max int) error {
	if n < min || n > max {
		return fmt.Errorf("--%s=%d: must be from %d to %d", name, n, min, max)
	}
	return nil
}

func together(name1, s1, name2, s2 string) error {
	if s1 != "" && s2 == "" {
		return fmt.Errorf("--%s needs --%s beside it", name1, name2)
	}
	if s2 != "" && s1 == "" {
		return fmt.Errorf("--%s needs --%s beside it", name2, name1)
	}
	return nil
}

func notEmpty(name, s string) error {
	if s == "" {
		return fmt.Errorf("--%s: must not be empty", name)
	}
	return nil
}

// usage lists all flags, those of the command first.
func usage(c command, fs, own *flag.FlagSet, w io.Writer) {
	klogs := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(klogs)
	line := func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		if arg != "" {
			arg = "=" + arg
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && !strings.Contains(text, "default") {
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(w, "  --%s%s\n        %s\n", f.Name, arg, text)
	}
	if c.name == "" {
		listCommands(w)
	} else {
		fmt.Fprintf(w, "flanneld %s %s\n", c.name, c.about)
	}
	shared := "Flags"
	if c.name != "" {
		shared = "Flags of the daemon, to be given as there"
		fmt.Fprintln(w, "\nFlags:")
		own.VisitAll(line)
	}
	fmt.Fprintln(w, "\n"+shared+" (each also as "+envPrefix+"<NAME> in the environment, e.g. "+envPrefix+"ETCD_ENDPOINTS):")
	fs.VisitAll(func(f *flag.Flag) {
		if klogs.Lookup(f.Name) == nil && (c.name == "" || own.Lookup(f.Name) == nil) {
			line(f)
		}
	})
	fmt.Fprintln(w, "\nLogging:")
	klogs.VisitAll(line)
}
