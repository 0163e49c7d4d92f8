package outbox

import (
	"strconv"

	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
)

// Place is where an event stands in the log of the database that published it.
type Place struct{ Incarnation, Position int64 }

// PlaceOf reads a message's headers; ok is false where it has none, as before there were incarnations.
func PlaceOf(m kafka.Message) (p Place, ok bool) {
	var errs [2]error
	p.Position, errs[0] = strconv.ParseInt(m.Header(PositionHeader), 10, 64)
	p.Incarnation, errs[1] = strconv.ParseInt(m.Header(IncarnationHeader), 10, 64)
	return p, errs[0] == nil && errs[1] == nil
}

// Void reports whether an event is not part of the log any more: it stood beyond the place where a later incarnation began.
func (p Place) Void(all []espg.Incarnation) bool {
	for _, i := range all {
		if i.Number > p.Incarnation && i.FromPosition < p.Position {
			return true
		}
	}
	return false
}
