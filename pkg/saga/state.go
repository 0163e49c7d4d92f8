package saga

import (
	"encoding/json"
	"time"
)

// Status is where a saga stands.
type Status string

// The statuses.
const (
	InProgress     Status = "in_progress"
	Completed      Status = "completed"
	Compensating   Status = "compensating"
	Compensated    Status = "compensated" // undone
	Failed         Status = "failed"      // refused before any effect
	NeedsAttention Status = "needs_attention"
)

// Statuses lists all of them.
func Statuses() []Status {
	return []Status{InProgress, Completed, Compensating, Compensated, Failed, NeedsAttention}
}

// Ended reports whether nothing more will happen.
func (s Status) Ended() bool { return s == Completed || s == Compensated || s == Failed }

// Rests reports whether nothing more happens by itself: the saga has ended, or waits for a person.
func (s Status) Rests() bool { return s.Ended() || s == NeedsAttention }

// State is everything known of one saga. It is a value: changes return a new one.
type State struct {
	SagaID     string `json:"sagaId"`
	SagaType   string `json:"sagaType"`
	Definition int    `json:"definition"` // version of the definition it started with
	Status     Status `json:"status"`

	CurrentStep int                        `json:"currentStep"` // steps done, and those skipped before them
	Steps       []string                   `json:"steps"`
	Progress    []StepRecord               `json:"progress,omitempty"` // of each step; see Records
	Results     map[string]json.RawMessage `json:"results,omitempty"`  // by step; a step without a result has no entry

	ErrorReason  string         `json:"errorReason,omitempty"`
	ErrorMessage string         `json:"errorMessage,omitempty"`
	Before       *Before        `json:"before,omitempty"` // only in needs_attention
	Undone       int            `json:"undone,omitempty"` // steps of those done that are undone again
	Actions      []Compensation `json:"compensationActions,omitempty"`
	Timeline     []Entry        `json:"timeline,omitempty"` // see History

	Input         json.RawMessage `json:"input"` // the trigger's data
	Subjects      []string        `json:"subjects,omitempty"`
	CorrelationID string          `json:"correlationId"`
	CausedBy      string          `json:"causedBy"` // id of the trigger event
	Metadata      map[string]any  `json:"metadata,omitempty"`

	Overdue   bool      `json:"overdue,omitempty"` // its deadline passed after its pivot was done
	Began     time.Time `json:"began,omitzero"`    // when work on it began, or a person last sent it on: deadlines count from then
	WakeAt    time.Time `json:"wakeAt,omitzero"`   // nobody works on it before then
	Naps      int       `json:"naps,omitempty"`    // how often it was put to sleep for want of the answer that it waits for
	Revision  int64     `json:"revision"`          // of the stored row; a write with another one is refused
	Epoch     int64     `json:"-"`                 // of the engine it belongs to, as stored; 0 = none's
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// StepStatus is where one step of a saga stands.
type StepStatus string

// The statuses of steps.
const (
	StepPending   StepStatus = "pending"   // not done as far as the saga knows
	StepDone      StepStatus = "done"      //
	StepSkipped   StepStatus = "skipped"   // its condition does not hold, or a person skipped it
	StepRefused   StepStatus = "refused"   // a rule said no
	StepUnknown   StepStatus = "unknown"   // the saga was given up before its answer: it may have been done
	StepUndone    StepStatus = "undone"    // done, and undone again
	StepCancelled StepStatus = "cancelled" // not done, and never will be
)

// StepRecord tells of one step. Times are the orchestrator's.
type StepRecord struct {
	Status    StepStatus `json:"status"`
	StartedAt time.Time  `json:"startedAt,omitzero"`
	EndedAt   time.Time  `json:"endedAt,omitzero"`
	Attempts  int        `json:"attempts,omitempty"` // by the engine that got the answer
}

// Before is what a saga was when it came to need attention, and what it was doing: where it can go on from.
type Before struct {
	Action       string `json:"action"`
	Status       Status `json:"status"`
	ErrorReason  string `json:"errorReason,omitempty"`
	ErrorMessage string `json:"errorMessage,omitempty"`
}

// Compensation is one thing undone.
type Compensation struct {
	Action    string          `json:"action"`
	Result    json.RawMessage `json:"result,omitempty"`
	Timestamp time.Time       `json:"timestamp"`
	StartedAt time.Time       `json:"startedAt,omitzero"`
	Attempts  int             `json:"attempts,omitempty"`
}

// Trigger starts a saga.
type Trigger struct {
	SagaID        string
	EventID       string
	EventType     string
	Data          json.RawMessage
	CorrelationID string
	Metadata      map[string]any
	Subjects      []string // what the saga can be found by, such as its accounts
	At            time.Time
}

// NewState is the state of a saga that begins.
func NewState(d Definition, t Trigger, now time.Time) State {
	at := round(t.At)
	s := State{
		SagaID: t.SagaID, SagaType: d.Name, Definition: d.Version, Status: InProgress, Steps: d.StepNames(), Input: t.Data, Subjects: t.Subjects,
		CorrelationID: t.CorrelationID, CausedBy: t.EventID, Metadata: t.Metadata, Began: round(now), CreatedAt: at, UpdatedAt: round(now),
		Progress: make([]StepRecord, len(d.Steps)), Timeline: []Entry{{Type: EntryStarted, At: at}},
	}
	for i, step := range d.Steps {
		s.Progress[i].Status = StepPending
		if step.When != nil && !step.When.Holds(t.Data) {
			s.Progress[i].Status = StepSkipped
		}
	}
	s.CurrentStep = passed(s.Progress)
	return s
}

// TenantID is the tenant that the saga belongs to, by its metadata.
func (s State) TenantID() string {
	id, _ := s.Metadata["tenantId"].(string)
	return id
}

// OwnerStored is the epoch that the state belongs to once it is stored: nobody's where it rests, or sleeps.
func (s State) OwnerStored() int64 {
	if s.Status.Rests() || !s.WakeAt.IsZero() {
		return 0
	}
	return s.Epoch
}

// Records tells of each step, in order. Of a state that was stored before there were records they are made from its counts.
func (s State) Records() []StepRecord {
	if len(s.Progress) == len(s.Steps) {
		return s.Progress
	}
	all := make([]StepRecord, len(s.Steps))
	refused := s.ErrorReason != ""
	if s.Before != nil {
		refused = s.Before.ErrorReason != ""
	}
	for i := range all {
		switch {
		case i < s.CurrentStep-s.Undone:
			all[i].Status = StepDone
		case i < s.CurrentStep:
			all[i].Status = StepUndone
		case i == s.CurrentStep && refused:
			all[i].Status = StepRefused
		default:
			all[i].Status = StepPending
		}
	}
	return all
}

// with is the state with a changed copy of the records, and what is counted from them.
func (s State) with(change func([]StepRecord)) State {
	records := append([]StepRecord(nil), s.Records()...)
	change(records)
	s.Progress, s.CurrentStep, s.Undone = records, passed(records), 0
	for _, r := range records {
		if r.Status == StepUndone {
			s.Undone++
		}
	}
	return s
}

// mark is the state with one step's record changed.
func (s State) mark(i int, to StepStatus) State {
	return s.with(func(records []StepRecord) { records[i].Status = to })
}

// passed counts the steps done, undone or not, and those skipped before them.
func passed(records []StepRecord) (n int) {
	whole := true
	for _, r := range records {
		switch r.Status {
		case StepDone, StepUndone:
			n++
		case StepSkipped:
			if whole {
				n++
			}
		default:
			whole = false
		}
	}
	return n
}

func round(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
