package gateway

import (
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"example.com/billing/pkg/rpc"

	"github.com/getkin/kin-openapi/openapi3"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// check notes what is wrong with one query parameter.
type check func(v *rpc.Fields, name, value string)

// checkOf is the check that the document's schema of a parameter asks for.
func checkOf(schema *openapi3.Schema) (check, error) {
	switch {
	case schema.Type.Is(openapi3.TypeInteger):
		return checkInteger(schema), nil
	case schema.Type.Is(openapi3.TypeBoolean):
		return func(v *rpc.Fields, name, value string) {
			if value != "true" && value != "false" {
				v.Add(name, "boolean", value)
			}
		}, nil
	case !schema.Type.Is(openapi3.TypeString):
		return nil, fmt.Errorf("type %v cannot be checked", schema.Type)
	case schema.Format == "date-time":
		return checkTimestamp, nil
	case schema.Format == "uuid":
		return func(v *rpc.Fields, name, value string) { v.UUID(name, value) }, nil
	case len(schema.Enum) > 0:
		var allowed []string
		for _, value := range schema.Enum {
			allowed = append(allowed, fmt.Sprint(value))
		}
		return func(v *rpc.Fields, name, value string) { v.OneOf(name, value, allowed...) }, nil
	}
	return checkText(schema)
}

func checkInteger(schema *openapi3.Schema) check {
	lowest, highest := int64(math.MinInt32), int64(math.MaxInt32)
	if schema.Min != nil {
		lowest = int64(*schema.Min)
	}
	if schema.Max != nil {
		highest = int64(*schema.Max)
	}
	return func(v *rpc.Fields, name, value string) {
		switch n, ok := integer(value); {
		case !ok:
			v.Add(name, "integer", value)
		case n < lowest || n > highest:
			v.Add(name, fmt.Sprintf("range:%d..%d", lowest, highest), value)
		}
	}
}

// integer reads an int32 as JSON would write it: no plus sign, no leading zeros.
func integer(value string) (int64, bool) {
	n, err := strconv.ParseInt(value, 10, 32)
	return n, err == nil && strconv.FormatInt(n, 10) == value
}

// timestampShape is RFC 3339 to the letter, to the nanosecond; time.Parse lets some other forms pass.
var timestampShape = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$`)

func checkTimestamp(v *rpc.Fields, name, value string) {
	t, err := time.Parse(time.RFC3339Nano, value)
	if err != nil || !timestampShape.MatchString(value) || timestamppb.New(t).CheckValid() != nil {
		v.Add(name, "timestamp", value)
	}
}

func checkText(schema *openapi3.Schema) (check, error) {
	longest := math.MaxInt
	if schema.MaxLength != nil {
		longest = int(*schema.MaxLength) //nolint:gosec // the document's own: hundreds
	}
	pattern, err := regexp.Compile(schema.Pattern)
	if err != nil {
		return nil, err
	}
	return func(v *rpc.Fields, name, value string) {
		switch {
		case schema.MinLength > 0 && value == "":
			v.Required(name, value)
		case !pattern.MatchString(value):
			v.Add(name, "pattern:"+schema.Pattern, value)
		default:
			v.MaxLen(name, value, longest)
		}
	}, nil
}

// checkQuery wants known parameters, each once and as the document says.
func checkQuery(v *rpc.Fields, raw string, known map[string]check) url.Values {
	query, err := url.ParseQuery(raw)
	if err != nil {
		v.Add("query", "url_encoding", raw)
		return query
	}
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		check, ok := known[name]
		value := query.Get(name)
		switch {
		case !ok:
			v.Add(name, "unknown", value)
		case len(query[name]) > 1:
			v.Add(name, "once", strings.Join(query[name], ","))
		case !utf8.ValidString(value):
			v.Add(name, "utf8", value)
		case name != "wait": // which prepare takes apart
			check(v, name, value)
		}
	}
	return query
}

// waitPattern is a duration as the API writes it; time.ParseDuration takes more: signs, "1.s".
const waitPattern = "^(0|([0-9]{1,18}(\\.[0-9]{1,18})?(h|m|s|ms|us|\u00b5s|\u03bcs|ns))+)$"

// microseconds writes µ, in either of its forms, as the plain ASCII that gRPC metadata takes.
var microseconds = strings.NewReplacer("\u00b5", "u", "\u03bc", "u")

var waitShape = regexp.MustCompile(waitPattern)

func checkWait(v *rpc.Fields, value string, caller *rpc.Caller) time.Duration {
	caller.Wait = value
	wait, err := caller.WaitFor(waitMax)
	caller.Wait = microseconds.Replace(value)
	switch {
	case err != nil:
		for _, violation := range rpc.ErrorOf(err).Violations {
			v.Add(violation.Field, violation.Rule, violation.Value)
		}
	case !waitShape.MatchString(value):
		v.Add("wait", "duration", value)
	}
	return wait
}
