package udp

import (
	"testing"

	"flanneld/pkg/lab"
)

// The tests of this package have a network of their own, of which they use the
// loopback interface and hosts made of network namespaces.
func TestMain(m *testing.M) { lab.Main(m) }
