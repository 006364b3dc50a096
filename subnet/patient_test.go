package subnet_test

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"

	"flanneld/subnet/storetest"
)

// However many callers wait for a store, and however long, the log says so when
// it begins, when it ends, and once a minute in between; the store is not asked
// all the time, and all are answered within five seconds of its return.
func TestPatient(t *testing.T) {
	var log bytes.Buffer
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	klog.SetOutputBySeverity("INFO", &log) // which gets the others too
	defer klog.LogToStderr(true)

	synctest.Test(t, func(t *testing.T) {
		memory := storetest.NewMemory()
		memory.SetConfig("one")
		store := patient(memory, ownIP)
		const callers, minutes = 5, 10
		memory.SetDown(true)
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				if value, _, err := store.Config(t.Context()); err != nil || value != "one" {
					t.Errorf("%q, %v", value, err)
				}
			})
		}
		time.Sleep(minutes * time.Minute)
		if n := memory.Calls(); n > callers*minutes*60 {
			t.Errorf("%d calls in %d minutes", n, minutes)
		}
		memory.SetDown(false)
		back := time.Now()
		wg.Wait()
		if took := time.Since(back); took > 5*time.Second {
			t.Errorf("it took %v to notice that the store is back", took)
		}
	})
	klog.Flush()
	for text, want := range map[string][2]int{"Waiting for the store": {1, 1}, "Still waiting for the store": {7, 10}, "The store works again": {1, 1}} {
		if n := strings.Count(log.String(), text); n < want[0] || n > want[1] {
			t.Errorf("%q is in the log %d times, want %v:\n%s", text, n, want, &log)
		}
	}
}
