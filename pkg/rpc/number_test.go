package rpc_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"example.com/billing/pkg/rpc"
)

func TestCheckNumber(t *testing.T) {
	const integer, exact = "range:-9007199254740991..9007199254740991", "exact_double"
	for text, want := range map[string]string{
		"0": "", "-0": "", "0.0": "", "0e999999999999": "", "1": "", "-1": "", "1.0": "", "1e3": "", "10E-1": "", "1.50": "", "0.1": "", "-12.34": "",
		"9007199254740991": "", "-9007199254740991": "", "9007199254740991.0": "", "0.000001": "", "1e-300": "", "123456789.123456": "",
		"0." + strings.Repeat("0", 400) + "1e401": "",
		"9007199254740992":                        integer, "9007199254740993": integer, "-9007199254740993": integer, "1e29": integer,
		"100000000000000000000000000000": integer, "1e400": integer, "-1e400": integer, "1e999999999999": integer,
		"0.1234567890123456789": exact, "4503599627370496.3": exact, "0.30000000000000000001": exact, "1e-400": exact, "1e-999999999999": exact,
		"9007199254740990.5": exact, "1.00000000000000000000000001": exact,
	} {
		if got := rpc.CheckNumber(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// Over gRPC only doubles arrive: those beyond the limit stand for several integers.
func TestStructRefusesUnsafeNumbers(t *testing.T) {
	value, err := structpb.NewStruct(map[string]any{
		"fine": 9007199254740991, "half": 0.5, "id": 9007199254740993, "list": []any{1, map[string]any{"n": -1e29}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var v rpc.Fields
	v.Struct("metadata", value, 1000)
	got := rpc.ErrorOf(v.Err()).Violations
	const rule = "range:-9007199254740991..9007199254740991"
	want := []rpc.Violation{
		{Field: "metadata.id", Rule: rule, Value: "9.007199254740992e+15"}, {Field: "metadata.list[1].n", Rule: rule, Value: "-1e+29"},
	}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v", got)
	}
}
