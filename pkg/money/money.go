// Package money checks and prints amounts. An amount is a decimal string at its currency's scale outside, a
// decimal.Decimal inside, and never a float.
package money

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/shopspring/decimal"
)

// Kind says what a currency is.
type Kind string

// The kinds.
const (
	Fiat   Kind = "fiat"
	Crypto Kind = "crypto"
	Points Kind = "points"
)

// Currency is a unit of account.
type Currency struct {
	Code  string
	Scale int32 // digits after the point
	Kind  Kind
}

// Format prints an amount at the currency's scale: "50.00".
func (c Currency) Format(d decimal.Decimal) string { return d.StringFixed(c.Scale) }

// Catalogue is the set of currencies that a system knows. It is immutable.
type Catalogue struct{ byCode map[string]Currency }

// Default has USD, EUR, GBP, JPY, BTC, ETH and POINTS.
func Default() Catalogue {
	return NewCatalogue(
		Currency{"USD", 2, Fiat}, Currency{"EUR", 2, Fiat}, Currency{"GBP", 2, Fiat}, Currency{"JPY", 0, Fiat},
		Currency{"BTC", 8, Crypto}, Currency{"ETH", 18, Crypto}, Currency{"POINTS", 0, Points},
	)
}

// NewCatalogue makes a catalogue.
func NewCatalogue(currencies ...Currency) Catalogue {
	c := Catalogue{byCode: make(map[string]Currency, len(currencies))}
	for _, x := range currencies {
		c.byCode[x.Code] = x
	}
	return c
}

// codePattern is a currency code's shape.
var codePattern = regexp.MustCompile(`^[A-Z][A-Z0-9]{1,11}$`)

// scaleMax is the most digits after the point that an amount may have.
const scaleMax = 18

// With returns a catalogue that has further currencies, each written CODE:SCALE:KIND, such as XAU:4:crypto. A code that is
// there already is an error: changing the scale of a currency in use would change what its amounts mean.
func (c Catalogue) With(specs ...string) (Catalogue, error) {
	all := slices.Collect(maps.Values(c.byCode))
	seen := maps.Clone(c.byCode)
	for _, spec := range specs {
		part := strings.Split(spec, ":")
		if len(part) != 3 || !codePattern.MatchString(part[0]) {
			return Catalogue{}, fmt.Errorf("currency %q must be CODE:SCALE:KIND, such as XAU:4:crypto", spec)
		}
		scale, err := strconv.Atoi(part[1])
		if err != nil || scale < 0 || scale > scaleMax {
			return Catalogue{}, fmt.Errorf("currency %q: the scale must be 0 to %d", spec, scaleMax)
		}
		kind := Kind(part[2])
		if !slices.Contains([]Kind{Fiat, Crypto, Points}, kind) {
			return Catalogue{}, fmt.Errorf("currency %q: the kind must be %s, %s or %s", spec, Fiat, Crypto, Points)
		}
		x := Currency{Code: part[0], Scale: int32(scale), Kind: kind} //nolint:gosec // at most 18
		if _, taken := seen[x.Code]; taken {
			return Catalogue{}, fmt.Errorf("currency %q: %s is there already", spec, x.Code)
		}
		seen[x.Code] = x
		all = append(all, x)
	}
	return NewCatalogue(all...), nil
}

// Find returns the currency with this code.
func (c Catalogue) Find(code string) (Currency, bool) {
	x, ok := c.byCode[code]
	return x, ok
}

// Codes lists the codes in alphabetical order.
func (c Catalogue) Codes() []string {
	codes := make([]string, 0, len(c.byCode))
	for code := range c.byCode {
		codes = append(codes, code)
	}
	slices.Sort(codes)
	return codes
}

// pattern is an amount's shape: at most 18 digits before the point and 18 after it, no sign, no leading zeros.
var pattern = regexp.MustCompile(`^(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?$`)

// Error says which rule an amount breaks.
type Error struct {
	Rule  string
	Value string
}

// Error names rule and value.
func (e *Error) Error() string { return fmt.Sprintf("%q %s", e.Value, e.Rule) }

// Parse reads an amount of zero or more. It returns an *Error if the shape is wrong or has more digits after the point
// than the currency.
func (c Currency) Parse(s string) (decimal.Decimal, error) {
	if !pattern.MatchString(s) {
		return decimal.Decimal{}, &Error{Rule: "must be a decimal such as 50.00 or 50, with at most 18 digits before and 18 after the point", Value: s}
	}
	if _, fraction, ok := strings.Cut(s, "."); ok && len(fraction) > int(c.Scale) {
		return decimal.Decimal{}, &Error{Rule: fmt.Sprintf("must have at most %d digits after the point, as %s has", c.Scale, c.Code), Value: s}
	}
	d, err := decimal.NewFromString(s)
	if err != nil {
		return decimal.Decimal{}, &Error{Rule: "must be a decimal", Value: s}
	}
	return d, nil
}

// ParsePositive is Parse for an amount above zero.
func (c Currency) ParsePositive(s string) (decimal.Decimal, error) {
	d, err := c.Parse(s)
	if err == nil && !d.IsPositive() {
		return decimal.Decimal{}, &Error{Rule: "must be above zero", Value: s}
	}
	return d, err
}

// ParseSigned is Parse for a limit, which may be below zero.
func (c Currency) ParseSigned(s string) (decimal.Decimal, error) {
	unsigned, negative := strings.CutPrefix(s, "-")
	d, err := c.Parse(unsigned)
	if err != nil {
		err.(*Error).Value = s //nolint:errorlint,forcetypeassert // Parse returns nothing else
		return d, err
	}
	if negative {
		d = d.Neg()
	}
	return d, nil
}
