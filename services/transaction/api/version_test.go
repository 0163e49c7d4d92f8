package api

import (
	"testing"

	"example.com/billing/services/transaction"
)

// A version beyond the API's 32 bits is an error wherever a transaction is shown.
func TestVersionIsNeverWrapped(t *testing.T) {
	x := transaction.Transaction{Version: 1<<32 + 7}
	if p, err := toProto("t", x); err == nil {
		t.Errorf("transaction: version %d", p.GetVersion())
	}
	if p, err := holdProto("t", x); err == nil {
		t.Errorf("hold: version %d", p.GetVersion())
	}
}
