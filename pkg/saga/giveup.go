package saga

import "time"

// CanGiveUp reports whether a saga can still be undone as a whole, as far as its state knows: it goes forward, and its pivot is not
// known to be done. Whether the pivot was done all the same, its register is asked before anything is undone.
func CanGiveUp(d Definition, s State) bool {
	if s.Status != InProgress || s.ErrorReason != "" || !d.CanBeGivenUp() {
		return false
	}
	i := d.pivot()
	return i < 0 || s.Records()[i].Status == StepPending
}

// GiveUp is the state of a saga that goes forward no more: steps without an answer may have been done, here or by another engine
// that was ahead of the stored state, so all of them are undone or cancelled. Only where CanGiveUp.
func GiveUp(d Definition, s State, reason, message string, now time.Time) State {
	s = s.with(func(records []StepRecord) {
		for i := range records {
			if records[i].Status == StepPending && d.Steps[i].Kind != Retriable {
				records[i].Status = StepUnknown
			}
		}
	})
	s.Status, s.ErrorReason, s.ErrorMessage = Compensating, reason, message
	s.UpdatedAt, s.WakeAt, s.Naps = round(now), time.Time{}, 0
	return s.tell(Entry{Type: EntryGivenUp, Reason: reason, Message: message, At: s.UpdatedAt})
}

// ReasonTimedOut is the error reason of a saga that its deadline gave up.
const ReasonTimedOut = "SAGA_TIMED_OUT"

// Due is when the passing of time alone changes the saga (Expire); zero = never.
func Due(d Definition, s State) (due time.Time) {
	if s.Status != InProgress || s.ErrorReason != "" {
		return due
	}
	if d.Deadline > 0 && !s.Overdue {
		due = latest(s.CreatedAt, s.Began).Add(d.Deadline)
	}
	if !CanGiveUp(d, s) {
		return due
	}
	began := began(s)
	for _, next := range stage(d, s) {
		if next.Step.Deadline <= 0 {
			continue
		}
		if at := began.Add(next.Step.Delay + next.Step.Deadline); due.IsZero() || at.Before(due) {
			due = at
		}
	}
	return due
}

// Expire is the state of a saga whose time has come: given up, or, after its pivot, overdue.
func Expire(d Definition, s State, now time.Time) State {
	if CanGiveUp(d, s) {
		return GiveUp(d, s, ReasonTimedOut, "The saga was not done in time.", now)
	}
	s.Overdue, s.UpdatedAt = true, round(now)
	return s.tell(Entry{Type: EntryOverdue, At: s.UpdatedAt})
}

// Wake is when the saga's next steps may begin; zero = at once.
func Wake(d Definition, s State) time.Time {
	if s.Status != InProgress || s.ErrorReason != "" {
		return time.Time{}
	}
	for _, next := range stage(d, s) {
		if next.Step.Delay > 0 {
			return began(s).Add(next.Step.Delay)
		}
	}
	return time.Time{}
}

// began is when the step before the next ones had ended.
func began(s State) time.Time {
	at := latest(s.CreatedAt, s.Began)
	for _, r := range s.Records() {
		at = latest(at, r.EndedAt)
	}
	return at
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
