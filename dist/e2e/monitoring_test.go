//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/cluster"
)

// promtool is Prometheus' own program to check things with.
const promtool = "../../bin/e2e/promtool"

// fetchPromtool is the lab.Need for it.
func fetchPromtool(ctx context.Context, _ string) error {
	cmd := exec.CommandContext(ctx, "./promtool.sh", promtool)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("fetching promtool: %w", err)
	}
	return nil
}

// prometheusSays runs promtool and returns what it prints; it is to be content.
func prometheusSays(t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	if _, err := os.Stat(promtool); err != nil {
		t.Skip("needs promtool, and can fetch it only where there is apt-get")
	}
	cmd := exec.Command(promtool, args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Each alert comes when what it is about goes on, for the host it is about, and
// none when all is well.
func TestAlerts(t *testing.T) {
	const alerts = "../monitoring/flannel-alerts.yml"
	prometheusSays(t, nil, "check", "rules", alerts)
	prometheusSays(t, nil, "test", "rules", "testdata/alerts_test.yml")
}

// Each query of the dashboard is one that Prometheus understands.
func TestDashboardQueries(t *testing.T) {
	text, err := os.ReadFile("../monitoring/flannel-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$instance", ".*", "$__rate_interval", "5m")
	var rules strings.Builder
	rules.WriteString("groups:\n- name: queries\n  rules:\n")
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			// A text in JSON is one in YAML.
			expr, _ := json.Marshal(variables.Replace(target.Expr))
			fmt.Fprintf(&rules, "  # %s\n  - {record: 'query', expr: %s}\n", panel.Title, expr)
		}
	}
	file := filepath.Join(t.TempDir(), "queries.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	prometheusSays(t, nil, "check", "rules", "--lint=none", file)
}

// Prometheus finds nothing to say against the metrics that a flanneld serves.
func TestMetricsByPrometheusRules(t *testing.T) {
	l := lab.ForTest(t)
	s := l.Segment("a", netip.MustParsePrefix("172.30.0.0/24"))
	c := cluster.New(l, s)
	c.SetConfig(`{"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}`) // which has all that the others have
	h := c.Node("h1", s)
	h.Start("--healthz-port=2401")
	h.AwaitReady()
	resp, err := h.HTTP().Get("http://127.0.0.1:2401/metrics")
	l.Must(err)
	defer resp.Body.Close()
	if said := prometheusSays(t, resp.Body, "check", "metrics"); said != "" {
		t.Errorf("promtool check metrics says:\n%s", said)
	}
}
