package subnet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The configs that are in the field, and each rule of the config table.
func TestParseConfig(t *testing.T) {
	for text, want := range map[string]string{
		`{"Network": "172.7.0.0/16", "Backend": {"Type": "host-gw"}}`:                                                                         "172.7.0.0/16 24 172.7.1.0 172.7.255.0 host-gw 255",
		`{"Network": "172.7.0.0/16", "Backend": {"Type": "vxlan","Directrouting": true}}`:                                                     "172.7.0.0/16 24 172.7.1.0 172.7.255.0 vxlan 255",
		`{"Network": "172.17.0.1/16","SubnetMin": "172.17.0.0", "SubnetMax": "172.17.254.0","Backend":{"Type":"vxlan"}}`:                      "172.17.0.0/16 24 172.17.0.0 172.17.254.0 vxlan 255",
		`{"Network":"172.17.0.1/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}`:                                                               "172.17.0.0/16 24 172.17.1.0 172.17.255.0 vxlan 255",
		`{"Network":"172.17.0.0/16","SubnetLen":24,"SubnetMin":"172.17.0.0","SubnetMax":"172.17.254.0","Backend":{"Type":"udp","Port":7890}}`: "172.17.0.0/16 24 172.17.0.0 172.17.254.0 udp 255",
		`{"Network":"10.253.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}`:                                                          "10.253.0.0/16 24 10.253.1.0 10.253.255.0 vxlan 255",
		`{ "Network": "10.1.0.0/16" }`: "10.1.0.0/16 24 10.1.1.0 10.1.255.0 udp 255",
		`{"Network": "192.168.0.1/16","SubnetLen": 24,"Backend": {"Type": "host-gw"}}`: "192.168.0.0/16 24 192.168.1.0 192.168.255.0 host-gw 255",
		`{"Network": "10.0.0.0/8"}`:                                                    "10.0.0.0/8 24 10.0.1.0 10.255.255.0 udp 65535",
		`{"Network": "10.1.0.0/22"}`:                                                   "10.1.0.0/22 24 10.1.1.0 10.1.3.0 udp 3",
		`{"Network": "10.1.0.0/23"}`:                                                   "10.1.0.0/23 25 10.1.0.128 10.1.1.128 udp 3",
		`{"Network": "10.1.0.240/28"}`:                                                 "10.1.0.240/28 30 10.1.0.244 10.1.0.252 udp 3",
		`{"Network": "10.1.0.0/16", "SubnetLen": 18}`:                                  "10.1.0.0/16 18 10.1.64.0 10.1.192.0 udp 3",
		`{"Network": "10.1.0.0/16", "SubnetLen": 30}`:                                  "10.1.0.0/16 30 10.1.0.4 10.1.255.252 udp 16383",
		`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.7.0", "SubnetMax": "10.1.7.0"}`: "10.1.0.0/16 24 10.1.7.0 10.1.7.0 udp 1",
		`{"network": "10.1.0.0/16", "SUBNETLEN": 25, "subnetmin": "10.1.0.128", "Subnetmax": "10.1.1.0", "bAckend": {"tYPE": "VXLAN"}, "Backends": null}`: "10.1.0.0/16 25 10.1.0.128 10.1.1.0 vxlan 2",
		`{"Network": "10.1.0.0/16", "SubnetLen": null, "SubnetMin": null, "Backend": null}`:                                                               "10.1.0.0/16 24 10.1.1.0 10.1.255.0 udp 255",
	} {
		c, err := ParseConfig(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := strings.Join([]string{c.Network.String(), itoa(c.SubnetLen), c.SubnetMin.Addr().String(), c.SubnetMax.Addr().String(), c.BackendType, itoa(c.Subnets())}, " ")
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
}

// Each bad config gets one message, which names the field and shows its value.
func TestParseConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		``:                             `an empty value is not valid JSON: it ends too early`,
		`hello`:                        `hello is not valid JSON: invalid character 'h' looking for beginning of value`,
		`[1]`:                          `[1] is not a JSON object like {"Network": …}`,
		`"10.1.0.0/16"`:                `"10.1.0.0/16" is not a JSON object like {"Network": …}`,
		`null`:                         `null is not a JSON object like {"Network": …}`,
		`{"Network": "10.1.0.0/16"`:    `{"Network": "10.1.0.0/16" is not valid JSON: it ends too early`,
		`{"Network": "10.1.0.0/16"} }`: `{"Network": "10.1.0.0/16"} } is not valid JSON: something follows the closing brace`,
		`{"Network": "10.1.0.0/16",}`:  `{"Network": "10.1.0.0/16",} is not valid JSON: invalid character '}'`,
		`{"Network": "10.1.0.0/16", "network": "10.2.0.0/16"}`: `network is given twice (first as Network)`,
		`{}`:                                                                           `Network is missing: give the IPv4 prefix that all subnets are taken from, like "10.1.0.0/16"`,
		`{"Network": null}`:                                                            `Network is null: is missing`,
		`{"Network": 10}`:                                                              `Network is 10: must be a string`,
		`{"Network": ""}`:                                                              `Network is "": must be an IPv4 prefix like "10.1.0.0/16"`,
		`{"Network": "10.1.0.0"}`:                                                      `Network is "10.1.0.0": must be an IPv4 prefix like "10.1.0.0/16"`,
		`{"Network": "10.1.0.0/33"}`:                                                   `Network is "10.1.0.0/33": must be an IPv4 prefix`,
		`{"Network": "fd00::/48"}`:                                                     `Network is "fd00::/48": must be an IPv4 prefix, IPv6 is not supported`,
		`{"Network": "::ffff:10.1.0.0/112"}`:                                           `Network is "::ffff:10.1.0.0/112": must be an IPv4 prefix`,
		`{"Network": "10.1.0.0/29"}`:                                                   `Network is "10.1.0.0/29": is too small, a network is a /28 at least`,
		`{"Network": "0.0.0.0/0"}`:                                                     `Network is "0.0.0.0/0": would take in every address there is`,
		`{"Network": "127.1.0.0/16"}`:                                                  `Network is "127.1.0.0/16": overlaps 127.0.0.0/8, whose addresses no host can have`,
		`{"Network": "192.0.0.0/1"}`:                                                   `Network is "192.0.0.0/1": overlaps 224.0.0.0/4`,
		`{"Network": "10.1.0.0/16", "SubnetLen": 31}`:                                  `SubnetLen is 31: must be a whole number from 18 to 30`,
		`{"Network": "10.1.0.0/16", "SubnetLen": 17}`:                                  `SubnetLen is 17: must be a whole number from 18 to 30`,
		`{"Network": "10.1.0.0/28", "SubnetLen": 29}`:                                  `SubnetLen is 29: must be a whole number from 30 to 30`,
		`{"Network": "10.1.0.0/16", "SubnetLen": "24"}`:                                `SubnetLen is "24": must be a whole number from 18 to 30`,
		`{"Network": "10.1.0.0/16", "SubnetLen": 24.5}`:                                `SubnetLen is 24.5: must be a whole number`,
		`{"Network": "10.1.0.0/16", "SubnetLen": -1}`:                                  `SubnetLen is -1: must be a whole number`,
		`{"Network": "10.1.0.0/16", "SubnetLen": 0}`:                                   `SubnetLen is 0: must be a whole number`,
		`{"Network": "10.1.0.0/16", "SubnetLen": 1e400}`:                               `SubnetLen is 1e400: must be a whole number`,
		`{"Network": "10.1.0.0/16", "SubnetLen": true}`:                                `SubnetLen is true: must be a whole number`,
		`{"Network": "10.1.0.0/16", "SubnetMin": "10.2.0.0"}`:                          `SubnetMin is "10.2.0.0": lies outside Network, which is 10.1.0.0/16`,
		`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.5.7"}`:                          `SubnetMin is "10.1.5.7": is not where a subnet of length 24 begins, the nearest one below begins at 10.1.5.0`,
		`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.5.0/24"}`:                       `SubnetMin is "10.1.5.0/24": must be an IPv4 address like "10.1.1.0"`,
		`{"Network": "10.1.0.0/16", "SubnetMin": 5}`:                                   `SubnetMin is 5: must be a string`,
		`{"Network": "10.1.0.0/16", "SubnetMax": "10.0.255.0"}`:                        `SubnetMax is "10.0.255.0": lies outside Network`,
		`{"Network": "10.1.0.0/16", "SubnetMax": "fd00::"}`:                            `SubnetMax is "fd00::": must be an IPv4 address`,
		`{"Network": "10.1.0.0/16", "SubnetMax": "10.1.0.0"}`:                          `SubnetMax is "10.1.0.0": lies below SubnetMin, which is 10.1.1.0`,
		`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.9.0", "SubnetMax": "10.1.8.0"}`: `SubnetMax is "10.1.8.0": lies below SubnetMin, which is 10.1.9.0`,
		`{"Network": "10.1.0.0/16", "Backend": "vxlan"}`:                               `Backend is "vxlan": must be an object like {"Type": …}`,
		`{"Network": "10.1.0.0/16", "Backend": []}`:                                    `Backend is []: must be an object`,
		`{"Network": "10.1.0.0/16", "Backend": {}}`:                                    `Backend.Type is missing: name the backend, like {"Type": "vxlan"}`,
		`{"Network": "10.1.0.0/16", "Backend": {"Type": 7}}`:                           `Backend.Type is 7: must be a string`,
		`{"Network": "10.1.0.0/16", "Backend": {"type": "udp", "Type": "vxlan"}}`:      `Backend.Type is given twice (first as type)`,
	} {
		c, err := ParseConfig(text)
		if err == nil {
			t.Errorf("%s: accepted as %v", text, c)
		} else if !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", text, err, want)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the message has several lines: %v", text, err)
		}
	}
}

func TestUnknownFields(t *testing.T) {
	c, err := ParseConfig(`{"Network": "10.1.0.0/16", "EnableIPv6": false, "Backend": {"Type": "vxlan", "Prot": 1, "VNI": 2}}`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Backend.Int("VNI", 1, 0, 10); err != nil { // as a backend would
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"EnableIPv6", "Backend.Prot"}, c.Unknown()); diff != "" {
		t.Error(diff)
	}
}

// A lease of another length takes all subnets that it overlaps, one outside none.
func TestFree(t *testing.T) {
	c, err := ParseConfig(`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.10.0", "SubnetMax": "10.1.20.0"}`)
	if err != nil {
		t.Fatal(err)
	}
	var leases []*Lease
	for _, p := range []string{"10.1.10.0/24", "10.1.12.0/23", "10.1.13.0/24", "10.1.15.128/25", "10.1.9.0/24", "10.2.11.0/24"} {
		leases = append(leases, &Lease{Subnet: netip.MustParsePrefix(p)})
	}
	if all, free := c.Free(nil), c.Free(leases); all != 11 || free != 7 {
		t.Errorf("%d are free of %d, want 7 of 11", free, all)
	}
}

func TestFits(t *testing.T) {
	c, err := ParseConfig(`{"Network": "10.1.0.0/16", "SubnetMin": "10.1.10.0", "SubnetMax": "10.1.20.0"}`)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{
		"10.1.10.0/24": true, "10.1.20.0/24": true, "10.1.15.0/24": true,
		"10.1.9.0/24": false, "10.1.21.0/24": false, "10.2.15.0/24": false,
		"10.1.15.0/25": false, "10.1.14.0/23": false, "10.1.15.1/24": false,
	} {
		if got := c.Fits(netip.MustParsePrefix(p)); got != want {
			t.Errorf("Fits(%s) = %t", p, got)
		}
	}
	if c.Fits(netip.Prefix{}) {
		t.Error("no prefix at all fits")
	}
	for n := range c.Subnets() {
		if !c.Fits(c.Nth(n)) {
			t.Errorf("the subnet %v, number %d, does not fit", c.Nth(n), n)
		}
	}
}
