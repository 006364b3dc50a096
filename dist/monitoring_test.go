package dist_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// The dashboard is one that can be imported anywhere: whoever looks at it says
// which Prometheus and which hosts, no panel lies on another, and each says what
// it shows. Whether its queries are sound is for Prometheus to say, in dist/e2e.
func TestDashboard(t *testing.T) {
	type source struct{ Type, UID string }
	type variable struct{ Name, Type string }
	type panel struct {
		ID                       int
		Type, Title, Description string
		GridPos                  struct{ H, W, X, Y int }
		Datasource               source
		Targets                  []struct {
			Datasource source
			Expr       string
		}
	}
	var dashboard struct {
		SchemaVersion int
		UID, Title    string
		Templating    struct{ List []variable }
		Panels        []panel
	}
	text, err := os.ReadFile("monitoring/flannel-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.SchemaVersion == 0 || dashboard.UID == "" || dashboard.Title == "" {
		t.Errorf("it is not complete: %+v", dashboard)
	}
	if v := dashboard.Templating.List; len(v) != 2 || v[0] != (variable{"datasource", "datasource"}) || v[1] != (variable{"instance", "query"}) {
		t.Errorf("its variables are %v", v)
	}
	chosen := source{"prometheus", "${datasource}"}
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("%s has the ID %d, which another has too", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies on %q, or outside", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 || p.Datasource != chosen {
			t.Errorf("the panel is not complete: %+v", p)
		}
		for _, target := range p.Targets {
			if target.Datasource != chosen || !strings.Contains(target.Expr, `{instance=~"$instance"`) {
				t.Errorf("%s shows others than were chosen: %+v", p.Title, target)
			}
		}
	}
}
