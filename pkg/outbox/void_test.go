package outbox

import (
	"testing"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
)

func TestAnEventBeyondTheBeginningOfALaterIncarnationIsVoid(t *testing.T) {
	all := []espg.Incarnation{{Number: 1}, {Number: 2, FromPosition: 10}, {Number: 3, FromPosition: 12}}
	for p, want := range map[Place]bool{
		{1, 10}: false, {1, 11}: true, {1, 100}: true, // the second one began behind position 10
		{2, 11}: false, {2, 12}: false, {2, 13}: true,
		{3, 11}: false, {3, 100}: false,
	} {
		if got := p.Void(all); got != want {
			t.Errorf("position %d of incarnation %d: void %v, want %v", p.Position, p.Incarnation, got, want)
		}
	}
}

func TestPlaceOfAMessage(t *testing.T) {
	m := messages([]event{{position: 7}}, 3)[0]
	if p, ok := PlaceOf(m); !ok || p != (Place{3, 7}) {
		t.Errorf("%+v, %v", p, ok)
	}
	if _, ok := PlaceOf(kafka.Message{}); ok {
		t.Error("a message without headers has a place")
	}
}
