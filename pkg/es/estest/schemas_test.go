package estest

import (
	"strings"
	"testing"

	"example.com/billing/pkg/es"
)

type weighed struct {
	Grams int64 `json:"grams"`
}

func (weighed) EventType() string { return "Weighed" }

type tared struct{}

func (tared) EventType() string { return "Tared" }

// inGrams is the upcaster from {"kg":2} to {"grams":2000}.
func inGrams(f es.Fields) error {
	var kg int64
	if err := f.Get("kg", &kg); err != nil {
		return err
	}
	return f.Set("grams", kg*1000)
}

func weighings() es.Schemas {
	return es.Schemas{"Weighed": es.SchemaOf[weighed](inGrams), "Tared": es.SchemaOf[tared]()}
}

// golden are the files of weighings.
func golden(t *testing.T) map[string][]byte {
	files := map[string][]byte{}
	for name, e := range map[string]es.Event{
		"Weighed":          {Type: "Weighed", Data: []byte(`{"kg":2}`)},
		"Weighed.heavy":    {Type: "Weighed", Data: []byte(`{"kg":90}`)},
		"Weighed.v2":       {Type: "Weighed", SchemaVersion: 2, Data: []byte(`{"grams":2000}`)},
		"Weighed.v2.heavy": {Type: "Weighed", SchemaVersion: 2, Data: []byte(`{"grams":90000}`)},
		"Weighed.v2.light": {Type: "Weighed", SchemaVersion: 2, Data: []byte(`{"grams":1}`)},
		"Tared":            {Type: "Tared", Data: []byte(`{}`)},
	} {
		e.ID, e.Stream, e.Version, e.At = "e-1", stream, 1, start
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	return files
}

func TestSchemasThatLoad(t *testing.T) {
	TestSchemas(t, weighings(), golden(t), func(t *testing.T, e es.Event) any {
		f, err := weighings().Decode(e)
		if err != nil {
			t.Fatal(err)
		}
		return f
	})
}

// Nothing that makes an old event unreadable goes unnoticed.
func TestSchemaProblems(t *testing.T) {
	sum := func(es.Event) any { return "state" }
	for _, tc := range []struct {
		name   string
		change func(es.Schemas, map[string][]byte)
		load   func(es.Event) any
		want   string
	}{
		{"an upcaster is deleted", func(s es.Schemas, _ map[string][]byte) { s["Weighed"] = es.SchemaOf[weighed]() }, sum,
			"Weighed.v2 was published in schema version 2; the schema ends at 1: an upcaster is gone"},
		{"an upcaster does nothing", func(s es.Schemas, _ map[string][]byte) {
			s["Weighed"] = es.SchemaOf[weighed](func(es.Fields) error { return nil })
		}, sum, "Weighed becomes another fact than today's\n got {\"grams\":0}\nwant {\"grams\":2000}"},
		{"an upcaster fails", func(s es.Schemas, _ map[string][]byte) {
			s["Weighed"] = es.SchemaOf[weighed](func(f es.Fields) error { return f.Get("lb", new(int)) })
		}, sum, "Weighed does not load: event e-1 (Weighed of schema version 1): upcast from 1 to 2: lb: is missing"},
		{"an upcaster is added without files", func(s es.Schemas, _ map[string][]byte) {
			s["Tared"] = es.SchemaOf[tared](func(es.Fields) error { return nil })
		}, sum, "Tared has no golden file of schema version 2"},
		{"a past version has no file", func(_ es.Schemas, f map[string][]byte) { delete(f, "Weighed"); delete(f, "Weighed.heavy") }, sum,
			"Weighed has no golden file of schema version 1"},
		{"a variant of a past version has none of today", func(_ es.Schemas, f map[string][]byte) { delete(f, "Weighed.v2.heavy") }, sum,
			"Weighed.heavy has no counterpart Weighed.v2.heavy"},
		{"an event type has no file", func(s es.Schemas, f map[string][]byte) { delete(f, "Tared") }, sum, "Tared has no golden file of schema version 1"},
		{"an event type is gone", func(s es.Schemas, _ map[string][]byte) { delete(s, "Tared") }, sum, `Tared does not load: unknown event type "Tared"`},
		{"a file has another's name", func(_ es.Schemas, f map[string][]byte) { f["Weighed.v3"] = f["Weighed.v2"] }, sum,
			"Weighed.v3: holds Weighed of schema version 2: it would be called Weighed.v2"},
		{"a file is no event", func(_ es.Schemas, f map[string][]byte) { f["Tared.odd"] = []byte(`{}`) }, sum, "Tared.odd: decode event: "},
		{"a file is not written so any more", func(_ es.Schemas, f map[string][]byte) {
			f["Tared"] = []byte(strings.Replace(string(f["Tared"]), `{}`, `{"was":1}`, 1))
		}, sum, "Tared is of today's schema version, and is not written as it was"},
		{"a type decodes to another", func(s es.Schemas, _ map[string][]byte) { s["Tared"] = es.SchemaOf[weighed]() }, sum, "Tared does not load: it decodes to Weighed"},
		{"the states differ", func(es.Schemas, map[string][]byte) {}, func(e es.Event) any { return e.SchemaVersion },
			"Weighed loads to another state than today's\n got 0\nwant 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			schemas, files := weighings(), golden(t)
			tc.change(schemas, files)
			problems := strings.Join(schemaProblems(schemas, files, tc.load), "\n")
			if !strings.Contains(problems, tc.want) {
				t.Errorf("got %s\nwant %s", problems, tc.want)
			}
		})
	}
}
