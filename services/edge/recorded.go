package edge

import (
	"fmt"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/es"
	eventv1 "example.com/billing/proto/gen/go/billing/event/v1"
)

// Recorded is a stored event as histories and watches show it.
func Recorded(e es.Event) (*eventv1.RecordedEvent, error) {
	data := &structpb.Struct{}
	if err := data.UnmarshalJSON(e.Data); err != nil {
		return nil, fmt.Errorf("show %s version %d: %w", e.Stream, e.Version, err)
	}
	version, err := Version(e.Version)
	if err != nil {
		return nil, fmt.Errorf("show an event of %s: %w", e.Stream, err)
	}
	actor, _ := e.Metadata["actor"].(string)
	return &eventv1.RecordedEvent{
		Version: version, EventId: e.ID, EventType: e.Type,
		OccurredAt: timestamppb.New(e.At), RecordedAt: timestamppb.New(e.RecordedAt),
		CorrelationId: e.CorrelationID, CausationId: e.CausationID, Actor: actor,
		TransactionId: text(e.Metadata, "sagaId"), Step: text(e.Metadata, "step"), CausedBy: text(e.Metadata, "causedBy"), Data: data,
	}, nil
}

// text is an optional text of an event's metadata.
func text(metadata map[string]any, key string) *string {
	s, ok := metadata[key].(string)
	if !ok || s == "" {
		return nil
	}
	return &s
}
