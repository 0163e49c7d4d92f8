package main

import (
	"encoding/json"
	"strings"
	"testing"

	"example.com/billing/pkg/es/memory"
	"example.com/billing/services/account/ledger"
)

func TestStagesOf(t *testing.T) {
	stages, err := stagesOf("1000:10000,1000:20000")
	if err != nil || len(stages) != 2 || stages[0].Accounts != 1000 || stages[0].Events != 10_000 || stages[1].Events != 20_000 {
		t.Fatalf("%+v, %v", stages, err)
	}
	for text, want := range map[string]string{
		"":                        "numbers",
		"1000":                    "numbers",
		"1000:many":               "numbers",
		"50:10000":                "at least",
		"1000:5000":               "at least",
		"2000:20000,1000:20000":   "smaller",
		"1000:20000,1000:10000":   "smaller",
		"1000:10000,1000:10000,x": "numbers",
	} {
		if _, err := stagesOf(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %q", text, err, want)
		}
	}
}

// The history has accounts with few events, one with many, and the events asked for; it goes on from what was there.
func TestHistory(t *testing.T) {
	store := memory.New()
	h := &history{ledger: ledger.New(store), ready: make(chan []ledger.Transfer, 100)}
	for _, g := range []*stage{{Accounts: 200, Events: 5_000}, {Accounts: 300, Events: 12_000}} {
		if err := h.move(t.Context(), g.Accounts, g.Events); err != nil {
			t.Fatal(err)
		}
		if h.events > g.Events || h.events <= g.Events-eventsOfTransfer || len(h.ledger.Accounts) != g.Accounts {
			t.Errorf("%d events, %d accounts; want %d and %d", h.events, len(h.ledger.Accounts), g.Events, g.Accounts)
		}
		many := h.ledger.Accounts[longOne].Root.Version
		if want := int64(g.Events / longShare); many < want-1 || many > want+1 {
			t.Errorf("the account with many events has %d, want %d", many, want)
		}
		if b := h.ledger.Accounts[longOne].Root.State.Balance; b.IntPart() < granted-1 || b.IntPart() > granted+1 {
			t.Errorf("the account with many events holds %s", b)
		}
		for _, a := range h.ledger.Accounts[shortFirst : shortFirst+shorts] {
			if a.Root.Version != shortEvents {
				t.Fatalf("an account has %d events, want %d", a.Root.Version, shortEvents)
			}
		}
	}
	close(h.ready)
	transfers := 0
	for ts := range h.ready {
		transfers += len(ts)
	}
	if want := (h.events - len(h.ledger.Accounts)) / eventsOfTransfer; transfers != want || h.ledger.Events != len(h.ledger.Accounts)+2*want {
		t.Errorf("%d transfers handed over and %d events of accounts, for %d", transfers, h.ledger.Events, want)
	}
}

func TestStageMarshals(t *testing.T) {
	b, err := json.Marshal(&stage{Accounts: 5, Loads: []*result{{Name: "uniform", CompletedPerS: 7}}, Queries: []query{{What: "q", P50: 1}}})
	if err != nil || !strings.Contains(string(b), `"uniform":{`) || !strings.Contains(string(b), `"accounts":5`) || !strings.Contains(string(b), `"p50_ms":1`) {
		t.Errorf("%s, %v", b, err)
	}
}
