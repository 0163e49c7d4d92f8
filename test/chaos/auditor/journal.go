package auditor

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

// Request is one line of the journal that whoever asked the system kept: what was asked, and what came of it. The same key twice
// is the same request, asked again after it was answered.
type Request struct {
	Op          string `json:"op"` // open, topup, withdrawal, transfer, payment, refund, hold, capture or void
	Key         string `json:"key"`
	Source      string `json:"source,omitempty"` // of an account that is opened: empty
	Destination string `json:"destination,omitempty"`
	Amount      string `json:"amount,omitempty"`
	Currency    string `json:"currency,omitempty"`
	On          string `json:"on,omitempty"`   // the payment of a refund, the hold of a capture or void
	Type        string `json:"type,omitempty"` // of an account that is opened

	Answer   Answer `json:"answer"`
	ID       string `json:"id,omitempty"`     // accepted: of the transaction, hold or account
	Status   string `json:"status,omitempty"` // accepted: what the last answer said of it
	Reason   string `json:"reason,omitempty"` // refused: why
	Attempts int    `json:"attempts"`         // how often it was asked until it was answered
}

// Answer is what became of a request.
type Answer string

// The answers.
const (
	Accepted   Answer = "accepted"
	Refused    Answer = "refused"
	Unanswered Answer = "unanswered" // given up
)

// ReadJournal reads a journal: one JSON object a line.
func ReadJournal(path string) ([]Request, error) {
	f, err := os.Open(path) //nolint:gosec // the caller says which
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	var requests []Request
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r Request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("journal line %d: %w", len(requests)+1, err)
		}
		requests = append(requests, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return requests, nil
}
