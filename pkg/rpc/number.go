package rpc

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
)

// safeIntegerMax is the largest integer n where n and all below it have a double of their own: 2^53 - 1. A double above it
// stands for several integers, so nobody can tell which one was meant.
const safeIntegerMax = 1<<53 - 1

// Rules of numbers in free JSON, which google.protobuf.Struct keeps as doubles.
const (
	ruleSafeInteger = "range:-9007199254740991..9007199254740991"
	ruleExactNumber = "exact_double"
)

// CheckNumber says which rule a JSON number breaks, as it is written; "" = a double keeps it exactly, so it comes back as
// the same number. Larger numbers and longer decimals are sent as text.
func CheckNumber(text string) (rule string) {
	f, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil || !isSafe(f):
		return ruleSafeInteger
	case !sameDecimal(text, strconv.FormatFloat(f, 'e', -1, 64)):
		return ruleExactNumber
	}
	return ""
}

// isSafe says whether no other integer has the same double. Doubles beyond the limit are all integers.
func isSafe(f float64) bool { return f >= -safeIntegerMax && f <= safeIntegerMax }

// sameDecimal compares two decimals by value, digit for digit. No number is ever made of them: an exponent may be huge.
func sameDecimal(a, b string) bool {
	aDigits, aPoint := significant(a)
	bDigits, bPoint := significant(b)
	return aDigits == bDigits && (aDigits == "" || aPoint == bPoint)
}

// significant is a decimal's sign and digits without zeros around them, and where the point is, counted from the first
// digit; "" = zero.
func significant(text string) (digits string, point int) {
	mantissa, exponent := text, 0
	if at := strings.IndexAny(text, "eE"); at >= 0 {
		mantissa = text[:at]
		exponent, _ = strconv.Atoi(text[at+1:]) // it fits, or the double is 0 or infinite
	}
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	all := whole + fraction
	digits = strings.TrimLeft(all, "0")
	point = len(whole) - (len(all) - len(digits)) + exponent
	digits = strings.TrimRight(digits, "0")
	if negative && digits != "" {
		digits = "-" + digits
	}
	return digits, point
}

// unsafeNumbers notes the numbers that stand for several integers, each by its path.
func (f *Fields) unsafeNumbers(path string, value *structpb.Value) {
	switch kind := value.GetKind().(type) {
	case *structpb.Value_NumberValue:
		if !isSafe(kind.NumberValue) {
			f.Add(path, ruleSafeInteger, strconv.FormatFloat(kind.NumberValue, 'g', -1, 64))
		}
	case *structpb.Value_ListValue:
		for i, inner := range kind.ListValue.GetValues() {
			f.unsafeNumbers(path+"["+strconv.Itoa(i)+"]", inner)
		}
	case *structpb.Value_StructValue:
		fields := kind.StructValue.GetFields()
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			f.unsafeNumbers(path+"."+key, fields[key])
		}
	}
}
