package es_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"example.com/billing/pkg/es"
)

// noon is when everything in these tests happens, with more digits than an event keeps.
var noon = time.Date(2025, 12, 9, 12, 0, 0, 123_987_654, time.UTC)

func sample() es.Event {
	return es.Event{
		ID: "0b8e2f6e-7a52-4a53-9d5e-6c1f0a3b2d11", Type: "BalanceChanged", Stream: es.Stream{Type: "Account", ID: "acc-1"}, Version: 7,
		At: noon, CorrelationID: "corr-1", CausationID: "cmd-1", Metadata: map[string]any{"tenantId": "t-1", "actor": "<ann & bob>"},
		Data: json.RawMessage(`{"newBalance":"10.00","reason":"a<b"}`),
	}
}

func TestEncodeWritesTheTenKeysInOrder(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*es.Event)
		want   string
	}{
		{"all ten keys", func(*es.Event) {}, `{"eventId":"0b8e2f6e-7a52-4a53-9d5e-6c1f0a3b2d11","eventType":"BalanceChanged",` +
			`"aggregateId":"acc-1","aggregateType":"Account","aggregateVersion":7,"timestamp":"2025-12-09T12:00:00.123Z","correlationId":"corr-1",` +
			`"causationId":"cmd-1","metadata":{"actor":"<ann & bob>","tenantId":"t-1"},"data":{"newBalance":"10.00","reason":"a<b"}}`},
		{"unset causationId and metadata are absent", func(e *es.Event) { e.CausationID, e.Metadata = "", map[string]any{} },
			`{"eventId":"0b8e2f6e-7a52-4a53-9d5e-6c1f0a3b2d11","eventType":"BalanceChanged","aggregateId":"acc-1","aggregateType":"Account",` +
				`"aggregateVersion":7,"timestamp":"2025-12-09T12:00:00.123Z","correlationId":"corr-1","data":{"newBalance":"10.00","reason":"a<b"}}`},
		{"any time zone is written in UTC, whole seconds with milliseconds", func(e *es.Event) {
			e.CausationID, e.Metadata, e.CorrelationID, e.Data = "", nil, "", json.RawMessage(`{}`)
			e.At = time.Date(2026, 1, 1, 0, 30, 0, 0, time.FixedZone("", 3600))
		}, `{"eventId":"0b8e2f6e-7a52-4a53-9d5e-6c1f0a3b2d11","eventType":"BalanceChanged","aggregateId":"acc-1","aggregateType":"Account",` +
			`"aggregateVersion":7,"timestamp":"2025-12-31T23:30:00.000Z","correlationId":"","data":{}}`},
		{"text is escaped", func(e *es.Event) {
			e.Stream.ID, e.CorrelationID, e.CausationID, e.Metadata, e.Data = `a"b`, "tab\there", `back\slash`, map[string]any{"é": nil}, json.RawMessage(`{}`)
		}, `{"eventId":"0b8e2f6e-7a52-4a53-9d5e-6c1f0a3b2d11","eventType":"BalanceChanged","aggregateId":"a\"b","aggregateType":"Account",` +
			`"aggregateVersion":7,"timestamp":"2025-12-09T12:00:00.123Z","correlationId":"tab\there","causationId":"back\\slash","metadata":{"é":null},"data":{}}`},
		{"a schema version above 1 stands first in the metadata", func(e *es.Event) { e.CausationID, e.SchemaVersion, e.Data = "", 2, json.RawMessage(`{}`) },
			`{"eventId":"0b8e2f6e-7a52-4a53-9d5e-6c1f0a3b2d11","eventType":"BalanceChanged","aggregateId":"acc-1","aggregateType":"Account",` +
				`"aggregateVersion":7,"timestamp":"2025-12-09T12:00:00.123Z","correlationId":"corr-1",` +
				`"metadata":{"schemaVersion":2,"actor":"<ann & bob>","tenantId":"t-1"},"data":{}}`},
		{"a schema version may be all the metadata there is", func(e *es.Event) {
			e.CausationID, e.SchemaVersion, e.Metadata, e.Data = "", 12, nil, json.RawMessage(`{}`)
		},
			`{"eventId":"0b8e2f6e-7a52-4a53-9d5e-6c1f0a3b2d11","eventType":"BalanceChanged","aggregateId":"acc-1","aggregateType":"Account",` +
				`"aggregateVersion":7,"timestamp":"2025-12-09T12:00:00.123Z","correlationId":"corr-1","metadata":{"schemaVersion":12},"data":{}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := sample()
			tc.change(&e)
			got, err := e.Encode()
			if err != nil || string(got) != tc.want {
				t.Fatalf("%v\n got %s\nwant %s", err, got, tc.want)
			}
		})
	}
}

func TestEncodeRefusesWhatIsNoJSON(t *testing.T) {
	for name, change := range map[string]func(*es.Event){
		"no data":                   func(e *es.Event) { e.Data = nil },
		"broken data":               func(e *es.Event) { e.Data = json.RawMessage(`{"a":`) },
		"two values":                func(e *es.Event) { e.Data = json.RawMessage(`{}{}`) },
		"metadata without encoding": func(e *es.Event) { e.Metadata = map[string]any{"f": func() {}} },
		"a caller's schemaVersion":  func(e *es.Event) { e.Metadata = map[string]any{"schemaVersion": 2} },
	} {
		e := sample()
		change(&e)
		if b, err := e.Encode(); err == nil {
			t.Errorf("%s: encoded to %s", name, b)
		}
	}
}

// What Encode wrote, Decode reads, and Encode writes the same bytes again.
func TestEventSurvivesItsJSON(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", `"`, `\`, "<&>", "\u2028", "日本🏦", "\x00\x1f\x7f"}))
	full := rapid.StringN(1, 20, -1)
	rapid.Check(t, func(t *rapid.T) {
		e := es.Event{
			ID: full.Draw(t, "id"), Type: full.Draw(t, "type"), Stream: es.Stream{Type: full.Draw(t, "aggregate type"), ID: full.Draw(t, "aggregate id")},
			Version: rapid.Int64Min(1).Draw(t, "version"), At: time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "ms")).UTC(),
			CorrelationID: text.Draw(t, "correlation"), CausationID: text.Draw(t, "causation"),
			SchemaVersion: rapid.SampledFrom([]int{0, 0, 2, 3, 100}).Draw(t, "schema version"),
		}
		if md := rapid.MapOfN(text, text, 0, 4).Draw(t, "metadata"); len(md) > 0 {
			e.Metadata = map[string]any{}
			for k, v := range md {
				e.Metadata[k] = v
			}
		}
		var err error
		if e.Data, err = es.Marshal(rapid.MapOf(text, text).Draw(t, "data")); err != nil {
			t.Fatal(err)
		}
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := es.Decode(b)
		if err != nil || !reflect.DeepEqual(back, e) {
			t.Fatalf("%v\n got %+v\nwant %+v", err, back, e)
		}
		if again, _ := back.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("the bytes change\n got %s\nwant %s", again, b)
		}
		if strict := new(bytes.Buffer); json.Compact(strict, b) != nil || strict.Len() != len(b) {
			t.Fatalf("not compact JSON: %s", b)
		}
	})
}

func TestDecodeErrors(t *testing.T) {
	good, _ := sample().Encode()
	if _, err := es.Decode(bytes.Replace(good, []byte(`{"eventId"`), []byte(`{"added":{"later":1},"eventId"`), 1)); err != nil {
		t.Errorf("an unknown key: %v", err)
	}
	// Who takes the metadata along, into the event of a saga for example, takes no schema version with it.
	for written, want := range map[string]int{"1": 0, "2": 2} {
		e, err := es.Decode(bytes.Replace(good, []byte(`"metadata":{`), []byte(`"metadata":{"schemaVersion":`+written+`,`), 1))
		if err != nil || e.SchemaVersion != want || !reflect.DeepEqual(e.Metadata, sample().Metadata) {
			t.Errorf("schema version %s: %+v, %v", written, e, err)
		}
	}
	for name, b := range map[string]string{
		"nothing":                    ``,
		"no object":                  `[]`,
		"cut off":                    string(good[:len(good)-1]),
		"no eventId":                 strings.Replace(string(good), `"eventId"`, `"id"`, 1),
		"no eventType":               strings.Replace(string(good), `"eventType"`, `"type"`, 1),
		"no aggregateId":             strings.Replace(string(good), `"aggregateId"`, `"x"`, 1),
		"no aggregateType":           strings.Replace(string(good), `"aggregateType"`, `"x"`, 1),
		"version 0":                  strings.Replace(string(good), `"aggregateVersion":7`, `"aggregateVersion":0`, 1),
		"a version in quotes":        strings.Replace(string(good), `"aggregateVersion":7`, `"aggregateVersion":"7"`, 1),
		"a timestamp that is none":   strings.Replace(string(good), `2025-12-09T`, `2025-13-09T`, 1),
		"no data":                    strings.Replace(string(good), `"data"`, `"payload"`, 1),
		"schema version 0":           strings.Replace(string(good), `"metadata":{`, `"metadata":{"schemaVersion":0,`, 1),
		"half a schema version":      strings.Replace(string(good), `"metadata":{`, `"metadata":{"schemaVersion":2.5,`, 1),
		"a schema version in quotes": strings.Replace(string(good), `"metadata":{`, `"metadata":{"schemaVersion":"2",`, 1),
		"a huge schema version":      strings.Replace(string(good), `"metadata":{`, `"metadata":{"schemaVersion":1e300,`, 1),
		"metadata that is no object": strings.Replace(string(good), `"metadata":{`, `"metadata":[],"x":{`, 1),
	} {
		if e, err := es.Decode([]byte(b)); err == nil {
			t.Errorf("%s: decoded to %+v", name, e)
		}
	}
}

// Ids are stored for ever, so how they are derived never changes.
func TestEventIDNeverChanges(t *testing.T) {
	s := es.Stream{Type: "Account", ID: "acc-1"}
	for n, want := range []string{"2886ecf6-94d5-5fcf-bb3a-a8af8887cfe1", "b5c38897-4854-59d1-9919-53f6fc91b7f1"} {
		if got := es.EventID(s, "saga-1/debit_source", n); got != want {
			t.Errorf("event %d: %s, want %s", n, got, want)
		}
	}
}

func TestEventIDsAreDistinct(t *testing.T) {
	seen := map[string]string{}
	for _, tc := range []struct {
		s   es.Stream
		key string
		n   int
	}{
		{es.Stream{Type: "A", ID: "b"}, "k", 0}, {es.Stream{Type: "A", ID: "b"}, "k", 1}, {es.Stream{Type: "A", ID: "b"}, "k", 10},
		{es.Stream{Type: "A", ID: "b"}, "k1", 0}, {es.Stream{Type: "A", ID: "bk"}, "", 0}, {es.Stream{Type: "Ab", ID: ""}, "k", 0},
		{es.Stream{Type: "A", ID: "c"}, "k", 0}, {es.Stream{Type: "B", ID: "b"}, "k", 0},
	} {
		id := es.EventID(tc.s, tc.key, tc.n)
		if uuid.Validate(id) != nil {
			t.Errorf("%q is no UUID", id)
		}
		what := tc.s.String() + "|" + tc.key
		if other, taken := seen[id]; taken {
			t.Errorf("%s and %s, event %d, share %s", what, other, tc.n, id)
		}
		seen[id] = what
	}
}
