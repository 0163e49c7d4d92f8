package reconcile

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/account"
	"example.com/billing/services/account/readmodel"
)

// followMax is how long the read model may take to show an account once its opening was published. One that it does not show
// by then is missing.
const followMax = time.Minute

// walk checks account by account.
type walk struct {
	sources
	report    *Report
	decider   *es.Decider[account.Account, account.Command]
	sums      sums
	published int64     // position up to which Kafka has the events
	recorded  time.Time // what was recorded before, the read model has had time for
}

func newWalk(ctx context.Context, tx pgx.Tx, accountID string, report *Report) (*walk, error) {
	w := &walk{report: report, decider: account.Decider(), sums: sums{}}
	err := tx.QueryRow(ctx, `SELECT position, clock_timestamp() - $1::interval FROM outbox_relay`, followMax).Scan(&w.published, &w.recorded)
	if err != nil {
		return nil, fmt.Errorf("read the relay's checkpoint: %w", err)
	}
	w.sources, err = openSources(ctx, tx, accountID)
	return w, err
}

// run checks all that the sources have. show is called after each account.
func (w *walk) run(ctx context.Context, show func() error) error {
	for {
		id, err := w.next(ctx)
		if err != nil || id == "" {
			return err
		}
		if err := w.account(ctx, id); err != nil {
			return err
		}
		if err := show(); err != nil {
			return err
		}
	}
}

// account checks one account.
func (w *walk) account(ctx context.Context, id string) error {
	c := &checked{walk: w, id: id}
	head, err := w.heads.peek(ctx)
	if err != nil {
		return err
	}
	if head != nil && head.accountID == id {
		c.head = *head
		w.heads.take()
	}
	row, err := w.rows.peek(ctx)
	if err != nil {
		return err
	}
	if row != nil && row.ID == id {
		r := *row
		c.row = &r
		w.rows.take()
	}
	for {
		e, err := w.events.peek(ctx)
		if err != nil {
			return err
		}
		if e == nil || e.accountID != id {
			break
		}
		if err := c.event(*e); err != nil {
			return err
		}
		w.events.take()
	}
	c.close()
	return nil
}

// checked is an account under check.
type checked struct {
	*walk
	id   string
	head storedHead       // version 0 = there is none
	row  *readmodel.Shown // nil = there is none

	state   account.Account
	version int64    // folded up to
	first   es.Event // the stream's first
	lost    bool     // events were lost: the state is not known until the next balance
	broken  bool     // events were lost anywhere in the stream
	opened  bool     // the opening is published and old enough for the read model to show it
	seen    struct{ head, row bool }
}

// find notes a finding about the account.
func (c *checked) find(kind, transactionID, expected, actual, format string, args ...any) {
	c.report.add(Finding{Kind: kind, AccountID: c.id, TransactionID: transactionID, Expected: expected, Actual: actual, Detail: fmt.Sprintf(format, args...)})
}

// event checks the stream's next event and folds it.
func (c *checked) event(s storedEvent) error {
	c.report.Events++
	if s.version != c.version+1 {
		c.lost, c.broken = true, true
		c.find(Sequence, "", version(c.version+1), version(s.version), "After version %d of the stream comes version %d.", c.version, s.version)
	}
	c.version = s.version
	e, f, err := c.decode(s)
	if err != nil {
		c.lost, c.broken = true, true
		c.find(Sequence, "", "an event", string(s.payload), "Version %d cannot be read: %v.", s.version, err)
		return nil
	}
	if c.first.ID == "" {
		c.first = e
	}
	existed := c.state.Exists()
	c.numbers(e.Version, f)
	c.state = c.decider.Evolve(c.state, f, es.Occurred{Version: e.Version, At: e.At})
	if !existed && c.state.Exists() {
		c.opened = s.position <= c.published && s.recordedAt.Before(c.recorded)
	}
	if c.head.snapshot != nil && c.head.snapshotVersion == c.version {
		if err := c.snapshot(); err != nil {
			return err
		}
	}
	if c.row != nil && c.row.Version == c.version && c.state.Exists() {
		return c.shown()
	}
	return nil
}

// decode reads an event and what happened, and wants the event to be the one that its row names.
func (c *checked) decode(s storedEvent) (es.Event, es.Fact, error) {
	e, err := es.Decode(s.payload)
	if err != nil {
		return e, nil, err
	}
	if e.Stream != (es.Stream{Type: account.AggregateType, ID: c.id}) || e.Version != s.version {
		return e, nil, fmt.Errorf("it is version %d of %s", e.Version, e.Stream)
	}
	f, err := account.Decode(e)
	return e, f, err
}

// snapshot compares the stored state with the folded one. A state that another version of the code wrote is compared by
// what it means to this one.
func (c *checked) snapshot() error {
	c.seen.head = true
	folded, err := c.decider.Snapshots.Take(c.state)
	if err != nil {
		return err
	}
	stored, err := c.decider.Snapshots.Restore(c.head.snapshot)
	if err != nil {
		c.find(State, "", string(folded), string(c.head.snapshot), "The state stored at version %d cannot be read: %v.", c.version, err)
		return nil
	}
	again, err := c.decider.Snapshots.Take(stored)
	if err != nil {
		return err
	}
	if !bytes.Equal(folded, again) {
		c.find(State, "", string(folded), string(again), "The state stored at version %d is not what the events fold to.", c.version)
	}
	return nil
}

// shown compares the read model's row with the state at the row's version: it may be behind.
func (c *checked) shown() error {
	c.seen.row = true
	encoded, err := c.decider.Snapshots.Take(c.state)
	if err != nil {
		return err
	}
	want := readmodel.Show(projection.Row[account.Account]{ID: c.id, Version: c.version, State: c.state, Encoded: encoded, First: c.first})
	if column, ours, theirs, differs := want.Differs(*c.row); differs {
		c.find(ReadModel, "", ours, theirs, "The row of version %d has another %s.", c.version, column)
	}
	return nil
}

// close compares once the stream has been folded.
func (c *checked) close() {
	switch {
	case c.head.version > c.version:
		c.broken = true
		c.find(Sequence, "", version(c.head.version), version(c.version), "The stream ends at version %d, before its head.", c.version)
	case c.head.version < c.version:
		c.find(State, "", version(c.version), version(c.head.version), "The stream's head is not its newest event.")
	}
	if c.head.snapshot != nil && !c.seen.head && !c.broken {
		c.find(State, "", version(c.version), version(c.head.snapshotVersion), "The state is stored at a version that is none of the stream.")
	}
	switch {
	case c.row == nil:
		if c.state.Exists() && c.opened {
			c.find(ReadModel, "", version(c.version), "no row", "The list lacks the account, which was published more than %v ago.", followMax)
		}
	case !c.state.Exists() && !c.broken:
		c.find(ReadModel, "", "no row", version(c.row.Version), "The list shows an account that was never opened.")
	case !c.seen.row && !c.broken:
		c.find(ReadModel, "", version(c.version), version(c.row.Version), "The list shows a version that the account never had.")
	}
	if c.state.Exists() {
		c.report.Accounts++
		c.sums.add(c.state)
	}
}

func version(v int64) string { return fmt.Sprintf("version %d", v) }
