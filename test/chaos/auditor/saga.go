package auditor

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/jackc/pgx/v5"
)

// sagaEnd is how a saga ended, by its event and by its stored state.
type sagaEnd struct {
	kind, status string // of the event
	stored       sagaRow
}

type sagaRow struct{ kind, status, state string }

// sagaEvent takes the one event of a saga.
func (x *audit) sagaEvent(e event, d data) {
	x.checked("sagas", 1)
	status, ok := endings[strings.TrimPrefix(e.Type, "Saga")]
	if !ok {
		x.wrong("outcome", e.what(), "is of a type that the auditor does not know")
	}
	if x.sagas[e.AggregateID] != nil {
		x.wrong("outcome", e.what(), "the saga has ended before")
	}
	x.sagas[e.AggregateID] = &sagaEnd{kind: d.SagaType, status: status}
}

// sagaTables reads saga_state: a row for each saga that has ended, in the same way, and none in saga_open; and in saga_subject what each
// can be found by.
func (x *audit) sagaTables(ctx context.Context, tx pgx.Tx) error {
	rows, err := collect(ctx, tx, `SELECT saga_id::text, saga_type, status, convert_from(state, 'UTF8') FROM saga_state`,
		func(r pgx.CollectableRow) (id string, s sagaRow, err error) {
			err = r.Scan(&id, &s.kind, &s.status, &s.state)
			return id, s, err
		})
	if err != nil {
		return err
	}
	for id, row := range rows {
		x.checked("rows of saga_state", 1)
		s := x.sagas[id]
		if s == nil {
			x.wrong("outcome", "saga "+id, "is %s, and has no event of its end", row.status)
			s = &sagaEnd{kind: row.kind, status: row.status}
			x.sagas[id] = s
		}
		s.stored = row
		var state struct{ SagaID, SagaType, Status string }
		if err := json.Unmarshal([]byte(row.state), &state); err != nil || state.SagaID != id || state.SagaType != row.kind || state.Status != row.status {
			x.wrong("read model", "saga_state "+id, "the row says %s %s, its state %+v (%v)", row.kind, row.status, state, err)
		}
	}
	for id, s := range x.sagas {
		if s.stored.kind != s.kind || s.stored.status != s.status {
			x.wrong("read model", "saga_state "+id, "is %s %q, its event says %s %q", s.stored.kind, s.stored.status, s.kind, s.status)
		}
	}
	open, err := ids(ctx, tx, `SELECT saga_id::text FROM saga_open`)
	if err != nil {
		return err
	}
	for id := range open {
		x.wrong("read model", "saga_open "+id, "is there, and every saga has ended")
	}
	found, err := collect(ctx, tx, `SELECT coalesce(a.saga_id, b.saga_id)::text, concat_ws(' ', coalesce(a.subject, b.subject), a.saga_id IS NULL, b.saga_id IS NULL)
		FROM (SELECT unnest(subjects) AS subject, created_at, saga_id FROM saga_state) a
		FULL JOIN (SELECT subject, started_at AS created_at, id AS saga_id FROM saga_subject) b USING (subject, created_at, saga_id)
		WHERE a.saga_id IS NULL OR b.saga_id IS NULL`,
		func(r pgx.CollectableRow) (id, what string, err error) {
			err = r.Scan(&id, &what)
			return id, what, err
		})
	if err != nil {
		return err
	}
	for id, what := range found {
		x.wrong("read model", "saga_subject "+id, "is not what saga_state says (subject, not in saga_state, not in saga_subject: %s)", what)
	}
	return nil
}

// saga: the transaction's saga ended as the transaction did.
func (x *audit) saga(t *transaction) {
	s := x.sagas[t.id]
	if s == nil {
		x.wrong("outcome", "transaction "+t.id, "is %s, and has no saga", t.status)
		return
	}
	if s.kind != t.kind || s.status != t.status {
		x.wrong("outcome", "transaction "+t.id, "is a %s that %s, its saga a %s that %s", t.kind, t.status, s.kind, s.status)
	}
}
