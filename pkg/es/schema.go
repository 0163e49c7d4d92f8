package es

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Schemas are an aggregate's event types by name: how the data of each is read, whichever version of the code wrote it.
type Schemas map[string]Schema

// Schema is how the data of one event type is read. Its first shape is schema version 1; each upcaster adds one.
type Schema struct {
	// Decode reads data of today's version.
	Decode func(data json.RawMessage) (Fact, error)
	// Upcasters bring older data to today's version: the first turns version 1 into 2, the next 2 into 3. None is ever removed.
	Upcasters []Upcaster
}

// SchemaOf is the schema of facts that are read as encoding/json reads them.
func SchemaOf[F Fact](upcasters ...Upcaster) Schema {
	return Schema{Upcasters: upcasters, Decode: func(data json.RawMessage) (Fact, error) {
		var f F
		if err := json.Unmarshal(data, &f); err != nil {
			return nil, err
		}
		return f, nil
	}}
}

// Version is today's schema version.
func (s Schema) Version() int { return len(s.Upcasters) + 1 }

// Record gives an event a fact: its type, its data, and the schema version they are written in.
func (s Schemas) Record(e Event, f Fact) (Event, error) {
	schema, ok := s[f.EventType()]
	if !ok {
		return Event{}, fmt.Errorf("record %s: the event type has no schema", f.EventType())
	}
	data, err := Marshal(f)
	if err != nil {
		return Event{}, fmt.Errorf("record %s: %w", f.EventType(), err)
	}
	e.Type, e.Data, e.recorded, e.SchemaVersion = f.EventType(), data, &recorded{f, data}, 0
	if v := schema.Version(); v > 1 {
		e.SchemaVersion = v
	}
	return e, nil
}

// Decode is an event's fact: as it was recorded, in the process that did; else decoded from its data, through the upcasters that
// were added since it was written.
func (s Schemas) Decode(e Event) (Fact, error) {
	if r := e.recorded; r != nil && r.fact.EventType() == e.Type && len(e.Data) > 0 && &e.Data[0] == &r.data[0] {
		return r.fact, nil // of this very JSON
	}
	schema, ok := s[e.Type]
	if !ok {
		return nil, &UnknownTypeError{Type: e.Type}
	}
	from, data := max(e.SchemaVersion, 1), e.Data
	switch today := schema.Version(); {
	case from > today:
		return nil, &NewerSchemaError{EventID: e.ID, Type: e.Type, SchemaVersion: from, Known: today}
	case from < today:
		var err error
		if data, err = upcast(data, from, schema.Upcasters); err != nil {
			return nil, fmt.Errorf("event %s (%s of schema version %d): %w", e.ID, e.Type, from, err)
		}
	}
	f, err := schema.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("event %s (%s of schema version %d): decode: %w", e.ID, e.Type, from, err)
	}
	return f, nil
}

// upcast brings data of schema version from to today's.
func upcast(data json.RawMessage, from int, upcasters []Upcaster) (json.RawMessage, error) {
	var fields Fields
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("upcast from %d to %d: %w", from, from+1, err)
	}
	if fields == nil {
		return nil, fmt.Errorf("upcast from %d to %d: the data is null, not an object", from, from+1)
	}
	for v := from; v <= len(upcasters); v++ {
		if err := upcasters[v-1](fields); err != nil {
			return nil, fmt.Errorf("upcast from %d to %d: %w", v, v+1, err)
		}
	}
	return Marshal(fields)
}

// Upcaster turns the fields of one schema version into those of the next, in place. It is pure: it reads nothing else, and the same
// fields always become the same. Its error names the field at fault, as those of Get and Set do.
type Upcaster func(Fields) error

// Fields are an event's data on its way through upcasters: the JSON of each field.
type Fields map[string]json.RawMessage

// Has reports whether a field is there and not null.
func (f Fields) Has(name string) bool {
	raw, ok := f[name]
	return ok && string(raw) != "null"
}

// Get reads a field, which must be there.
func (f Fields) Get(name string, into any) error {
	err := errors.New("is missing")
	if f.Has(name) {
		err = json.Unmarshal(f[name], into)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Set writes a field.
func (f Fields) Set(name string, value any) error {
	raw, err := Marshal(value)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f[name] = raw
	return nil
}

// NewerSchemaError is an event of a schema version that this code does not know: a newer version wrote it. As with UnknownTypeError,
// an instance of that version can read it.
type NewerSchemaError struct {
	EventID, Type        string
	SchemaVersion, Known int // the event's; the newest that this code knows
}

// Error names the event and both versions.
func (e *NewerSchemaError) Error() string {
	return fmt.Sprintf("event %s (%s) has schema version %d, newer than %d", e.EventID, e.Type, e.SchemaVersion, e.Known)
}

// Unavailable tells the edge, and consumers, that asking again can help.
func (e *NewerSchemaError) Unavailable() bool { return true }
