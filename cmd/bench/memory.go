package main

import "fmt"

// megabyte is the decimal one, which the bound is in.
const megabyte = 1e6

// memory shows what the settled flanneld took at first and after all that the
// other parts have put it through.
func (c *control) memory() error {
	h, err := c.settled()
	if err != nil {
		return err
	}
	m, err := memoryOf(h.Daemon.Pid)
	if err != nil {
		return err
	}
	const bound = 30
	for _, r := range []struct {
		what  string
		bytes int64
	}{
		{fmt.Sprintf("memory (RSS), settled with %d leases", len(c.once.leases)), c.rss},
		{"  after all of the above", m.rss},
	} {
		mb := float64(r.bytes) / megabyte
		c.add(row{
			what: c.what("%s", r.what), measured: fmt.Sprintf("%.1f MB", mb),
			bound: fmt.Sprintf("<= %d MB", bound), verdict: verdict(mb <= bound),
		})
	}
	c.add(row{what: c.what("  the most it ever was"), measured: fmt.Sprintf("%.1f MB", float64(m.peak)/megabyte)})
	return nil
}
