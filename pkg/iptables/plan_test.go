package iptables

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testChains are one chain with the first place, one without, one unwanted.
var testChains = []Chain{
	{Table: "nat", Name: "OURS", Rules: []string{"-s 10.1.0.0/16 -j ACCEPT", "-j RETURN"}, Parent: "POSTROUTING", First: true},
	{Table: "nat", Name: "MORE", Rules: []string{"-j ACCEPT"}, Parent: "OUTPUT"},
	{Table: "nat", Name: "GONE", Absent: true},
}

const rightTable = `-P OUTPUT ACCEPT
-P POSTROUTING ACCEPT
-N OURS
-N MORE
-N THEIRS
-A OUTPUT -s 192.0.2.1/32 -j THEIRS
-A OUTPUT -j MORE
-A OUTPUT -j THEIRS
-A POSTROUTING -j OURS
-A POSTROUTING -m comment --comment "no -j OURS here" -j THEIRS
-A MORE -j ACCEPT
-A OURS -s 10.1.0.0/16 -j ACCEPT
-A OURS -j RETURN
`

func TestPlan(t *testing.T) {
	for _, test := range []struct {
		name string
		// edit is pairs of old and new text in rightTable.
		edit    []string
		script  string
		changes string
	}{
		{name: "nothing wrong"},
		{name: "a remark and blanks at the end", edit: []string{"-P OUTPUT", "# Warning: other tables present\n-P OUTPUT", "-N OURS\n", "-N OURS \n", "-A OURS -j RETURN\n", "-A OURS -j RETURN \n"}},
		{name: "jump from another chain is none of our business", edit: []string{"-A MORE", "-A THEIRS -j OURS\n-A MORE"}},
		{
			name: "rule missing", edit: []string{"-A OURS -j RETURN\n", ""},
			script:  "*nat\n:OURS - [0:0]\n-A OURS -s 10.1.0.0/16 -j ACCEPT\n-A OURS -j RETURN\nCOMMIT\n",
			changes: "nat: chain OURS: put in the 1 rule missing",
		},
		{
			name: "chain missing", edit: []string{"-N MORE\n", "", "-A MORE -j ACCEPT\n", "", "-A OUTPUT -j MORE\n", ""},
			script:  "*nat\n:MORE - [0:0]\n-A MORE -j ACCEPT\n-A OUTPUT -j MORE\nCOMMIT\n",
			changes: "nat: made chain MORE with 1 rule, nat: added the jump from OUTPUT to MORE",
		},
		{
			name: "jump not first", edit: []string{"-A POSTROUTING -j OURS\n", "", "-A MORE", "-A POSTROUTING -j OURS\n-A MORE"},
			script:  "*nat\n-D POSTROUTING -j OURS\n-I POSTROUTING 1 -j OURS\nCOMMIT\n",
			changes: "nat: made the jump from POSTROUTING to OURS the first rule",
		},
		{
			name: "jumps of a newer daemon", edit: []string{"-A POSTROUTING -j OURS\n", "-A POSTROUTING -m comment --comment \"flanneld masq\" -j OURS\n"},
			script:  "*nat\n-D POSTROUTING -m comment --comment \"flanneld masq\" -j OURS\n-I POSTROUTING 1 -j OURS\nCOMMIT\n",
			changes: "nat: replaced \"-m comment --comment \\\"flanneld masq\\\" -j OURS\" in POSTROUTING by the jump to OURS",
		},
		{
			name: "three jumps, of which one stays", edit: []string{"-A OUTPUT -j MORE\n", "-A OUTPUT -j MORE\n-A OUTPUT -g MORE\n-A OUTPUT -j MORE\n"},
			script:  "*nat\n-D OUTPUT -j MORE\n-D OUTPUT -g MORE\nCOMMIT\n",
			changes: "nat: left one of 3 jumps from OUTPUT to MORE",
		},
		{
			name: "unwanted chain", edit: []string{"-N OURS\n", "-N OURS\n-N GONE\n", "-A OUTPUT -j THEIRS\n", "-A OUTPUT -j THEIRS\n-A OUTPUT -j GONE\n", "-A MORE", "-A THEIRS -s 192.0.2.1/32 -g GONE\n-A GONE -j RETURN\n-A MORE"},
			script:  "*nat\n-F GONE\n-D OUTPUT -j GONE\n-D THEIRS -s 192.0.2.1/32 -g GONE\n-X GONE\nCOMMIT\n",
			changes: "nat: took out chain GONE and the jumps to it",
		},
		{
			name: "unwanted chain that one of ours jumps to", edit: []string{"-N OURS\n", "-N OURS\n-N GONE\n", "-A MORE -j ACCEPT\n", "-A MORE -j GONE\n"},
			script:  "*nat\n:MORE - [0:0]\n-A MORE -j ACCEPT\n-F GONE\n-X GONE\nCOMMIT\n",
			changes: "nat: chain MORE: put in the 1 rule missing and took out \"-j GONE\", nat: took out chain GONE and the jumps to it",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := rightTable
			for i := 0; i < len(test.edit); i += 2 {
				if !strings.Contains(text, test.edit[i]) {
					t.Fatalf("no %q to edit", test.edit[i])
				}
				text = strings.Replace(text, test.edit[i], test.edit[i+1], 1)
			}
			script, changes, err := plan("nat", parse(text), testChains, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.script, script); diff != "" {
				t.Errorf("script (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.changes, strings.Join(changes, ", ")); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

// What an older daemon left goes in the step that brings ours in, and the jump
// takes its place.
func TestPlanTakesOver(t *testing.T) {
	for _, test := range []struct {
		name string
		have string
		want string
	}{
		{
			name: "in front of a rule of somebody else's",
			have: "-P POSTROUTING ACCEPT\n-P OUTPUT ACCEPT\n-A POSTROUTING -s 10.9.0.0/16 -j RETURN\n" +
				"-A OUTPUT -j RETURN\n-A OUTPUT -s 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -d 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -j DROP\n",
			want: `*nat
:OURS - [0:0]
:MORE - [0:0]
-A OURS -s 10.1.0.0/16 -j ACCEPT
-A OURS -j RETURN
-A MORE -j ACCEPT
-D POSTROUTING -s 10.9.0.0/16 -j RETURN
-D OUTPUT -s 10.9.0.0/16 -j ACCEPT
-D OUTPUT -d 10.9.0.0/16 -j ACCEPT
-I OUTPUT 2 -j MORE
-I POSTROUTING 1 -j OURS
COMMIT
nat: made chain OURS with 2 rules
nat: made chain MORE with 1 rule
nat: added the jump from POSTROUTING to OURS
nat: added the jump from OUTPUT to MORE
nat: took out of POSTROUTING what an older daemon left: "-s 10.9.0.0/16 -j RETURN"
nat: took out of OUTPUT what an older daemon left: "-s 10.9.0.0/16 -j ACCEPT", "-d 10.9.0.0/16 -j ACCEPT"
`,
		},
		{
			name: "behind one that is alike and stays, and copies",
			have: strings.Replace(rightTable, "-A OUTPUT -j MORE\n", "-A OUTPUT -j MORE\n-A OUTPUT -s 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -j RETURN\n"+
				strings.Repeat("-A OUTPUT -s 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -d 10.9.0.0/16 -j ACCEPT\n", 2), 1),
			want: `*nat
-D OUTPUT 7
-D OUTPUT 5
-D OUTPUT -d 10.9.0.0/16 -j ACCEPT
-D OUTPUT -d 10.9.0.0/16 -j ACCEPT
COMMIT
nat: took out of OUTPUT what an older daemon left: "-s 10.9.0.0/16 -j ACCEPT" (2 times), "-d 10.9.0.0/16 -j ACCEPT" (2 times)
`,
		},
		{
			name: "where the jump is behind them",
			have: strings.Replace(rightTable, "-A OUTPUT -j MORE\n", "-A OUTPUT -s 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -d 10.9.0.0/16 -j ACCEPT\n-A OUTPUT -j DROP\n-A OUTPUT -j MORE\n", 1),
			want: `*nat
-D OUTPUT -s 10.9.0.0/16 -j ACCEPT
-D OUTPUT -d 10.9.0.0/16 -j ACCEPT
-D OUTPUT -j MORE
-I OUTPUT 2 -j MORE
COMMIT
nat: moved the jump from OUTPUT to MORE up to where an older daemon left rules
nat: took out of OUTPUT what an older daemon left: "-s 10.9.0.0/16 -j ACCEPT", "-d 10.9.0.0/16 -j ACCEPT"
`,
		},
		{
			name: "where the jump that is to be first comes behind them only",
			have: strings.Replace(rightTable, "-A POSTROUTING -j OURS\n", "-A POSTROUTING -d 10.9.0.0/16 -j RETURN\n-A POSTROUTING -j OURS\n", 1),
			want: "*nat\n-D POSTROUTING -d 10.9.0.0/16 -j RETURN\nCOMMIT\nnat: took out of POSTROUTING what an older daemon left: \"-d 10.9.0.0/16 -j RETURN\"\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			script, changes, err := plan("nat", parse(test.have), testChains, testLeftovers)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, script+strings.Join(changes, "\n")+"\n"); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, test := range []struct {
		chains []Chain
		want   string
	}{
		{[]Chain{{Name: "A", Parent: "OUTPUT", First: true}, {Name: "B", Parent: "OUTPUT", First: true}},
			"the jumps to A and to B cannot both be the first rule of OUTPUT"},
		{[]Chain{{Name: "A", Parent: "NOWHERE"}}, "there is no chain NOWHERE to jump to A from"},
		{[]Chain{{Name: "A", Parent: "OUTPUT"}, {Name: "B", Parent: "A"}}, "chain A is our own: a jump from it to B belongs among its rules"},
	} {
		_, _, err := plan("nat", parse(rightTable), test.chains, nil)
		if err == nil || err.Error() != test.want {
			t.Errorf("%v: error %v, want %s", test.chains, err, test.want)
		}
	}
}

func TestTarget(t *testing.T) {
	for rule, want := range map[string]string{
		"-j ACCEPT":                                   "ACCEPT",
		"-s 10.0.0.0/8 -g CHAIN":                      "CHAIN",
		"-s 10.0.0.0/8":                               "",
		"-j SNAT --to-source 1.2.3":                   "SNAT",
		`-m comment --comment "-j X" -j Y`:            "Y",
		`-m comment --comment "a \" -j X" -j Y`:       "Y",
		`-m comment --comment "a \\" -j Y`:            "Y",
		`-m comment --comment "-j" -m mark --mark 01`: "",
	} {
		if got := target(rule); got != want {
			t.Errorf("%s: target %q, want %q", rule, got, want)
		}
	}
}
