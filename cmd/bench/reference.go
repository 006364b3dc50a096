package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// reference is how long ip and bridge take to put the entries of all leases
// into a fresh host's kernel: their own times, one after the other.
func (c *control) reference(in *leased) (total time.Duration, err error) {
	h := c.fresh(in)
	c.kind.prepare(h.Host)
	for i, b := range c.kind.batches {
		file := filepath.Join(h.Dir, fmt.Sprintf("batch%d", i))
		if err := os.WriteFile(file, []byte(b.lines(in.leases)), 0o644); err != nil {
			return 0, err
		}
		begin := time.Now()
		if _, err := h.Exec(b.tool, "-batch", file); err != nil {
			return 0, err
		}
		total += time.Since(begin)
	}
	// What is compared has to be the same.
	return total, c.programmed(h, in)
}
