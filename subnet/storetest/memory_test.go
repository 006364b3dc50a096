package storetest

import (
	"testing"

	"flanneld/subnet"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) (subnet.Store, Operator) {
		m := NewMemory()
		return m, m
	})
}
