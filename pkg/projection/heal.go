package projection

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
)

// HealerPace is how often a Healer looks, and at how much at a time. Zero means the default.
type HealerPace struct {
	PassEvery time.Duration // from the start of one pass over all rows to the start of the next one; 1 min
	Grace     time.Duration // how long a row may be behind its stream before it is wrong; 30 s
	PageMax   int           // streams compared by one query; 1,000
	RepairMax int           // streams repaired at a time; 100
}

const (
	suspectsMax = 10_000  // rows that are behind and have Grace to catch up; the others have to wait for the next pass
	settledMax  = 100_000 // streams that are known to be right although they look wrong
	loadMax     = 1_000   // events of a stream that are applied at a time
	// After each page the healer rests for so many times as long as the page took: it uses 5 % of a connection.
	restFactor = 20
	restMin    = 20 * time.Millisecond
)

// Healer compares the rows of a Folded model with the heads of the streams in the same database, all of them again and
// again, and folds the rows that are wrong anew from the owner's store. It heals what no message will ever repair: messages
// that the topic lost, that another program took from the consumer group, or that told of a history which the database has
// lost. Each repair is logged as an error and counted: its cause is still there. Run one in each process; several do no
// harm.
type Healer[S, C any] struct {
	HealerPace
	pool   *pgxpool.Pool
	model  *Folded[S, C]
	handle func(ctx context.Context, events []es.Event) error
	load   func(ctx context.Context, s es.Stream, after int64, limit int) ([]es.Event, error)
	log    *slog.Logger

	healed   atomic.Int64
	hurried  chan struct{}      // has a pass begin at once
	hurry    atomic.Int64       // until when passes follow each other quickly, in Unix nanoseconds
	suspects map[string]suspect // by stream id
	settled  map[string]int64   // by stream id: the head's version at which the row was found to be right
}

// suspect is a row that is behind its stream.
type suspect struct {
	head  int64 // the stream's version
	since time.Time
}

// NewHealer makes a healer of a projection's model. load reads a stream from its owner's store.
func NewHealer[S, C any](
	p *Projection, m *Folded[S, C], load func(context.Context, es.Stream, int64, int) ([]es.Event, error), log *slog.Logger, pace HealerPace,
) *Healer[S, C] {
	if pace.PassEvery <= 0 {
		pace.PassEvery = time.Minute
	}
	if pace.Grace <= 0 {
		pace.Grace = 30 * time.Second
	}
	if pace.PageMax <= 0 {
		pace.PageMax = 1000
	}
	if pace.RepairMax <= 0 {
		pace.RepairMax = 100
	}
	return &Healer[S, C]{
		HealerPace: pace, pool: p.pool, model: m, handle: p.Handle, load: load, log: log,
		suspects: map[string]suspect{}, settled: map[string]int64{}, hurried: make(chan struct{}, 1),
	}
}

// While a healer hurries: a pass begins every 5 s, and a row that is behind has 2 s to catch up.
const (
	hurryFor   = time.Minute
	hurryEvery = 5 * time.Second
	hurryGrace = 2 * time.Second
)

// Hurry has passes follow each other quickly for a minute: the store's history has changed, and rows may show what is lost. Safe for
// concurrent use.
func (h *Healer[S, C]) Hurry() {
	h.hurry.Store(time.Now().Add(hurryFor).UnixNano())
	select {
	case h.hurried <- struct{}{}:
	default:
	}
}

// pace is how often passes begin, and how long a row may be behind.
func (h *Healer[S, C]) pace() (every, grace time.Duration) {
	if time.Now().UnixNano() < h.hurry.Load() {
		return min(h.PassEvery, hurryEvery), min(h.Grace, hurryGrace)
	}
	return h.PassEvery, h.Grace
}

// Healed returns how many rows this process has made anew. Safe for concurrent use.
func (h *Healer[S, C]) Healed() int64 { return h.healed.Load() }

// Run heals until ctx ends. What cannot be read or repaired is logged and left for the next time.
func (h *Healer[S, C]) Run(ctx context.Context) error {
	var (
		after string    // the pass has come so far; empty = the pass is over
		next  time.Time // when the next pass begins
		rest  time.Duration
	)
	for timer := time.NewTimer(restMin); ; timer.Reset(rest) {
		select {
		case <-timer.C:
		case <-h.hurried:
			next = time.Time{}
		case <-ctx.Done():
			return nil
		}
		every, grace := h.pace()
		began := time.Now()
		if after == "" && !began.Before(next) {
			after, next = uuid.Nil.String(), began.Add(every)
		}
		var err error
		if after != "" {
			after, err = h.page(ctx, after)
		}
		if err == nil {
			err = h.due(ctx)
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("projection: heal", "table", h.model.Table, "error", err)
			rest = min(every, 10*time.Second)
			continue
		}
		rest = max(restMin, restFactor*time.Since(began))
		if after == "" {
			rest = max(rest, min(time.Second, every, grace))
		}
	}
}

// found is a stream as its head and its row show it; a version of 0 means that there is none.
type found struct {
	id        string
	head, row int64
	differs   bool // both have the same version and another state
}

// page compares the streams behind an id and returns the last one of them, empty at the end of all.
func (h *Healer[S, C]) page(ctx context.Context, after string) (last string, err error) {
	page, last, err := h.model.page(ctx, h.pool, after, h.PageMax)
	if err != nil {
		return after, err
	}
	var wrong []string
	for _, f := range page {
		if v, ok := h.settled[f.id]; ok && v == f.head && f.row <= f.head {
			continue
		}
		switch {
		case f.row > f.head, f.differs:
			wrong = append(wrong, f.id)
		case f.row < f.head:
			if _, known := h.suspects[f.id]; !known && len(h.suspects) < suspectsMax {
				h.suspects[f.id] = suspect{f.head, time.Now()}
			}
		}
	}
	h.repair(ctx, wrong, h.replace)
	return last, nil
}

// due repairs the rows that have been behind for too long.
func (h *Healer[S, C]) due(ctx context.Context) error {
	var ids []string
	_, grace := h.pace()
	for id, s := range h.suspects {
		if time.Since(s.since) >= grace {
			if ids = append(ids, id); len(ids) == h.RepairMax {
				break
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	versions, err := h.model.versions(ctx, h.pool, ids)
	if err != nil {
		return err
	}
	var behind []string
	for _, id := range ids {
		if versions[id] < h.suspects[id].head {
			behind = append(behind, id)
		}
	}
	h.repair(ctx, behind, h.follow)
	for _, id := range ids { // one that could not be repaired is a suspect again in the next pass
		delete(h.suspects, id)
	}
	return nil
}

// repair repairs streams one by one, and tells how many rows have changed by it.
func (h *Healer[S, C]) repair(ctx context.Context, ids []string, one func(context.Context, es.Stream) (bool, error)) {
	var (
		healed, failed int
		example        string
		failure        error
	)
	for _, id := range ids {
		changed, err := one(ctx, es.Stream{Type: h.model.Decider.Type, ID: id})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failed, failure = failed+1, err
		case changed:
			healed, example = healed+1, id
		}
	}
	h.healed.Add(int64(healed))
	if healed > 0 {
		h.log.Error("projection: rows were wrong and have been made anew from the store", "table", h.model.Table, "rows", healed, "example", example)
	}
	if failed > 0 {
		h.log.Error("projection: rows are wrong and cannot be repaired", "table", h.model.Table, "rows", failed, "error", failure)
	}
}

// follow applies what a row lacks of its stream.
func (h *Healer[S, C]) follow(ctx context.Context, s es.Stream) (changed bool, err error) {
	before, err := h.model.versions(ctx, h.pool, []string{s.ID})
	if err != nil {
		return false, err
	}
	at := before[s.ID]
	for {
		events, err := h.load(ctx, s, at, loadMax)
		if err != nil {
			return false, fmt.Errorf("load %s: %w", s, err)
		}
		if len(events) == 0 {
			break
		}
		if err := h.handle(ctx, events); err != nil {
			return false, err
		}
		at = events[len(events)-1].Version
		if len(events) < loadMax {
			break
		}
	}
	now, err := h.model.versions(ctx, h.pool, []string{s.ID})
	if err != nil {
		return false, err
	}
	if now[s.ID] < at {
		h.settle(s.ID, at) // the model has no row for such a stream
	}
	return now[s.ID] != before[s.ID], nil
}

// replace folds a row anew that shows what the stream does not have. A stream that is gone has no row.
func (h *Healer[S, C]) replace(ctx context.Context, s es.Stream) (changed bool, err error) {
	events, err := h.load(ctx, s, 0, 0)
	if err != nil {
		return false, fmt.Errorf("load %s: %w", s, err)
	}
	root := h.model.Decider.New()
	if err := h.model.Decider.Replay(&root, events...); err != nil {
		return false, err
	}
	state, err := h.model.Decider.Snapshots.Take(root.State)
	if err != nil {
		return false, fmt.Errorf("encode %s: %w", s, err)
	}
	err = pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		var (
			version int64
			stored  []byte
		)
		err := tx.QueryRow(ctx, `SELECT version, state FROM `+h.model.Table+` WHERE id = $1 FOR UPDATE`, s.ID).Scan(&version, &stored)
		switch {
		case err == pgx.ErrNoRows: //nolint:errorlint // QueryRow's own
			return nil
		case err != nil:
			return err
		case version == root.Version && bytes.Equal(stored, state):
			h.settle(s.ID, version) // the row is right, and the head's snapshot another one
			return nil
		}
		// The row may have gone on since the events were loaded; what the stream has now is committed and can be read.
		var head int64
		err = tx.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM es_head WHERE stream_type = $1 AND stream_id = $2`, s.Type, s.ID).Scan(&head)
		if err != nil || version > root.Version && version <= head {
			return err
		}
		changed = true
		if _, err := tx.Exec(ctx, `DELETE FROM `+h.model.Table+` WHERE id = $1`, s.ID); err != nil || len(events) == 0 {
			return err
		}
		return h.model.fold(ctx, tx, h.model.Table, nil, []es.Stream{s}, map[es.Stream][]es.Event{s: events})
	})
	if err != nil {
		return false, fmt.Errorf("replace the row of %s: %w", s, err)
	}
	return changed, nil
}

// settle notes that a stream's row is right although it does not look so.
func (h *Healer[S, C]) settle(id string, version int64) {
	if len(h.settled) >= settledMax {
		clear(h.settled)
	}
	h.settled[id] = version
}
