package projection

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
)

// How long Wait waits at most, and how long it pauses between two looks.
const (
	waitMax       = 5 * time.Second
	waitPause     = 5 * time.Millisecond
	waitPauseMost = 250 * time.Millisecond
	waitersMax    = 256 // at the same time, for one model: each looks again and again
)

// ErrBusy says that too many wait for a read model already.
var ErrBusy = errors.New("too many wait for the read model")

// BehindError says that a read model did not get to the versions waited for in time.
type BehindError struct {
	Table   string
	Streams int // that it does not show yet
}

// Error names the table and how much is missing.
func (e *BehindError) Error() string {
	return fmt.Sprintf("%s does not show %d of the streams waited for after %s", e.Table, e.Streams, waitMax)
}

// StillHas tells whether the streams have these versions: an error where one does not, or where it is not known.
type StillHas func(ctx context.Context, versions map[es.Stream]int64) error

// Wait returns when the rows show the streams at these versions or newer ones; streams of types that the model does not fold
// are left aside. It waits for 5 s at most, then returns a *BehindError; where too many wait already, ErrBusy; where the database does not answer, an
// *es.UnavailableError. Where the rows do not show the versions at once, has is asked whether they will ever come: a database may have
// lost its last moments. What it returns is returned without a wait.
func (f *Folded[S, C]) Wait(ctx context.Context, pool *pgxpool.Pool, versions map[es.Stream]int64, has StillHas) error {
	var (
		ids  []string
		want []int64
	)
	versions = maps.Clone(versions)
	for s, v := range versions {
		if s.Type != f.Decider.Type {
			delete(versions, s)
			continue
		}
		ids, want = append(ids, s.ID), append(want, v)
	}
	if len(ids) == 0 {
		return nil
	}
	defer f.waiting.Add(-1)
	if f.waiting.Add(1) > waitersMax {
		return fmt.Errorf("wait for %s: %w", f.Table, ErrBusy)
	}
	over := time.NewTimer(waitMax)
	defer over.Stop()
	for pause := waitPause; ; pause = min(2*pause, waitPauseMost) {
		var missing int
		err := pool.QueryRow(ctx, `SELECT count(*) FROM unnest($1::uuid[], $2::bigint[]) AS w(id, version)
			WHERE NOT EXISTS (SELECT FROM `+f.Table+` t WHERE t.id = w.id AND t.version >= w.version)`, ids, want).Scan(&missing)
		if err != nil {
			return espg.Classify("read versions of "+f.Table, err)
		}
		if missing == 0 {
			return nil
		}
		if pause == waitPause { // the first time
			if err := has(ctx, versions); err != nil {
				return err
			}
		}
		select {
		case <-time.After(pause):
		case <-over.C:
			return &BehindError{Table: f.Table, Streams: missing}
		case <-ctx.Done():
			return espg.Classify("wait for "+f.Table, ctx.Err())
		}
	}
}
