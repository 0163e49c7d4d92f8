package cqrs_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/es"
)

func event(source, eventType, id string, version int64) es.Event {
	return es.Event{
		ID: fmt.Sprint(id, "/", version), Type: eventType, Stream: es.Stream{Type: source, ID: id}, Version: version, Data: []byte(`{}`),
	}
}

func TestWants(t *testing.T) {
	all, some := cqrs.Subscription{Source: "Account"}, cqrs.Subscription{Source: "Account", Types: []string{"Opened", "Closed"}}
	for _, tc := range []struct {
		s      cqrs.Subscription
		source string
		event  string
		want   bool
	}{
		{all, "Account", "Opened", true}, {all, "Account", "Anything", true}, {all, "Transaction", "Opened", false},
		{some, "Account", "Opened", true}, {some, "Account", "Closed", true}, {some, "Account", "Moved", false}, {some, "Transaction", "Opened", false},
	} {
		if got := tc.s.Wants(event(tc.source, tc.event, "a", 1)); got != tc.want {
			t.Errorf("%v wants %s %s: %v, want %v", tc.s.Types, tc.source, tc.event, got, tc.want)
		}
	}
}

// Sagas come before projections, whatever was registered first; each gets what it wants, in order.
func TestPublishHandsEventsToSagasFirst(t *testing.T) {
	var got []string
	note := func(name string) cqrs.EventHandler {
		return func(_ context.Context, events []es.Event) error {
			for _, e := range events {
				got = append(got, name+" "+e.ID)
			}
			return nil
		}
	}
	var b cqrs.EventBus
	b.OnProjection("balances", "Account", note("balances"))
	b.OnSaga("transfers", "Transaction", []string{"TransferRequested"}, note("transfers"))
	b.OnProjection("history", "Transaction", note("history"))
	b.OnSaga("audits", "Account", nil, note("audits"))
	if err := b.Publish(t.Context(), event("Account", "Opened", "a", 1), event("Transaction", "TransferRequested", "t", 1),
		event("Transaction", "TransferCompleted", "t", 2), event("Account", "Closed", "a", 2), event("Nobody", "Cares", "n", 1)); err != nil {
		t.Fatal(err)
	}
	want := []string{"transfers t/1", "audits a/1", "audits a/2", "balances a/1", "balances a/2", "history t/1", "history t/2"}
	if !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

func TestPublishStopsAtTheFirstError(t *testing.T) {
	errNo := errors.New("no")
	projected := false
	var b cqrs.EventBus
	b.OnProjection("balances", "Account", func(context.Context, []es.Event) error { projected = true; return nil })
	b.OnSaga("transfers", "Account", nil, func(context.Context, []es.Event) error { return errNo })
	err := b.Publish(t.Context(), event("Account", "Opened", "a", 1))
	if !errors.Is(err, errNo) || !strings.Contains(err.Error(), "saga transfers") || projected {
		t.Errorf("%v, projected %v", err, projected)
	}
}

func TestAHandlerIsNotCalledForNothing(t *testing.T) {
	var b cqrs.EventBus
	b.OnSaga("transfers", "Account", nil, func(context.Context, []es.Event) error { return errors.New("called") })
	if err := errors.Join(b.Publish(t.Context()), b.Publish(t.Context(), event("Other", "Opened", "a", 1))); err != nil {
		t.Error(err)
	}
}

func TestAnEventHandlersNameIsItsOwn(t *testing.T) {
	var b cqrs.EventBus
	b.OnSaga("accounts", "Account", nil, nil)
	defer func() {
		if recover() == nil {
			t.Error("two handlers of one name would share a consumer group")
		}
	}()
	b.OnProjection("accounts", "Transaction", nil)
}
