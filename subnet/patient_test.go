package subnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"

	"flanneld/subnet"
	"flanneld/subnet/storetest"
)

// However many callers wait for a store, and however long, the log says so when
// it begins, when it ends, and once a minute in between; the store is not asked
// all the time, and all are answered within five seconds of its return.
func TestPatient(t *testing.T) {
	log := logged(t)
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
	for text, want := range map[string][2]int{"Waiting for the store": {1, 1}, "Still waiting for the store": {7, 10}, "The store works again": {1, 1}} {
		if n := strings.Count(log(), text); n < want[0] || n > want[1] {
			t.Errorf("%q is in the log %d times, want %v:\n%s", text, n, want, log())
		}
	}
}

// readOnly is a store that answers questions and refuses what would change it.
type readOnly struct{ *storetest.Memory }

func (readOnly) Create(context.Context, string, string, time.Duration) (subnet.Entry, error) {
	return subnet.Entry{}, errors.New("no space")
}

// A store that answers some calls and not others does not come and go in the log.
func TestPatientWithReadOnly(t *testing.T) {
	log := logged(t)
	synctest.Test(t, func(t *testing.T) {
		store := patient(readOnly{storetest.NewMemory()}, ownIP)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		var reading sync.WaitGroup
		defer reading.Wait()
		reading.Go(func() {
			for ctx.Err() == nil {
				store.List(ctx)
				time.Sleep(time.Second)
			}
		})
		if _, err := store.Create(ctx, key, value(ownIP), time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	if n := strings.Count(log(), "\n"); n != 1 || !strings.Contains(log(), "Waiting for the store: no space") {
		t.Errorf("the log is\n%s", log())
	}
}

// The end of an outage is said also where nobody wants to know any more what was
// asked in it.
func TestPatientCancelled(t *testing.T) {
	for _, order := range []string{"answered, cancelled", "cancelled, answered", "cancelled"} {
		t.Run(order, func(t *testing.T) {
			log := logged(t)
			synctest.Test(t, func(t *testing.T) {
				memory := storetest.NewMemory()
				store := patient(memory, ownIP)
				memory.SetDown(true)
				ctx, cancel := context.WithCancel(t.Context())
				var all sync.WaitGroup
				if order != "cancelled" {
					all.Go(func() { store.List(t.Context()) })
				}
				all.Go(func() { store.Config(ctx) })
				time.Sleep(time.Minute / 2)
				if order == "answered, cancelled" {
					memory.SetDown(false)
					time.Sleep(time.Second) // which of the two is answered is open
				}
				cancel()
				synctest.Wait()
				memory.SetDown(false)
				all.Wait()
				store.List(t.Context())
			})
			if begins, ends := strings.Count(log(), "Waiting for the store"), strings.Count(log(), "The store works again"); begins != 1 || ends != 1 {
				t.Errorf("the log is\n%s", log())
			}
		})
	}
}

// A store that fails every other time does not fill the log.
func TestPatientWithFlapping(t *testing.T) {
	log := logged(t)
	const minutes = 10
	synctest.Test(t, func(t *testing.T) {
		memory := storetest.NewMemory()
		store := patient(memory, ownIP)
		for end := time.Now().Add(minutes * time.Minute); time.Now().Before(end); {
			memory.SetDown(true)
			time.AfterFunc(time.Second, func() { memory.SetDown(false) })
			if _, _, err := store.List(t.Context()); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		memory.SetDown(true)
		time.AfterFunc(5*time.Second, func() { memory.SetDown(false) })
		store.List(t.Context()) // which is an outage of its own
	})
	for text, most := range map[string]int{"Waiting for the store": 2, "Still waiting for the store": minutes, "The store works again": minutes + 2} {
		if n := strings.Count(log(), text); n > most || n < 2 {
			t.Errorf("%q is in the log %d times, want at most %d:\n%s", text, n, most, log())
		}
	}
}

// logged collects the log of a test, and returns what there is so far.
func logged(t *testing.T) func() string {
	var mu sync.Mutex
	var log bytes.Buffer
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	klog.SetOutputBySeverity("INFO", writer(func(p []byte) (int, error) { // which gets the others too
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}))
	t.Cleanup(func() { klog.LogToStderr(true) })
	return func() string {
		klog.Flush()
		mu.Lock()
		defer mu.Unlock()
		return log.String()
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
