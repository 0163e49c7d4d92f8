package reconcile

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/account"
	"example.com/billing/services/account/readmodel"
)

// followMax is how long the read model may take to show an account once its opening was published. One that it does not show
// by then is missing.
const followMax = time.Minute

// walk checks account by account, and sums the balances that they had at a position.
type walk struct {
	accounts
	report    *Report
	decider   *es.Decider[account.Account, account.Command]
	sums      sums
	position  int64     // of the sums
	published int64     // position up to which Kafka has the events
	recorded  time.Time // what was recorded before, the read model has had time for
}

func newWalk(ctx context.Context, pool *pgxpool.Pool, accountID string, report *Report) (*walk, error) {
	w := &walk{accounts: accounts{pool: pool, one: accountID}, report: report, decider: account.Decider(), sums: sums{}}
	err := pool.QueryRow(ctx, `SELECT position, clock_timestamp() - $1::interval FROM outbox_relay`, followMax).Scan(&w.published, &w.recorded)
	if err != nil {
		return nil, fmt.Errorf("read the relay's checkpoint: %w", err)
	}
	return w, nil
}

// run checks all accounts. show is called after each.
func (w *walk) run(ctx context.Context, show func() error) error {
	for {
		chunk, err := w.next(ctx)
		if err != nil || len(chunk) == 0 {
			return err
		}
		from := &events{pool: w.pool, id: chunk[0].id, last: chunk[len(chunk)-1].id, version: -1}
		for _, l := range chunk {
			if err := w.account(ctx, l, from); err != nil {
				return err
			}
			if err := show(); err != nil {
				return err
			}
		}
	}
}

// account checks one account by its events up to the version that was the newest when it was looked at.
func (w *walk) account(ctx context.Context, l look, from *events) error {
	c := &checked{walk: w, look: l}
	for {
		e, err := from.peek(ctx)
		if err != nil {
			return err
		}
		if e == nil || e.accountID > l.id {
			break
		}
		if e.accountID < l.id { // it did not exist when this chunk was looked at
			from.skip(e.accountID)
			continue
		}
		if e.version > l.end {
			from.skip(l.id)
			break
		}
		if err := c.event(*e); err != nil {
			return err
		}
		from.take()
	}
	c.close()
	return nil
}

// checked is an account under check.
type checked struct {
	*walk
	look

	state   account.Account
	version int64    // folded up to
	first   es.Event // the stream's first
	lost    bool     // events were lost: the state is not known until the next balance
	broken  bool     // events were lost anywhere in the stream
	opened  bool     // the opening is published and old enough for the read model to show it
	summed  bool     // the sums have it
	seen    struct{ head, row bool }
}

// sum adds the balance of now to the sums, once.
func (c *checked) sum() {
	if !c.summed && c.state.Exists() {
		c.sums.add(c.state)
	}
	c.summed = true
}

// find notes a finding about the account.
func (c *checked) find(kind, transactionID, expected, actual, format string, args ...any) {
	c.report.add(Finding{Kind: kind, AccountID: c.id, TransactionID: transactionID, Expected: expected, Actual: actual, Detail: fmt.Sprintf(format, args...)})
}

// event checks the stream's next event and folds it.
func (c *checked) event(s storedEvent) error {
	c.report.Events++
	if s.position > c.position {
		c.sum() // of before
	}
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
	}
	c.sum()
}

func version(v int64) string { return fmt.Sprintf("version %d", v) }
