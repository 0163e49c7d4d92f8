package cqrs_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/cqrs"
)

type (
	openAccount struct{ owner string }
	closeDoor   struct{ owner string } // the same shape, another type
)

func TestNewGivesAMessageItsInfo(t *testing.T) {
	from := cqrs.Origin{CorrelationID: "c-1", TenantID: "t-1", Actor: "ann"}
	a, b := cqrs.New(openAccount{"ann"}, from), cqrs.New(openAccount{"ann"}, from)
	if a.Type != "openAccount" || a.Body.owner != "ann" || a.Origin != from || uuid.Validate(a.ID) != nil || a.At.IsZero() || a.At.Location().String() != "UTC" {
		t.Errorf("%+v", a)
	}
	if a.ID == b.ID {
		t.Error("two commands have one id")
	}
}

func TestMetadataHasWhatIsKnown(t *testing.T) {
	for _, tc := range []struct {
		from cqrs.Origin
		want map[string]any
	}{
		{cqrs.Origin{CorrelationID: "c"}, map[string]any{}},
		{cqrs.Origin{TenantID: "t"}, map[string]any{"tenantId": "t"}},
		{cqrs.Origin{TenantID: "t", Actor: "a"}, map[string]any{"tenantId": "t", "actor": "a"}},
	} {
		if got := tc.from.Metadata(); !maps.Equal(got, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.from, got, tc.want)
		}
	}
}

func TestABusRoutesByType(t *testing.T) {
	b := cqrs.NewBus()
	cqrs.Handle(b, func(_ context.Context, m cqrs.Message[openAccount]) (string, error) {
		return "opened for " + m.Body.owner + " by " + m.Actor, nil
	})
	cqrs.Handle(b, func(_ context.Context, m cqrs.Message[closeDoor]) (int, error) { return len(m.Body.owner), nil })
	opened, err := cqrs.Execute[openAccount, string](t.Context(), b, cqrs.New(openAccount{"ann"}, cqrs.Origin{Actor: "bob"}))
	if opened != "opened for ann by bob" || err != nil {
		t.Errorf("%q, %v", opened, err)
	}
	closed, err := cqrs.Execute[closeDoor, int](t.Context(), b, cqrs.New(closeDoor{"ann"}, cqrs.Origin{}))
	if closed != 3 || err != nil {
		t.Errorf("%d, %v", closed, err)
	}
}

func TestABusReportsWiringMistakes(t *testing.T) {
	b := cqrs.NewBus()
	m := cqrs.New(openAccount{"ann"}, cqrs.Origin{})
	if _, err := cqrs.Execute[openAccount, string](t.Context(), b, m); err == nil || !strings.Contains(err.Error(), "openAccount has no handler") {
		t.Errorf("no handler: %v", err)
	}
	cqrs.Handle(b, func(context.Context, cqrs.Message[openAccount]) (string, error) { return "ok", nil })
	if _, err := cqrs.Execute[openAccount, int](t.Context(), b, m); err == nil || !strings.Contains(err.Error(), "returns string, not int") {
		t.Errorf("another result: %v", err)
	}
	defer func() {
		if p := recover(); p == nil || !strings.Contains(p.(string), "openAccount has a handler already") {
			t.Errorf("a second handler: %v", p)
		}
	}()
	cqrs.Handle(b, func(context.Context, cqrs.Message[openAccount]) (string, error) { return "other", nil })
}

func TestAHandlersErrorIsTheCallers(t *testing.T) {
	errNo := errors.New("no")
	b := cqrs.NewBus()
	cqrs.Handle(b, func(context.Context, cqrs.Message[openAccount]) (string, error) { return "half", errNo })
	got, err := cqrs.Execute[openAccount, string](t.Context(), b, cqrs.New(openAccount{}, cqrs.Origin{}))
	if !errors.Is(err, errNo) || got != "" {
		t.Errorf("%q, %v", got, err)
	}
}

// The first middleware is the outermost; each sees what every handler gets and returns.
func TestMiddlewareOrder(t *testing.T) {
	var seen []string
	note := func(name string) cqrs.Middleware {
		return func(next cqrs.Handler) cqrs.Handler {
			return func(ctx context.Context, info cqrs.Info, body any) (any, error) {
				seen = append(seen, name+" before "+info.Type)
				r, err := next(ctx, info, body)
				seen = append(seen, name+" after")
				return r, err
			}
		}
	}
	errInvalid := errors.New("invalid")
	validate := func(next cqrs.Handler) cqrs.Handler {
		return func(ctx context.Context, info cqrs.Info, body any) (any, error) {
			if body.(openAccount).owner == "" {
				return nil, errInvalid
			}
			return next(ctx, info, body)
		}
	}
	b := cqrs.NewBus(note("log"), note("metrics"), validate)
	cqrs.Handle(b, func(_ context.Context, m cqrs.Message[openAccount]) (string, error) {
		seen = append(seen, "handler")
		return m.Body.owner, nil
	})
	if _, err := cqrs.Execute[openAccount, string](t.Context(), b, cqrs.New(openAccount{"ann"}, cqrs.Origin{})); err != nil {
		t.Fatal(err)
	}
	want := []string{"log before openAccount", "metrics before openAccount", "handler", "metrics after", "log after"}
	if !slices.Equal(seen, want) {
		t.Errorf("%q, want %q", seen, want)
	}
	seen = nil
	if _, err := cqrs.Execute[openAccount, string](t.Context(), b, cqrs.New(openAccount{}, cqrs.Origin{})); !errors.Is(err, errInvalid) || slices.Contains(seen, "handler") {
		t.Errorf("a middleware that stops: %v after %q", err, seen)
	}
}
