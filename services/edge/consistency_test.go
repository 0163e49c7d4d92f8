package edge_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/uuid"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/projection"
	"example.com/billing/pkg/rpc"
	"example.com/billing/services/edge"
)

func TestConsistencyTokenThereAndBack(t *testing.T) {
	a, b := es.Stream{Type: "Account", ID: uuid.NewString()}, es.Stream{Type: "Transaction", ID: uuid.NewString()}
	token := edge.ConsistencyToken(a, 3) + "," + edge.ConsistencyToken(b, 9223372036854775807) + "," + edge.ConsistencyToken(a, 2)
	var v rpc.Fields
	got := edge.ReadConsistencyToken(&v, token)
	if want := map[es.Stream]int64{a: 3, b: 9223372036854775807}; v.Err() != nil || !maps.Equal(got, want) {
		t.Errorf("%s was read as %v (%v)", token, got, v.Err())
	}
	if got := edge.ReadConsistencyToken(&v, ""); v.Err() != nil || len(got) != 0 {
		t.Errorf("no token was read as %v (%v)", got, v.Err())
	}
}

func TestConsistencyTokenIsReadStrictly(t *testing.T) {
	id := "7f3c0a51-0000-4000-8000-00000000000a"
	long := strings.Repeat("Account."+id+".1,", 100)
	for _, bad := range []string{
		",", "Account", "Account." + id, "Account." + id + ".0", "Account." + id + ".-1", "Account." + id + ".+1", "Account." + id + ".01",
		"Account." + id + ".1.2", "Account." + id + ".9223372036854775808", "Account." + id + ".x", "Account.x.1", "." + id + ".1",
		"account." + id + ".1", "Acc ount." + id + ".1", "Account." + strings.ToUpper(id) + ".1", "Account." + id + ".1,", "Account." + id + ".1, Account." + id + ".2",
		" Account." + id + ".1", "Account." + id + ".1\x00", long,
	} {
		var v rpc.Fields
		got := edge.ReadConsistencyToken(&v, bad)
		e := rpc.ErrorOf(v.Err())
		if got != nil || e == nil || e.Reason != "INVALID_ARGUMENT" || len(e.Violations) != 1 || e.Violations[0].Field != "consistencyToken" {
			t.Errorf("%.80q was read as %v (%v)", bad, got, e)
		}
	}
}

func TestAwaitShown(t *testing.T) {
	errAway := errors.New("the database is away")
	versions := map[es.Stream]int64{{Type: "Account", ID: "a"}: 1}
	for name, tc := range map[string]struct {
		err    error
		reason string // empty = none
	}{
		"shown":  {nil, ""},
		"late":   {fmt.Errorf("wait: %w", &projection.BehindError{Table: "account_view", Streams: 1}), "DEADLINE_EXCEEDED"},
		"lost":   {fmt.Errorf("wait: %w", &es.GoneError{Seen: 3, Head: 2}), "HISTORY_LOST"},
		"broken": {errAway, "INTERNAL"},
	} {
		t.Run(name, func(t *testing.T) {
			err := edge.AwaitShown(t.Context(), nil, func(context.Context, map[es.Stream]int64, projection.StillHas) error { return tc.err }, nil, versions)
			if !errors.Is(err, tc.err) {
				t.Errorf("the cause is lost: %v", err)
			}
			if e := rpc.ErrorOf(err); (e == nil) != (tc.reason == "") || e != nil && e.Reason != tc.reason {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := edge.AwaitShown(t.Context(), nil, nil, nil, nil); err != nil {
		t.Errorf("nothing to wait for: %v", err)
	}
}

// A list that waits for a token does not hold up the stop.
func TestAwaitShownEndsAtTheStop(t *testing.T) {
	stopping := make(chan struct{})
	begun := func(ctx context.Context, _ map[es.Stream]int64, _ projection.StillHas) error {
		close(stopping)
		<-ctx.Done()
		return ctx.Err()
	}
	err := edge.AwaitShown(t.Context(), stopping, begun, nil, map[es.Stream]int64{{Type: "Account", ID: "1"}: 1})
	var failed *rpc.Error
	if !errors.As(err, &failed) || failed.Reason != rpc.ReasonUnavailable {
		t.Errorf("got %v", err)
	}
}
