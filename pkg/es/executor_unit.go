package es

import "slices"

// unit is commands that have to be decided one after another: those of one stream, or of several streams that commands on
// two streams tie together. It commits as one item: all or nothing.
type unit[S, C any] struct {
	streams  []Stream
	roots    []Root[S]        // in the order of streams
	commands []int            // indexes into the group
	again    bool             // an append or a load failed before: a key of these commands may be in the store
	prior    map[string]Event // events found by id: keys used before; nil = not looked up
	err      error            // of the last append
}

// index is a stream's place in the unit.
func (u *unit[S, C]) index(streamID string) int {
	return slices.IndexFunc(u.streams, func(s Stream) bool { return s.ID == streamID })
}

// split puts commands that share a stream into one unit, in order of first appearance.
func (x *Executor[S, C]) split(cmds []Command[C]) []*unit[S, C] {
	var units []*unit[S, C]
	of := make(map[string]*unit[S, C], len(cmds)) // by stream id
	unitOf := func(id string) *unit[S, C] {
		u := of[id]
		if u == nil {
			u = &unit[S, C]{streams: []Stream{{Type: x.decider.Type, ID: id}}}
			of[id] = u
			units = append(units, u)
		}
		return u
	}
	for i, c := range cmds {
		u := unitOf(c.StreamID)
		if c.OtherID != "" {
			if other := unitOf(c.OtherID); other != u {
				u.streams, u.commands = append(u.streams, other.streams...), append(u.commands, other.commands...)
				slices.Sort(u.commands)
				for _, s := range other.streams {
					of[s.ID] = u
				}
				other.streams = nil // it has become part of u
			}
		}
		u.commands = append(u.commands, i)
	}
	units = slices.DeleteFunc(units, func(u *unit[S, C]) bool { return len(u.streams) == 0 })
	for _, u := range units {
		u.roots = make([]Root[S], len(u.streams))
	}
	return units
}

// creates: the first of these commands that names the stream believes that it does not exist yet.
func creates[C any](cmds []Command[C], of []int, streamID string) bool {
	for _, i := range of {
		if c := cmds[i]; c.StreamID == streamID || c.OtherID == streamID {
			return c.StreamID == streamID && c.Creates
		}
	}
	return false
}
