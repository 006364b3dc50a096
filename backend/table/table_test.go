package table

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	for text, want := range map[string][]string{ // the unknown fields
		`{"Network": "10.1.0.0/16"}`: nil,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "VXLAN", "VNI": 0, "port": 1, "gbp": true, "Directrouting": true, "MTU": 1400}}`: nil,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw", "Port": 1}}`:                                                          {"Backend.Port"},
		`{"Network": "10.1.0.0/16", "EnableIPv4": true, "Backend": {"Type": "udp", "Port": 1, "VNI": 1}}`:                                {"EnableIPv4", "Backend.VNI"},
	} {
		c, unknown, err := ParseConfig(text)
		if err != nil || c.Open == nil {
			t.Errorf("%s: %v", text, err)
		}
		if diff := cmp.Diff(want, unknown); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
	for text, want := range map[string]string{
		`{"Backend": {"Type": "vxlan"}}`:                                        `Network is missing`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": ""}}`:                   `Backend.Type is "": there is no such backend, only host-gw, udp, vxlan`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "ipsec"}}`:              `Backend.Type is "ipsec": there is no such backend, only host-gw, udp, vxlan`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": -1}}`:   `Backend.VNI is -1: must be a whole number from 0 to 9999999`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": "1"}}`:  `Backend.VNI is "1": must be a whole number`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Port": 0}}`:   `Backend.Port is 0: must be a whole number from 1 to 65535`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "GBP": 1}}`:    `Backend.GBP is 1: must be true or false`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "MTU": 100}}`:  `Backend.MTU is 100: must be a whole number from 118 to 65535`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": "udp", "Port": 65536}}`: `Backend.Port is 65536: must be a whole number from 1 to 65535`,
	} {
		if _, _, err := ParseConfig(text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", text, err, want)
		}
	}
}
