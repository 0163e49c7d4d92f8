package edge

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
	"example.com/billing/pkg/outbox"
	"example.com/billing/pkg/run"
)

// History is the name whose health says that the service's database has all events that were ever committed to it, as far as any
// process knows. It does not stop the service: what the database has is sound, and is served.
const History = "history"

// historyEvery is how often a service looks whether its database has another history.
const historyEvery = time.Second

// history follows the incarnations of a service's database. Safe for concurrent use.
type history struct {
	app   *run.App
	store *espg.Store
	copy  bool // of another store, which has what the database loses

	mu   sync.Mutex
	all  []espg.Incarnation
	void outbox.Place // the highest that a message told of
}

// watchHistory follows the incarnations until the app stops, and publishes them as metrics.
func watchHistory(app *run.App, store *espg.Store, isCopy bool) (*history, error) {
	h := &history{app: app, store: store, copy: isCopy}
	store.WatchIncarnations(func(i espg.Incarnation) {
		app.Log.Warn("the database has another history", "incarnation", i.Number, "from_position", i.FromPosition)
	})
	for _, g := range []struct {
		name, help string
		value      func(all []espg.Incarnation) int64
	}{
		{"es_incarnation", "Which history of its database the service knows; another one begins with a fail-over or a restore.", func(all []espg.Incarnation) int64 {
			return all[len(all)-1].Number
		}},
		{"es_lost_events", "Events that the database had in an older history and lost, and that no operator has recovered from.", lostEvents},
	} {
		err := app.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help + " -1 = not known."}, func() float64 {
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(h.all) == 0 {
				return -1
			}
			return float64(g.value(h.all))
		}))
		if err != nil {
			return nil, fmt.Errorf("register %s: %w", g.name, err)
		}
	}
	app.Go("history of the database", h.run)
	return h, nil
}

func lostEvents(all []espg.Incarnation) (n int64) {
	for _, i := range all {
		if i.RecoveredAt.IsZero() {
			n += i.Lost()
		}
	}
	return n
}

func (h *history) run(ctx context.Context) error {
	if err := h.look(ctx); err != nil && ctx.Err() == nil {
		h.app.Log.Warn("history of the database", "error", err)
	}
	return run.Every(ctx, historyEvery, h.app.Log, "history of the database", h.look)
}

// look asks for the incarnations, and tells the database of what messages told of an older one.
func (h *history) look(ctx context.Context) error {
	if err := h.store.CheckIncarnation(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	void := h.void
	h.void = outbox.Place{}
	h.mu.Unlock()
	if void.Position > 0 {
		if err := h.store.NoteKnown(ctx, void.Incarnation, void.Position); err != nil {
			return err
		}
	}
	all, err := h.store.Incarnations(ctx)
	if err != nil {
		return err
	}
	if h.copy {
		for n := range all {
			all[n].KnownTo = all[n].FromPosition
		}
	}
	h.mu.Lock()
	was := lostEvents(h.all)
	h.all = all
	h.mu.Unlock()
	if now := lostEvents(all); now > was {
		h.app.Log.Error("the database lost events that it had: see docs/operations.md, and run billing-events recover", "lost", describeLost(all))
	}
	return nil
}

// isVoid reports whether a message from the service's own topic tells of an event that the database does not have any more.
func (h *history) isVoid(m kafka.Message) bool {
	p, ok := outbox.PlaceOf(m)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !ok || !p.Void(h.all) {
		return false
	}
	if p.Position > h.void.Position {
		h.void = p
	}
	return true
}

// whole is the check of History.
func (h *history) whole(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if lostEvents(h.all) > 0 {
		return fmt.Errorf("the database lost events: %s", describeLost(h.all))
	}
	return nil
}

// describeLost names the positions that are lost.
func describeLost(all []espg.Incarnation) string {
	var parts []string
	for _, i := range all {
		if i.Lost() > 0 && i.RecoveredAt.IsZero() {
			parts = append(parts, fmt.Sprintf("positions %d to %d before incarnation %d", i.FromPosition+1, i.KnownTo, i.Number))
		}
	}
	return strings.Join(parts, ", ")
}
