package edge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	errorv1 "example.com/billing/proto/gen/go/billing/error/v1"
	outboxv1 "example.com/billing/proto/gen/go/billing/outbox/v1"
	"example.com/billing/services/edge"
)

// Keys live as long as events: what a key derives to must never change.
func TestDeriveIDIsStable(t *testing.T) {
	for _, tc := range []struct{ kind, tenant, key, want string }{
		{"Transaction", "default", "k-1", "72401fbb-2064-80ee-b6e9-e0aba0014628"},
		{"Account", "default", "k-1", "0b65967b-b99f-80cf-bfa0-1d423de55ac9"},
		{"Transaction", "default", "Grüße, 世界", "a59a858a-add2-8397-b3bd-400a1d80c26d"},
	} {
		for range 2 {
			if got := edge.DeriveID([]byte("a secret of the service"), tc.kind, tc.tenant, tc.key); got != tc.want {
				t.Errorf("%s %s %s: got %s, want %s", tc.kind, tc.tenant, tc.key, got, tc.want)
			}
		}
	}
}

func TestDeriveIDIsDistinct(t *testing.T) {
	ids := map[string]string{}
	add := func(secret, kind, tenant, key string) {
		id, name := edge.DeriveID([]byte(secret), kind, tenant, key), fmt.Sprintf("%q", []string{secret, kind, tenant, key})
		if other, taken := ids[id]; taken {
			t.Errorf("%s and %s share %s", name, other, id)
		}
		ids[id] = name
		u, err := uuid.Parse(id)
		if err != nil || u.Version() != 8 || u.Variant() != uuid.RFC4122 {
			t.Errorf("%s: %s is no UUID of version 8: %v", name, id, err)
		}
		if canonical, ok := rpc.CanonicalUUID(id); !ok || canonical != id {
			t.Errorf("%s: %s is not in its canonical form", name, id)
		}
	}
	for _, secret := range []string{"one", "two", ""} {
		for _, kind := range []string{"Account", "Transaction"} {
			for _, tenant := range []string{"default", "other", "def"} {
				for _, key := range []string{"k-1", "k-2", "K-1", "ault", "k-1 "} {
					add(secret, kind, tenant, key)
				}
			}
		}
	}
	// Parts do not run into one another.
	add("three", "A", "bc", "d")
	add("three", "Ab", "c", "d")
	add("three", "A", "b", "cd")
}

func TestIdempotencyKey(t *testing.T) {
	long := strings.Repeat("ü", edge.KeyMax)
	for name, tc := range map[string]struct {
		header, body string
		required     bool
		key, rule    string // rule: what is wrong; empty = nothing
	}{
		"none, none needed":         {"", "", false, "", ""},
		"none, but needed":          {"", "", true, "", "required"},
		"in the body":               {"", "k-1", true, "k-1", ""},
		"in the header":             {"k-1", "", true, "k-1", ""},
		"in both, the same":         {"k-1", "k-1", true, "k-1", ""},
		"in both, different":        {"k-1", "k-2", true, "k-2", "equal_to_header:Idempotency-Key"},
		"in both, other case":       {"K-1", "k-1", false, "k-1", "equal_to_header:Idempotency-Key"},
		"as long as may be":         {"", long, true, long, ""},
		"longer, in the body":       {"", long + "x", true, long + "x", "max_length:128"},
		"longer, in the header":     {long + "x", "", false, long + "x", "max_length:128"},
		"with the separator of ids": {"", "a\x00b", true, "a\x00b", "text"},
		"not UTF-8":                 {"\xff", "", true, "\xff", "text"},
	} {
		t.Run(name, func(t *testing.T) {
			var v rpc.Fields
			ctx := rpc.WithCaller(t.Context(), rpc.Caller{IdempotencyKey: tc.header})
			if got := edge.IdempotencyKey(ctx, &v, tc.body, tc.required); got != tc.key {
				t.Errorf("got %q", got)
			}
			e := rpc.ErrorOf(v.Err())
			switch {
			case tc.rule == "" && e != nil:
				t.Errorf("got %v", e)
			case tc.rule != "" && (e == nil || len(e.Violations) != 1 || e.Violations[0].Field != "idempotencyKey" || e.Violations[0].Rule != tc.rule):
				t.Errorf("got %v", e)
			}
		})
	}
}

func TestMetadataThereAndBack(t *testing.T) {
	for _, raw := range []string{
		`{}`, `{"a":null}`, `{"a":"<&>","b":1.5,"c":true,"d":[1,"x",{"e":[]}],"f":{"g":{}},"ü":"世界"}`, `{"n":9007199254740993,"tiny":1e-300,"zero":-0}`,
	} {
		s := &structpb.Struct{}
		if err := s.UnmarshalJSON([]byte(raw)); err != nil {
			t.Fatal(err)
		}
		m := edge.Metadata(s)
		if back := edge.Struct(m); !proto.Equal(back, s) {
			t.Errorf("%s became %v", raw, back)
		}
		// As it is stored in an event and read again.
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var stored map[string]any
		if err := json.Unmarshal(b, &stored); err != nil || !reflect.DeepEqual(stored, m) {
			t.Errorf("%s is stored as %s and read as %v, %v", raw, b, stored, err)
		}
	}
	if edge.Metadata(nil) != nil || edge.Struct(nil) != nil {
		t.Error("absent metadata does not stay absent")
	}
	if edge.Struct(map[string]any{}) == nil {
		t.Error("empty metadata became absent")
	}
}

// Every reason of the contract is in the catalogue, and none besides.
func TestCatalog(t *testing.T) {
	c, err := edge.Catalog()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for number, name := range errorv1.Reason_name {
		if number == 0 {
			continue
		}
		n++
		r, ok := c.Lookup(strings.TrimPrefix(name, "REASON_"))
		if !ok || r.HTTP < 400 || r.HTTP > 599 || r.Title == "" {
			t.Errorf("%s is %+v", name, r)
		}
	}
	if n == 0 {
		t.Error("no reasons")
	}
}

func TestOrigin(t *testing.T) {
	got := edge.Origin(rpc.WithCaller(t.Context(), rpc.Caller{CorrelationID: "corr-1", TenantID: "t-1", Actor: "ann"}))
	if got.CorrelationID != "corr-1" || got.TenantID != "t-1" || got.Actor != "ann" {
		t.Errorf("got %+v", got)
	}
	if got := edge.Origin(context.Background()); got.CorrelationID == "" || got.TenantID != rpc.DefaultTenant || got.Actor != rpc.AnonymousActor {
		t.Errorf("outside of a request: %+v", got)
	}
}

func TestOutboxStatsOfAnotherService(t *testing.T) {
	s := &edge.OutboxServer{Service: "account"}
	if _, err := s.GetOutboxStats(t.Context(), &outboxv1.GetOutboxStatsRequest{Service: "saga"}); rpc.ErrorOf(err).Reason != "SERVICE_NOT_FOUND" {
		t.Errorf("got %v", err)
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int64]int32{0: 0, 7: 7, math.MaxInt32 + 1: math.MaxInt32, math.MaxInt64: math.MaxInt32, -1: 0, math.MinInt32 - 1: 0, math.MinInt64: 0} {
		if got := edge.Count(n); got != want {
			t.Errorf("Count(%d) = %d, want %d", n, got, want)
		}
	}
}

// A version that does not fit is an error, never another version.
func TestVersion(t *testing.T) {
	for n, fits := range map[int64]bool{
		0: true, 1: true, math.MaxInt32: true, math.MaxInt32 + 1: false, 1 << 32: false, 1<<32 + 7: false, math.MaxInt64: false, -1: false,
	} {
		got, err := edge.Version(n)
		if (err == nil) != fits || fits && int64(got) != n {
			t.Errorf("Version(%d) = %d, %v", n, got, err)
		}
	}
	e := es.Event{Stream: es.Stream{Type: "Account", ID: "a"}, Version: 1<<32 + 7, Data: []byte(`{}`)}
	if r, err := edge.Recorded(e); err == nil {
		t.Errorf("shown as version %d", r.GetVersion())
	}
}
