package kernel

import "time"

// Comparison says what came of comparing the kernel with the State once.
type Comparison struct {
	// Cause is why it was made.
	Cause Cause
	// Whole says that all tables were read for it. Otherwise only what is new in
	// the State was looked at.
	Whole bool
	// Took is how long it took, with the changes that were made.
	Took time.Duration
	// Device says that something was changed about the State's device, or that one
	// was removed that was ours as well.
	Device bool
	// Routes, Neighbours and FDB count the entries. While the tables cannot be
	// read or written at all they say what was known last. Next-hop objects are a
	// part of the routes through them.
	Routes, Neighbours, FDB Entries
	// Failed has one error for each thing that could not be done and will be tried
	// again.
	Failed []error
	// Faults are those of the Plan.
	Faults []error
}

// Cause is why a comparison was made. Where several reasons have come together
// it is the first of these.
type Cause string

const (
	// Start is that of the first comparison.
	Start Cause = "start"
	// Notice: the kernel has told of something that is not as it was left.
	Notice Cause = "notice"
	// Input: there is another input, or the same once more.
	Input Cause = "input"
	// Retry: something has failed before, or was changing while it was read.
	Retry Cause = "retry"
	// Periodic: it was time, for what the kernel might not have told.
	Periodic Cause = "periodic"
)

// Entries counts entries of one kind.
type Entries struct {
	// Wanted are those in the State, Programmed those of them that are in the
	// kernel.
	Wanted, Programmed int
	// Failed are those that are wanted and not in the kernel, and those in the
	// kernel that ought to be gone and are not.
	Failed int
	// Changed are those that were set or deleted in this comparison. Repaired are
	// those of them that the State asks for, or does not, as it did before: somebody
	// else has changed them, or they had failed.
	Changed, Repaired int
}

// next is the comparison after c, as long as nothing is known of it.
func (c Comparison) next(cause Cause) Comparison {
	c.Cause, c.Whole, c.Took, c.Device, c.Failed = cause, false, 0, false, nil
	for _, e := range []*Entries{&c.Routes, &c.Neighbours, &c.FDB} {
		e.Changed, e.Repaired = 0, 0
	}
	return c
}

// count counts the entries that are asked for, of which those possible do not
// wait for the device, and what the kernel has refused.
func (c *Comparison) count(asked, possible State, refused map[entry]refusal) {
	kind := func(e *Entries, asked, possible int) {
		e.Wanted, e.Programmed, e.Failed = asked, possible, asked-possible
	}
	kind(&c.Routes, len(asked.Routes), len(possible.Routes))
	kind(&c.Neighbours, len(asked.Neighbours), len(possible.Neighbours))
	kind(&c.FDB, len(asked.FDB), len(possible.FDB))
	for key, why := range refused {
		e := &c.Routes
		switch key.kind {
		case 'n':
			e = &c.Neighbours
		case 'f':
			e = &c.FDB
		}
		e.Failed++
		if why.missing {
			e.Programmed--
		}
	}
}
