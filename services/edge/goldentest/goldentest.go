// Package goldentest keeps the events of a service, exactly as they are published, in files: testdata/events/<type>.json, and of
// schema versions above 1 <type>.v<version>.json. A manifest beside them, testdata/events.sha256, has the sum of every one.
package goldentest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/estest"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
)

// Files are a service's golden files.
type Files struct {
	update *bool
}

// New makes the flag -update, which writes the files that do not exist yet. Call it once, from a package variable.
func New() Files {
	return Files{update: flag.Bool("update", false, "write golden files that do not exist yet")}
}

// Compare compares an event, exactly as it is published, with its file; variant tells several of a type apart. A file that is there
// is never written again: what was published once is read for ever.
func (f Files) Compare(t *testing.T, variant string, e es.Event) {
	t.Helper()
	name := estest.GoldenName(e.Type, e.SchemaVersion, variant)
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "events", name+".json")
	want, err := os.ReadFile(path)
	if os.IsNotExist(err) && *f.update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		want, err = b, nil
	}
	if err != nil {
		t.Fatalf("%v (make golden writes the files of new events)", err)
	}
	if string(b) != string(want) {
		t.Errorf("%s\n got %s\nwant %s", path, b, want)
	}
}

// All reads every golden file, those of events that are no longer written included.
func (Files) All(t *testing.T) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "events", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	files := map[string][]byte{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(path), ".json")] = b
	}
	return files
}

// CheckEnvelopes fails the test unless every envelope has exactly these keys, in this order; causationId and metadata may be
// absent. Files of the variant bare have neither, but for the schema version.
func (f Files) CheckEnvelopes(t *testing.T) {
	t.Helper()
	keys := []string{"eventId", "eventType", "aggregateId", "aggregateType", "aggregateVersion", "timestamp", "correlationId", "causationId", "metadata", "data"}
	for name, b := range f.All(t) {
		want := slices.DeleteFunc(slices.Clone(keys), func(k string) bool {
			return strings.HasSuffix(name, ".bare") && (k == "causationId" || k == "metadata" && !strings.Contains(name, ".v"))
		})
		if got := keysOf(t, b); !slices.Equal(got, want) {
			t.Errorf("%s has the keys %v, not %v", name, got, want)
		}
	}
}

// CheckManifest fails the test unless the manifest lists exactly the files that are there, with their sums: none is lost, and none
// is changed. It is written as sha256sum does; -update adds the files that it does not list yet.
func (f Files) CheckManifest(t *testing.T) {
	t.Helper()
	path := filepath.Join("testdata", "events.sha256")
	manifest, err := os.ReadFile(path)
	if err != nil && (!os.IsNotExist(err) || !*f.update) {
		t.Fatalf("%v (make golden writes it)", err)
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(manifest)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sums[strings.TrimSuffix(name, ".json")] = sum
	}
	files := f.All(t)
	for name, b := range files {
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		switch listed, ok := sums[name]; {
		case !ok && *f.update:
			sums[name] = sum
		case !ok:
			t.Errorf("%s does not list %s (make golden adds it)", path, name)
		case listed != sum:
			t.Errorf("%s was changed: what was published once stays as it was", name)
		}
	}
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if _, ok := files[name]; !ok {
			t.Errorf("%s is gone: what was published once is read for ever", name)
		}
		fmt.Fprintf(&lines, "%s  %s.json\n", sums[name], name)
	}
	if *f.update && !t.Failed() {
		if err := os.WriteFile(path, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// keysOf lists an object's keys in order.
func keysOf(t *testing.T, b []byte) []string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		var skipped json.RawMessage
		if err := dec.Decode(&skipped); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key.(string))
	}
	return keys
}

// CheckContract fails the test unless events and contract know the same fields: what is published parses strictly as the
// message of its name, and together the golden files of a type have every field of it.
func (f Files) CheckContract(t *testing.T) {
	t.Helper()
	missing := map[protoreflect.FullName]bool{}
	for name, b := range f.All(t) {
		var envelope eventv1.Envelope
		if err := protojson.Unmarshal(b, &envelope); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e, err := es.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if eventType, _, _ := strings.Cut(name, "."); e.Type != eventType {
			t.Errorf("%s holds %s", name, e.Type)
		}
		kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("billing.event.v1." + e.Type))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m := kind.New().Interface()
		if err := protojson.Unmarshal(e.Data, m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		keys, fields := keysOf(t, e.Data), kind.Descriptor().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			unseen, known := missing[field.FullName()]
			missing[field.FullName()] = (unseen || !known) && !slices.Contains(keys, field.JSONName())
		}
	}
	for field, is := range missing {
		if is {
			t.Errorf("no golden file has %s", field)
		}
	}
}
