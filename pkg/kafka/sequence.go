package kafka

import "fmt"

// Verdict says what to do with a version that arrived.
type Verdict int

// The verdicts.
const (
	Apply     Verdict = iota + 1 // the next one
	Duplicate                    // seen before: drop it
	Gap                          // versions in between are missing: fetch them first
)

// String returns the verdict's name.
func (v Verdict) String() string {
	switch v {
	case Apply:
		return "apply"
	case Duplicate:
		return "duplicate"
	case Gap:
		return "gap"
	}
	return fmt.Sprintf("Verdict(%d)", int(v))
}

// Next checks that a key's versions arrive one after another: have is the
// version the caller's own row carries (0 = none yet), got the one that arrived.
// A log alone does not promise it: producers resend. Pure, safe for concurrent use.
func Next(have, got int64) Verdict {
	switch {
	case got <= have:
		return Duplicate
	case got == have+1:
		return Apply
	}
	return Gap
}

// GapError tells that versions Have+1 … Got-1 of a key have not arrived.
type GapError struct {
	Key       string
	Have, Got int64
}

// Error names the expected and the actual version.
func (e GapError) Error() string {
	return fmt.Sprintf("kafka: gap in %s: expected version %d, got %d", e.Key, e.Have+1, e.Got)
}
