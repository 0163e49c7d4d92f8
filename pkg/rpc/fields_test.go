package rpc_test

import (
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"example.com/billing/pkg/rpc"

	"google.golang.org/protobuf/types/known/structpb"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestCatalog(t *testing.T) {
	catalog := testCatalog(t)
	if got, ok := catalog.Lookup("SEAT_TAKEN"); !ok || got.HTTP != 422 || got.Title != "The seat is taken." || catalog.Domain() != "test" {
		t.Errorf("got %+v, %v", got, ok)
	}
	if len(catalog.All()) != len(testReasons) {
		t.Errorf("all: %+v", catalog.All())
	}
	for name, reasons := range map[string][]mapped{
		"option missing": append(testReasons[:len(testReasons):len(testReasons)], mapped{name: "BARE"}),
		"unknown code":   append(testReasons[:len(testReasons):len(testReasons)], mapped{"ODD", "TEAPOT", "Odd.", 418}),
		"not an error":   append(testReasons[:len(testReasons):len(testReasons)], mapped{"FINE", "OK", "Fine.", 200}),
		"own missing":    testReasons[1:],
	} {
		enum, mapping := describe(t, reasons)
		if _, err := rpc.NewCatalog("test", enum, mapping); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFields(t *testing.T) {
	const id = "0190A0B0-1234-7abc-8def-0123456789ab"
	deep, err := structpb.NewStruct(map[string]any{"a": []any{map[string]any{"b": "x\x00"}}})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		check func(*rpc.Fields)
		want  string // the rule; "" = fine
	}{
		{"uuid", func(v *rpc.Fields) { v.UUID("f", id) }, ""},
		{"uuid missing", func(v *rpc.Fields) { v.UUID("f", "") }, "required"},
		{"uuid in braces", func(v *rpc.Fields) { v.UUID("f", "{"+id+"}") }, "uuid"},
		{"uuid as urn", func(v *rpc.Fields) { v.UUID("f", "urn:uuid:"+id) }, "uuid"},
		{"uuid without hyphens", func(v *rpc.Fields) { v.UUID("f", strings.ReplaceAll(id, "-", "")) }, "uuid"},
		{"uuid not hex", func(v *rpc.Fields) { v.UUID("f", "g"+id[1:]) }, "uuid"},
		{"characters", func(v *rpc.Fields) { v.MaxLen("f", "ééé", 3) }, ""},
		{"too long", func(v *rpc.Fields) { v.MaxLen("f", "éééé", 3) }, "max_length:3"},
		{"nul", func(v *rpc.Fields) { v.MaxLen("f", "a\x00", 3) }, "text"},
		{"one of", func(v *rpc.Fields) { v.OneOf("f", "a", "a", "b") }, ""},
		{"none of", func(v *rpc.Fields) { v.OneOf("f", "A", "a", "b") }, "one_of:a,b"},
		{"page size", func(v *rpc.Fields) { v.PageSize("f", 200, 50, 200) }, ""},
		{"page size absent", func(v *rpc.Fields) { v.PageSize("f", 0, 50, 200) }, ""},
		{"page size large", func(v *rpc.Fields) { v.PageSize("f", 201, 50, 200) }, "range:1..200"},
		{"page size negative", func(v *rpc.Fields) { v.PageSize("f", -1, 50, 200) }, "range:1..200"},
		{"struct absent", func(v *rpc.Fields) { v.Struct("f", nil, 3) }, ""},
		{"struct large", func(v *rpc.Fields) { v.Struct("f", deep, 3) }, "max_bytes:3"},
		{"struct with nul", func(v *rpc.Fields) { v.Struct("f", deep, 300) }, "text"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var v rpc.Fields
			tt.check(&v)
			e := rpc.ErrorOf(v.Err())
			switch {
			case tt.want == "" && e != nil:
				t.Errorf("refused: %v", e)
			case tt.want != "" && (e == nil || e.Reason != rpc.ReasonInvalidArgument || e.Violations[0].Rule != tt.want || e.Violations[0].Field != "f"):
				t.Errorf("got %v, want %s", e, tt.want)
			}
		})
	}
	var v rpc.Fields
	if got := v.UUID("f", id); got != strings.ToLower(id) {
		t.Errorf("canonical form %q", got)
	}
	for range 1000 {
		v.Add("f", "r", "")
	}
	if n := len(rpc.ErrorOf(v.Err()).Violations); n > 32 {
		t.Errorf("%d violations reported", n)
	}
}

func TestPageToken(t *testing.T) {
	type place struct {
		At string `json:"at"`
		ID int    `json:"id"`
	}
	var got place
	want := place{"2026-01-02", 7}
	if err := rpc.DecodePageToken(rpc.EncodePageToken(want), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := rpc.DecodePageToken("", &got); err != nil || got != want {
		t.Errorf("the empty token: %+v, %v", got, err)
	}
	for _, bad := range []string{"!", "e30=", rpc.EncodePageToken("text"), rpc.EncodePageToken(map[string]int{"x": 1}), strings.Repeat("e", 2000)} {
		e := rpc.ErrorOf(rpc.DecodePageToken(bad, &got))
		if e == nil || e.Violations[0].Field != "pageToken" {
			t.Errorf("%q: got %v", bad, e)
		}
	}
}

func TestErrorOf(t *testing.T) {
	if rpc.ErrorOf(nil) != nil {
		t.Error("nil became an error")
	}
	if e := rpc.ErrorOf(t.Context().Err()); e != nil {
		t.Errorf("got %v", e)
	}
}
