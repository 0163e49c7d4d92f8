package estest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"example.com/billing/pkg/es"
)

// TestSchemas fails the test unless everything that was ever published loads into today's state. Files are the JSON of whole events
// by GoldenName: every event type has one of every schema version it ever had, and every variant of a past version also exists in
// today's. Each must decode to the same fact, and load to the same state, as its variant of today; and today's is written to the
// same bytes again. Load folds the event behind the events that it needs before it; nil = there is no state.
func TestSchemas(t *testing.T, schemas es.Schemas, files map[string][]byte, load func(*testing.T, es.Event) any) {
	t.Helper()
	var state func(es.Event) any
	if load != nil {
		state = func(e es.Event) any { return load(t, e) }
	}
	for _, problem := range schemaProblems(schemas, files, state) {
		t.Error(problem)
	}
	t.Run("whatever the data", func(t *testing.T) { anyData(t, schemas, files) })
}

// GoldenName is the name of an event's golden file: its type, its schema version if above 1, its variant if it has one.
// BalanceChanged, BalanceChanged.credit, BalanceChanged.v2, BalanceChanged.v2.credit.
func GoldenName(eventType string, schemaVersion int, variant string) string {
	name := eventType
	if schemaVersion > 1 {
		name += ".v" + strconv.Itoa(schemaVersion)
	}
	if variant != "" {
		name += "." + variant
	}
	return name
}

// kind is what a golden file shows.
type kind struct{ eventType, variant string }

// loaded is what became of a golden file: its fact and its state, as JSON.
type loaded struct{ fact, state string }

// readGolden reads a golden file's name and event.
func readGolden(name string, file []byte) (k kind, e es.Event, err error) {
	if e, err = es.Decode(file); err != nil {
		return k, e, err
	}
	_, k.variant, _ = strings.Cut(name, ".")
	if e.SchemaVersion > 1 {
		_, k.variant, _ = strings.Cut(k.variant, ".")
	}
	if want := GoldenName(e.Type, e.SchemaVersion, k.variant); name != want {
		return k, e, fmt.Errorf("holds %s of schema version %d: it would be called %s", e.Type, max(e.SchemaVersion, 1), want)
	}
	k.eventType = e.Type
	return k, e, nil
}

// schemaProblems is what TestSchemas finds.
func schemaProblems(schemas es.Schemas, files map[string][]byte, load func(es.Event) any) (problems []string) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	all := map[kind]map[int]loaded{}
	seen := map[string]map[int]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		k, e, err := readGolden(name, files[name])
		if err != nil {
			problem("%s: %v", name, err)
			continue
		}
		version := max(e.SchemaVersion, 1)
		if seen[k.eventType] == nil {
			seen[k.eventType] = map[int]bool{}
		}
		seen[k.eventType][version] = true
		schema, known := schemas[k.eventType]
		if known && version > schema.Version() {
			problem("%s was published in schema version %d; the schema ends at %d: an upcaster is gone", name, version, schema.Version())
			continue
		}
		l, err := loadGolden(schemas, e, load)
		if err != nil {
			problem("%s does not load: %v", name, err)
			continue
		}
		if version == schema.Version() && l.again != string(files[name]) {
			problem("%s is of today's schema version, and is not written as it was\n got %s\nwant %s", name, l.again, files[name])
		}
		if all[k] == nil {
			all[k] = map[int]loaded{}
		}
		all[k][version] = l.loaded
	}
	for _, eventType := range slices.Sorted(maps.Keys(schemas)) {
		for v := 1; v <= schemas[eventType].Version(); v++ {
			if !seen[eventType][v] {
				problem("%s has no golden file of schema version %d", eventType, v)
			}
		}
	}
	for k, versions := range all {
		today := schemas[k.eventType].Version()
		want, ok := versions[today]
		for v, got := range versions {
			name := GoldenName(k.eventType, v, k.variant)
			switch {
			case !ok:
				problem("%s has no counterpart %s", name, GoldenName(k.eventType, today, k.variant))
			case got.fact != want.fact:
				problem("%s becomes another fact than today's\n got %s\nwant %s", name, got.fact, want.fact)
			case got.state != want.state:
				problem("%s loads to another state than today's\n got %s\nwant %s", name, got.state, want.state)
			}
		}
	}
	slices.Sort(problems)
	return problems
}

// loadedAgain is a loaded golden file, and the event as today's code would write it.
type loadedAgain struct {
	loaded
	again string
}

func loadGolden(schemas es.Schemas, e es.Event, load func(es.Event) any) (l loadedAgain, err error) {
	f, err := schemas.Decode(e)
	if err != nil {
		return l, err
	}
	if f.EventType() != e.Type {
		return l, fmt.Errorf("it decodes to %s", f.EventType())
	}
	recorded, err := schemas.Record(e, f)
	if err != nil {
		return l, err
	}
	again, err := recorded.Encode()
	if err != nil {
		return l, err
	}
	l.fact, l.again = string(recorded.Data), string(again)
	if load == nil {
		return l, nil
	}
	state, err := json.Marshal(load(e))
	l.state = string(state)
	return l, err
}

// anyData: whatever the data of an event, decoding it does not panic, and its error names event, type and version.
func anyData(t *testing.T, schemas es.Schemas, files map[string][]byte) {
	golden := map[string][]json.RawMessage{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if e, err := es.Decode(files[name]); err == nil {
			golden[e.Type] = append(golden[e.Type], e.Data)
		}
	}
	types := rapid.SampledFrom(slices.Sorted(maps.Keys(schemas)))
	rapid.Check(t, func(t *rapid.T) {
		e := es.Event{ID: "e-1", Type: types.Draw(t, "type"), Stream: stream, Version: 1, At: start}
		e.SchemaVersion = rapid.IntRange(0, schemas[e.Type].Version()+1).Draw(t, "schema version")
		data := anyJSON()
		if published := golden[e.Type]; len(published) > 0 {
			data = rapid.OneOf(data, spoilt(published))
		}
		e.Data = data.Draw(t, "data")
		_, err := schemas.Decode(e)
		if err == nil {
			return
		}
		for _, part := range []string{e.ID, e.Type, fmt.Sprintf("schema version %d", max(e.SchemaVersion, 1))} {
			if !strings.Contains(err.Error(), part) {
				t.Fatalf("%q does not say %q", err, part)
			}
		}
	})
}

// anyJSON is any value, and now and then what is none.
func anyJSON() *rapid.Generator[json.RawMessage] {
	return rapid.Map(rapid.OneOf(
		rapid.SampledFrom([]string{`null`, `{}`, `[]`, `[1]`, `""`, `"1.00"`, `".5"`, `"1e-999999"`, `"1e999999"`, `"x"`, `0`,
			`-1.5`, `1e400`, `true`, `{"a":{"b":null}}`, ``, `{`}),
		rapid.Map(rapid.String(), func(s string) string { b, _ := es.Marshal(s); return string(b) }),
	), func(s string) json.RawMessage { return json.RawMessage(s) })
}

// spoilt is data that was published, with a field or two taken away or replaced.
func spoilt(golden []json.RawMessage) *rapid.Generator[json.RawMessage] {
	return rapid.Custom(func(t *rapid.T) json.RawMessage {
		var fields map[string]json.RawMessage
		if json.Unmarshal(rapid.SampledFrom(golden).Draw(t, "golden"), &fields) != nil || len(fields) == 0 {
			return json.RawMessage(`{}`)
		}
		names := rapid.SampledFrom(slices.Sorted(maps.Keys(fields)))
		for range rapid.IntRange(1, 2).Draw(t, "spoilt fields") {
			if name := names.Draw(t, "field"); rapid.Bool().Draw(t, "taken away") {
				delete(fields, name)
			} else if value := anyJSON().Draw(t, "value"); json.Valid(value) {
				fields[name] = value
			}
		}
		b, _ := json.Marshal(fields) // valid, each of them
		return b
	})
}
