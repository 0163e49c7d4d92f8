package projection

import "time"

// Cursor is a place in a list that is ordered newest first, by time of creation and id. The zero value is before the newest.
type Cursor struct {
	CreatedAt time.Time `json:"t"`
	ID        string    `json:"id"` // UUID
}

// Key is what rows after the cursor compare below: (created_at, id) < (at, id).
func (c Cursor) Key() (at time.Time, id string) {
	if c.ID == "" {
		return time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff"
	}
	return c.CreatedAt, c.ID
}
