package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"example.com/billing/pkg/rpc"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// structName is free JSON: metadata, and the result of a saga's step.
const structName = "google.protobuf.Struct"

// depthMax bounds nesting: the binary form of deeper JSON could not be decoded by the services.
const depthMax = 100

// checkJSON wants one JSON object in UTF-8, not nested too deep, and nothing after it.
func checkJSON(raw []byte) *rpc.Error {
	switch {
	case len(bytes.TrimSpace(raw)) == 0:
		return badBody("required", "The body is empty; it must be a JSON object.")
	case !utf8.Valid(raw):
		return badBody("utf8", "The body is not UTF-8.")
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	for depth, tokens := 0, 0; ; tokens++ {
		token, err := decoder.Token()
		switch {
		case errors.Is(err, io.EOF) && depth == 0 && tokens > 0:
			return nil
		case err != nil:
			return notJSON(err)
		case tokens == 0 && token != json.Delim('{'):
			return badBody("object", "The body must be a JSON object.")
		case tokens > 0 && depth == 0:
			return badBody("one_document", "The body must be one JSON object with nothing after it.")
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth > depthMax {
			return badBody("max_depth:"+strconv.Itoa(depthMax), "The body is nested too deep.")
		}
	}
}

func badBody(rule, message string) *rpc.Error {
	failure := rpc.Invalid(rpc.Violation{Field: "body", Rule: rule})
	failure.Message = message
	return failure
}

func notJSON(err error) *rpc.Error {
	return badBody("json", "The body is not JSON: "+shorten(err.Error())+".").Because(err)
}

// marshaler is protojson with the API's manners: empty fields are printed unless the contract says they are absent, unknown
// fields are refused and named, and the same message always gives the same bytes.
type marshaler struct{ runtime.JSONPb }

func newMarshaler() *marshaler {
	return &marshaler{runtime.JSONPb{MarshalOptions: protojson.MarshalOptions{EmitDefaultValues: true}}}
}

// Marshal writes compact JSON; protojson's own white space differs from build to build.
func (m *marshaler) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case *sagav1.Saga:
		return m.saga(v)
	case []*sagav1.Saga:
		all := make([]json.RawMessage, 0, len(v)) // not nil: an empty list is []
		for _, saga := range v {
			one, err := m.saga(saga)
			if err != nil {
				return nil, err
			}
			all = append(all, one)
		}
		return concat(all), nil
	}
	raw, err := m.JSONPb.Marshal(v)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = json.Compact(&b, raw)
	return b.Bytes(), err
}

// saga leaves out compensationActions where nothing was undone; every other list and map is there even when empty.
func (m *marshaler) saga(saga *sagav1.Saga) ([]byte, error) {
	raw, err := m.JSONPb.Marshal(saga)
	if err != nil {
		return nil, err
	}
	members, err := membersOf(raw)
	if err != nil {
		return nil, err
	}
	if len(saga.GetCompensationActions()) == 0 {
		absent := saga.ProtoReflect().Descriptor().Fields().ByName("compensation_actions").JSONName()
		members = slices.DeleteFunc(members, func(m member) bool { return m.key == absent })
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i, member := range members {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", member.key) // field names are plain identifiers
		if err := json.Compact(&b, member.value); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func concat(values []json.RawMessage) []byte {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, value := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(value)
	}
	b.WriteByte(']')
	return b.Bytes()
}

// NewEncoder writes what Marshal writes.
func (m *marshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		raw, err := m.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	})
}

// NewDecoder reads a request's body, which prepare has looked over already.
func (m *marshaler) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		body, ok := r.(*content)
		message, isMessage := v.(proto.Message)
		if !ok || !isMessage {
			return fmt.Errorf("decode %T from %T: not a prepared request", v, r)
		}
		if body.failure = decode(body, message); body.failure != nil {
			return body.failure
		}
		return nil
	})
}

// decode fills the message, or says field by field why it cannot.
func decode(body *content, into proto.Message) *rpc.Error {
	members, err := membersOf(body.raw)
	if err != nil {
		return notJSON(err)
	}
	var v rpc.Fields
	for _, m := range members {
		if slices.ContainsFunc(body.taken, func(name string) bool { return strings.EqualFold(name, strings.ReplaceAll(m.key, "_", "")) }) {
			v.Add(m.key, "not_in_body", string(m.value))
		} else if strings.Contains(m.key, "_") { // protojson reads the contracts' own spelling too; the API has one
			v.Add(shorten(m.key), "unknown", string(m.value))
		}
	}
	if err := v.Err(); err != nil {
		return rpc.ErrorOf(err)
	}
	fields := into.ProtoReflect().Descriptor().Fields()
	if checkNumbers(&v, members, fields); v.Err() != nil {
		return rpc.ErrorOf(v.Err())
	}
	err = protojson.Unmarshal(body.raw, into)
	if err == nil && !slices.ContainsFunc(members, func(m member) bool {
		field := fieldOf(fields, m.key)
		return field != nil && !plain(field, m.value)
	}) {
		return nil
	}
	if checkFields(&v, members, into); v.Err() != nil {
		return rpc.ErrorOf(v.Err()).Because(err)
	}
	return badBody("json", "The body does not fit.").Because(err)
}

// checkFields tries each member of the object alone, because protojson's error has the first one's name only in its text.
func checkFields(v *rpc.Fields, members []member, message proto.Message) {
	fields := message.ProtoReflect().Descriptor().Fields()
	seen := map[protoreflect.FieldNumber]bool{}
	for _, m := range members {
		field := fieldOf(fields, m.key)
		if field == nil {
			v.Add(shorten(m.key), "unknown", string(m.value))
			continue
		}
		if seen[field.Number()] {
			v.Add(field.JSONName(), "once", string(m.value))
			continue
		}
		seen[field.Number()] = true
		alone, err := json.Marshal(map[string]json.RawMessage{m.key: m.value})
		if err == nil {
			err = protojson.Unmarshal(alone, message.ProtoReflect().New().Interface())
		}
		if err != nil || !plain(field, m.value) {
			v.Add(field.JSONName(), kindOf(field), string(m.value))
		}
	}
}

// checkNumbers wants numbers in free JSON that are kept exactly. Only here are their digits known: behind the decoder
// they are doubles.
func checkNumbers(v *rpc.Fields, members []member, fields protoreflect.FieldDescriptors) {
	for _, m := range members {
		field := fieldOf(fields, m.key)
		if field == nil || field.Message() == nil || field.Message().FullName() != structName {
			continue
		}
		decoder := json.NewDecoder(bytes.NewReader(m.value))
		decoder.UseNumber()
		var value map[string]any
		if decoder.Decode(&value) == nil { // else it is no object, which protojson refuses
			checkNumber(v, field.JSONName(), value)
		}
	}
}

func checkNumber(v *rpc.Fields, path string, value any) {
	switch value := value.(type) {
	case json.Number:
		if rule := rpc.CheckNumber(value.String()); rule != "" {
			v.Add(path, rule, value.String())
		}
	case []any:
		for i, inner := range value {
			checkNumber(v, path+"["+strconv.Itoa(i)+"]", inner)
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			checkNumber(v, path+"."+key, value[key])
		}
	}
}

// fieldOf finds a field by either of the names that protojson takes; nil where there is none.
func fieldOf(fields protoreflect.FieldDescriptors, key string) protoreflect.FieldDescriptor {
	if field := fields.ByJSONName(key); field != nil {
		return field
	}
	return fields.ByTextName(key)
}

// plain says whether a value is what the document promises. protojson takes more: null for any field, and numbers in quotes.
func plain(field protoreflect.FieldDescriptor, value json.RawMessage) bool {
	switch value = bytes.TrimSpace(value); {
	case bytes.Equal(value, []byte("null")):
		return false
	case field.Kind() == protoreflect.Int32Kind:
		return !bytes.HasPrefix(value, []byte(`"`))
	}
	return true
}

// kindOf names what a field's JSON has to be.
func kindOf(field protoreflect.FieldDescriptor) string {
	if field.IsList() {
		return "array"
	}
	if message := field.Message(); message != nil {
		if message.FullName() == structName {
			return "object"
		}
		return strings.ToLower(string(message.Name()))
	}
	return field.Kind().String()
}

// member is one key of an object with its value, as sent.
type member struct {
	key   string
	value json.RawMessage
}

// membersOf takes an object apart, in order, repeated keys included.
func membersOf(raw []byte) ([]member, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	var all []member
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		key, ok := token.(string)
		if !ok {
			return nil, fmt.Errorf("key %v is not a string", token)
		}
		m := member{key: key}
		if err := decoder.Decode(&m.value); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}
