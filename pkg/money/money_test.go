package money_test

import (
	"strings"
	"testing"

	"github.com/shopspring/decimal"
	"pgregory.net/rapid"

	"example.com/billing/pkg/money"
)

func TestParse(t *testing.T) {
	catalogue := money.Default()
	for _, tc := range []struct {
		code, in, want string // want "" = refused
	}{
		{"USD", "50.00", "50.00"},
		{"USD", "50", "50.00"},
		{"USD", "0.5", "0.50"},
		{"USD", "0", "0.00"},
		{"JPY", "50", "50"},
		{"ETH", "0.000000000000000001", "0.000000000000000001"},
		{"USD", "999999999999999999.99", "999999999999999999.99"},
		{"USD", "50.001", ""},
		{"USD", "50.000", ""},
		{"JPY", "50.0", ""},
		{"USD", "1000000000000000000", ""},
		{"USD", "-1.00", ""},
		{"USD", "+1.00", ""},
		{"USD", "01.00", ""},
		{"USD", "1.", ""},
		{"USD", ".5", ""},
		{"USD", "1e2", ""},
		{"USD", "1,000.00", ""},
		{"USD", " 1.00", ""},
		{"USD", "1.00\n", ""},
		{"USD", "NaN", ""},
		{"USD", "١", ""},
		{"USD", "", ""},
	} {
		c, ok := catalogue.Find(tc.code)
		if !ok {
			t.Fatalf("no currency %s", tc.code)
		}
		d, err := c.Parse(tc.in)
		switch {
		case err != nil && tc.want != "":
			t.Errorf("%s %q: %v", tc.code, tc.in, err)
		case err == nil && c.Format(d) != tc.want:
			t.Errorf("%s %q: got %s, want %q", tc.code, tc.in, c.Format(d), tc.want)
		case err != nil && !strings.Contains(err.Error(), "must"):
			t.Errorf("%s %q: the error names no rule: %v", tc.code, tc.in, err)
		}
	}
	usd, _ := catalogue.Find("USD")
	if _, err := usd.ParsePositive("0.00"); err == nil {
		t.Error("zero was taken as an amount above zero")
	}
	if d, err := usd.ParseSigned("-12.50"); err != nil || usd.Format(d) != "-12.50" {
		t.Errorf("a signed amount: %v, %v", d, err)
	}
}

// What is printed parses to what it was, in every currency.
func TestFormatParses(t *testing.T) {
	catalogue := money.Default()
	rapid.Check(t, func(t *rapid.T) {
		c, _ := catalogue.Find(rapid.SampledFrom(catalogue.Codes()).Draw(t, "currency"))
		d := decimal.New(rapid.Int64Range(0, 1<<53).Draw(t, "units"), -c.Scale)
		back, err := c.Parse(c.Format(d))
		if err != nil || !back.Equal(d) {
			t.Fatalf("%s printed as %s, read as %s (%v)", d, c.Format(d), back, err)
		}
	})
}

func TestFurtherCurrencies(t *testing.T) {
	c, err := money.Default().With("XAU:4:crypto", "MILES:0:points")
	if err != nil {
		t.Fatal(err)
	}
	if x, ok := c.Find("XAU"); !ok || x.Scale != 4 || x.Kind != money.Crypto {
		t.Errorf("XAU is %+v", x)
	}
	if _, ok := c.Find("USD"); !ok || len(c.Codes()) != len(money.Default().Codes())+2 {
		t.Errorf("codes %v", c.Codes())
	}
	for _, bad := range []string{"", "XAU", "XAU:4", "xau:4:crypto", "XAU:19:crypto", "XAU:-1:crypto", "XAU:4:metal", "USD:3:fiat", "XAU:4:crypto:x"} {
		if _, err := money.Default().With(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
