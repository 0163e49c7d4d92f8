package main

import (
	"context"
	"fmt"
	"time"

	"example.com/billing/test/failover/pgpair"
)

const (
	holdMax   = 15 * time.Second // until a snapshot is held: Postgres may be away for the time of another fault
	holdTry   = 2 * time.Second  // for one attempt
	holdPause = 200 * time.Millisecond
)

// snapshot is one that somebody holds open in a database, as a long report or a backup does.
type snapshot struct {
	c        *cluster
	database string
	free     func() error // nil = not held
}

// hold opens the snapshot; as long as another fault keeps Postgres away, it tries again.
func (s *snapshot) hold() (err error) {
	for end := time.Now().Add(holdMax); time.Now().Before(end); time.Sleep(holdPause) {
		ctx, cancel := context.WithTimeout(context.Background(), holdTry)
		s.free, err = pgpair.HoldSnapshot(ctx, s.c.dsn(s.database))
		cancel()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("hold a snapshot of %s: %w", s.database, err)
}

// release closes its connection. Postgres may have been killed meanwhile, which releases it too.
func (s *snapshot) release() error {
	if s.free != nil {
		_ = s.free()
	}
	s.free = nil
	return nil
}
