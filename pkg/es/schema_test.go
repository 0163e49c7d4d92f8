package es_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"example.com/billing/pkg/es"
)

// weighed is a fact that had three shapes: {"kg":2}; {"grams":2000}; {"grams":2000,"scales":"S1"}.
type weighed struct {
	Grams  int64  `json:"grams"`
	Scales string `json:"scales"`
}

func (weighed) EventType() string { return "Weighed" }

func inGrams(f es.Fields) error {
	var kg int64
	if err := f.Get("kg", &kg); err != nil {
		return err
	}
	delete(f, "kg")
	return f.Set("grams", kg*1000)
}

func onScales(f es.Fields) error {
	if f.Has("scales") {
		return nil
	}
	return f.Set("scales", "unknown")
}

func weighings() es.Schemas {
	return es.Schemas{"Weighed": es.SchemaOf[weighed](inGrams, onScales), "Moved": es.SchemaOf[moved]()}
}

func TestUpcast(t *testing.T) {
	for _, tc := range []struct {
		name    string
		version int
		data    string
		want    weighed
		err     string // what the error ends in
	}{
		{"from the first version, which says nothing", 0, `{"kg":2}`, weighed{2000, "unknown"}, ""},
		{"from the first version, which says so", 1, `{"kg":2}`, weighed{2000, "unknown"}, ""},
		{"from the second", 2, `{"grams":7,"other":1e2}`, weighed{7, "unknown"}, ""},
		{"today's is decoded as it is", 3, `{"grams":7}`, weighed{Grams: 7}, ""},
		{"a field that is missing", 1, `{}`, weighed{}, "event e-1 (Weighed of schema version 1): upcast from 1 to 2: kg: is missing"},
		{"a field of another type", 1, `{"kg":"2"}`, weighed{}, "upcast from 1 to 2: kg: json: cannot unmarshal string into Go value of type int64"},
		{"no object", 2, `[]`, weighed{}, "event e-1 (Weighed of schema version 2): upcast from 2 to 3: json: cannot unmarshal array into Go value of type es.Fields"},
		{"null", 2, `null`, weighed{}, "upcast from 2 to 3: the data is null, not an object"},
		{"what is wrong in the end", 2, `{"grams":"x"}`, weighed{}, "event e-1 (Weighed of schema version 2): decode: json: cannot unmarshal string into Go struct field weighed.grams of type int64"},
		{"today's is wrong", 3, `{"grams":"x"}`, weighed{}, "event e-1 (Weighed of schema version 3): decode: json: cannot unmarshal string into Go struct field weighed.grams of type int64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := json.RawMessage(tc.data)
			f, err := weighings().Decode(es.Event{ID: "e-1", Type: "Weighed", SchemaVersion: tc.version, Data: data})
			switch {
			case tc.err == "" && (err != nil || f != es.Fact(tc.want)):
				t.Errorf("%+v, %v", f, err)
			case tc.err != "" && (err == nil || !strings.HasSuffix(err.Error(), tc.err)):
				t.Errorf("got %v\nwant %s", err, tc.err)
			}
			if string(data) != tc.data {
				t.Errorf("the event's own data became %s", data)
			}
		})
	}
}

// What a newer version of the code wrote is no fault of the event's.
func TestANewerSchemaVersionIsUnknown(t *testing.T) {
	_, err := weighings().Decode(es.Event{ID: "e-1", Type: "Weighed", SchemaVersion: 4, Data: []byte(`{}`)})
	var newer *es.NewerSchemaError
	if !errors.As(err, &newer) || !newer.Unavailable() || *newer != (es.NewerSchemaError{EventID: "e-1", Type: "Weighed", SchemaVersion: 4, Known: 3}) ||
		err.Error() != "event e-1 (Weighed) has schema version 4, newer than 3" {
		t.Errorf("got %v", err)
	}
	if _, err := weighings().Decode(es.Event{Type: "Newer", SchemaVersion: 4}); !errors.As(err, new(*es.UnknownTypeError)) {
		t.Errorf("got %v", err)
	}
}

// Who records writes today's version, whatever the event said before; version 1 is not written.
func TestRecord(t *testing.T) {
	e, err := weighings().Record(es.Event{ID: "e-1", SchemaVersion: 9}, weighed{7, "S1"})
	if err != nil || e.Type != "Weighed" || e.SchemaVersion != 3 || string(e.Data) != `{"grams":7,"scales":"S1"}` {
		t.Errorf("%+v, %v", e, err)
	}
	if f, err := weighings().Decode(e); err != nil || f != es.Fact(weighed{7, "S1"}) {
		t.Errorf("%+v, %v", f, err)
	}
	if e, err := weighings().Record(es.Event{SchemaVersion: 9}, moved{1}); err != nil || e.SchemaVersion != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := weighings().Record(es.Event{}, noted{"x"}); err == nil { // it could not be read again
		t.Errorf("a type without a schema was recorded: %+v", e)
	}
	if e, err := (es.Schemas{"Noted": es.SchemaOf[noted]()}).Record(es.Event{}, noted{func() {}}); err == nil {
		t.Errorf("what is no JSON was recorded: %+v", e)
	}
}

// The fact that was recorded is not decoded again, unless its data was changed.
func TestARecordedFactIsNotDecoded(t *testing.T) {
	schemas, n := counting()
	e, err := schemas.Record(es.Event{}, moved{3})
	if err != nil {
		t.Fatal(err)
	}
	if f, err := schemas.Decode(e); err != nil || f != es.Fact(moved{3}) || *n != 0 {
		t.Errorf("%+v decoded %d times, %v", f, *n, err)
	}
	e.Data = json.RawMessage(`{"change":4}`)
	if f, err := schemas.Decode(e); err != nil || f != es.Fact(moved{4}) || *n != 1 {
		t.Errorf("%+v decoded %d times, %v", f, *n, err)
	}
}

func TestSetRefusesWhatIsNoJSON(t *testing.T) {
	if err := (es.Fields{}).Set("f", func() {}); err == nil || !strings.HasPrefix(err.Error(), "f: ") {
		t.Errorf("got %v", err)
	}
}
