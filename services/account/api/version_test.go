package api

import (
	"testing"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/money"
	"example.com/billing/services/account"
)

// A version beyond the API's 32 bits is an error wherever an account is shown.
func TestVersionIsNeverWrapped(t *testing.T) {
	const beyond = 1<<32 + 7
	usd, _ := money.Default().Find("USD")
	a := account.Account{Version: beyond, Currency: usd.Code}
	if p, err := toProto("a", a); err == nil {
		t.Errorf("account: version %d", p.GetVersion())
	}
	if p, err := balanceOf("a", a); err == nil {
		t.Errorf("balance: version %d", p.GetVersion())
	}
	if p, err := (line{event: es.Event{Version: beyond}}).toProto(a); err == nil {
		t.Errorf("statement: version %d", p.GetVersion())
	}
}
