package rpc

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// violationsMax bounds how much of a bad request is reported.
const violationsMax = 32

// Fields collects what is wrong with a request. The zero value is ready:
//
//	var v rpc.Fields
//	id := v.UUID("accountId", req.GetAccountId())
//	v.MaxLen("reason", req.GetReason(), 256)
//	if err := v.Err(); err != nil {
//		return nil, err
//	}
//
// It is not safe for concurrent use.
type Fields struct {
	violations []Violation
}

// Add notes one violation.
func (f *Fields) Add(field, rule, value string) {
	if len(f.violations) < violationsMax {
		f.violations = append(f.violations, Violation{Field: field, Rule: rule, Value: value})
	}
}

// Err is nil where nothing was wrong, else an INVALID_ARGUMENT *[Error].
func (f *Fields) Err() error {
	if len(f.violations) == 0 {
		return nil
	}
	return Invalid(f.violations...)
}

// OK reports whether nothing was wrong so far.
func (f *Fields) OK() bool { return len(f.violations) == 0 }

// Required says whether the value is there, and notes its absence.
func (f *Fields) Required(field, value string) bool {
	if value == "" {
		f.Add(field, "required", "")
		return false
	}
	return true
}

// UUID needs a UUID in its canonical form of 36 characters and returns it in lower case.
func (f *Fields) UUID(field, value string) string {
	if !f.Required(field, value) {
		return ""
	}
	id, ok := CanonicalUUID(value)
	if !ok {
		f.Add(field, "uuid", value)
	}
	return id
}

// MaxLen needs text of at most most characters: UTF-8 without U+0000, which databases do not store.
func (f *Fields) MaxLen(field, value string, most int) {
	switch {
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		f.Add(field, "text", value)
	case utf8.RuneCountInString(value) > most:
		f.Add(field, "max_length:"+strconv.Itoa(most), value)
	}
}

// Time reads an optional time; nil is none.
func (f *Fields) Time(field string, value *timestamppb.Timestamp) *time.Time {
	if value == nil {
		return nil
	}
	if value.CheckValid() != nil {
		f.Add(field, "timestamp", fmt.Sprintf("%ds %dns", value.GetSeconds(), value.GetNanos()))
		return nil
	}
	at := value.AsTime()
	return &at
}

// OneOf needs one of the values of a closed set.
func (f *Fields) OneOf(field, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		f.Add(field, "one_of:"+strings.Join(allowed, ","), value)
	}
}

// PageSize needs 1 to most, and returns fallback for 0, which is an absent page size.
func (f *Fields) PageSize(field string, size, fallback, most int32) int32 {
	if size == 0 {
		return fallback
	}
	if size < 1 || size > most {
		f.Add(field, fmt.Sprintf("range:1..%d", most), strconv.Itoa(int(size)))
		return fallback
	}
	return size
}

// structDepthMax bounds how deep a Struct may nest: a deeper one could be taken, but no client could decode the answer that
// carries it.
const structDepthMax = 100

// Struct needs JSON that nests at most 100 deep, of at most most bytes as protojson writes it, without its white space,
// without U+0000, and without numbers beyond 2^53 - 1, which a double does not tell apart. Nil is fine.
func (f *Fields) Struct(field string, value *structpb.Struct, most int) {
	if value == nil {
		return
	}
	if depthOf(structpb.NewStructValue(value)) > structDepthMax {
		f.Add(field, "max_depth:"+strconv.Itoa(structDepthMax), "")
		return
	}
	compact, err := compactJSON(value)
	switch {
	case err != nil:
		f.Add(field, "json", "")
	case len(compact) > most:
		f.Add(field, "max_bytes:"+strconv.Itoa(most), "")
	case hasNUL(structpb.NewStructValue(value)):
		f.Add(field, "text", "")
	default:
		f.unsafeNumbers(field, structpb.NewStructValue(value))
	}
}

func compactJSON(value *structpb.Struct) ([]byte, error) {
	raw, err := protojson.Marshal(value)
	if err != nil {
		return nil, err
	}
	return compact(raw)
}

// depthOf counts how deep a value nests; it stops counting just above structDepthMax.
func depthOf(value *structpb.Value) int {
	type level struct {
		value *structpb.Value
		depth int
	}
	deepest := 0
	for todo := []level{{value, 1}}; len(todo) > 0 && deepest <= structDepthMax; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		deepest = max(deepest, at.depth)
		for _, inner := range at.value.GetListValue().GetValues() {
			todo = append(todo, level{inner, at.depth + 1})
		}
		for _, inner := range at.value.GetStructValue().GetFields() {
			todo = append(todo, level{inner, at.depth + 1})
		}
	}
	return deepest
}

func hasNUL(value *structpb.Value) bool {
	switch kind := value.GetKind().(type) {
	case *structpb.Value_StringValue:
		return strings.ContainsRune(kind.StringValue, 0)
	case *structpb.Value_ListValue:
		return slices.ContainsFunc(kind.ListValue.GetValues(), hasNUL)
	case *structpb.Value_StructValue:
		for key, inner := range kind.StructValue.GetFields() {
			if strings.ContainsRune(key, 0) || hasNUL(inner) {
				return true
			}
		}
	}
	return false
}

// CanonicalUUID accepts only the form of 36 characters with hyphens, in either case, and returns it in lower case.
func CanonicalUUID(value string) (string, bool) {
	if len(value) != 36 {
		return "", false
	}
	for i := range len(value) {
		c := value[i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return "", false
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
		default:
			return "", false
		}
	}
	return strings.ToLower(value), true
}
