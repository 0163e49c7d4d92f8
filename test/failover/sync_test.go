package failover

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"example.com/billing/test/failover/pgpair"
)

// cutMax is how long the standby cannot be reached: longer than every request and statement may take.
const cutMax = 20 * time.Second

// The standby cannot be reached, so no commit can be promised. A caller whose request timed out asks again with the same key; whatever
// is acknowledged then is on the standby after its promotion.
func TestRepeatIsAcknowledgedOnlyBehindTheStandby(t *testing.T) {
	s := newStack(t, pgpair.Options{Mode: pgpair.Sync}, nil)
	c := s.cast()
	s.works(c.one, c.other)
	s.pair().CutReplication()
	var orders []object
	for range 4 {
		orders = append(orders, order(c.one, c.other, "1.00"))
	}
	var all sync.WaitGroup
	for i, o := range orders {
		all.Go(func() {
			for end := time.Now().Add(cutMax); time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // between two requests
				if a, accepted := s.ask(i%2, "transfer", o, 0); accepted {
					t.Errorf("acknowledged without the standby: %d %v", a.status, a.body)
					return
				}
			}
		})
	}
	all.Wait()
	s.failOver(s.pair())
	s.recover() // what was committed without the standby was never promised, but it may be on the topics
	s.works(c.one, c.other)
	for i, o := range orders { // the outcome of each was unknown, and its key still means one transaction
		first := s.complete(i%2, "transfer", o)
		if second := s.complete((i+1)%2, "transfer", o); first != second {
			t.Errorf("key %v is of transactions %s and %s", o["idempotencyKey"], first, second)
		}
	}
	if lost := s.served(); len(lost) > 0 {
		t.Errorf("%d acknowledged transactions are lost with a synchronous standby: %v", len(lost), lost)
	}
	s.audit()
}

// Under load, the primary is killed and its synchronous standby promoted: every acknowledged transaction is there, and ends.
func TestSynchronousStandbyHasWhatWasAcknowledged(t *testing.T) {
	s := newStack(t, pgpair.Options{Mode: pgpair.Sync}, nil)
	c := s.cast()
	stop := s.load(c)
	defer stop()
	s.eventually("the load runs", recoverMax, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.acked) > 40 })
	s.failOver(s.pair())
	s.works(c.other, c.one)
	stop()
	if lost := s.served(); len(lost) > 0 {
		t.Errorf("%d acknowledged transactions are lost with a synchronous standby: %v", len(lost), lost)
	}
	for i := range s.sets {
		if a, err := s.call(i, http.MethodGet, "/readyz", nil); err != nil || a.status != http.StatusOK {
			t.Errorf("set %d is not ready: %v %v", i, a.body, err)
		}
	}
	if n := s.metric("account", "es_lost_events"); n > 0 {
		t.Errorf("%v events count as lost, and none is", n)
	}
	s.audit()
}
