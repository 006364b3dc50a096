package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// A reservation stays one whatever happens to it, and what an operator makes a
// lease of is one.
func TestReservation(t *testing.T) {
	for _, backend := range leaseBackends {
		t.Run(backend, func(t *testing.T) {
			needTUN(t, backend)
			c, s := newCluster(t)
			c.SetConfig(configOf(backend))
			h := c.Node("h1", s)
			// As an operator writes it, who knows nothing of VTEPs.
			bare := fmt.Sprintf(`{"PublicIP": "%v"}`, h.Addr())
			c.PutLease(fakeKey(1), bare, 0)
			var own string
			reserved := func(what string) {
				t.Helper()
				lab.Eventually(t, within, what, func() error {
					now := leaseAt(c, 1)
					if own == "" {
						own = now.Value
					}
					if len(c.Leases()) != 1 || now.Value != own || now.Value == bare || now.TTL != 0 {
						return fmt.Errorf("the leases are %v", c.Leases())
					}
					return nil
				})
			}
			// An operator who writes a lease too often is taken for another host, so
			// each of his doings meets a flanneld that has not seen one yet.
			start := func() {
				t.Helper()
				h.Start()
				h.AwaitReady()
			}
			stop := func() {
				t.Helper()
				if log := h.Daemon.Log(); strings.Contains(log, "changing hands") {
					t.Errorf("the operator is taken for another host:\n%s", log)
				}
				h.Stop()
			}
			start()
			reserved("taken over at the start")
			for _, how := range stops {
				how.stop(h)
				start()
				reserved(how.name + " and started")
			}
			values := []string{own}
			if typeOf(backend) != "udp" { // where there is no more to say
				values = append(values, bare)
			}
			for _, value := range values {
				stop()
				start()
				c.DeleteLease(fakeKey(1))
				c.PutLease(fakeKey(1), value, 0)
				reserved("deleted and written again at once")
				c.DeleteLease(fakeKey(1))
				lab.Eventually(t, within, "claimed again", func() error {
					if _, there := c.Leases()[fakeKey(1)]; !there {
						return errors.New("it is not there")
					}
					return nil
				})
				c.PutLease(fakeKey(1), value, 0)
				reserved("deleted and written again")
			}

			stop()
			start()
			c.PutLease(fakeKey(1), own, 4*time.Second)
			awaitRenewed(t, c, 1, leaseAt(c, 1))
			c.PutLease(fakeKey(1), own, 0)
			reserved("a lease, renewed, and a reservation again")

			stop()
			start()
			c.PutLease(fakeKey(1), own, 3*time.Second)
			c.PutLease(fakeKey(2), `{"PublicIP":"172.30.0.99"}`, 3*time.Second) // which nobody renews
			c.PutLease(fakeKey(1), own, 0)
			written := leaseAt(c, 1)
			lab.Eventually(t, 10*time.Second, "the time the lease would have had is over", func() error {
				if _, there := c.Leases()[fakeKey(2)]; there {
					return errors.New("it is not")
				}
				return nil
			})
			reserved("a lease, and at once a reservation again")
			if now := leaseAt(c, 1); now.CreatedIndex != written.CreatedIndex {
				t.Errorf("the reservation was gone: it is %+v and was %+v", now, written)
			}
			stop()
			start()
			reserved("and started")
		})
	}
}
