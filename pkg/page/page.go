// Package page is how long lists are read: newest first, page by page, each beginning behind a cursor.
package page

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Cursor is a place in a list that is ordered newest first, by time of creation and id. The zero value is before the newest.
type Cursor struct {
	CreatedAt time.Time
	ID        string // UUID
}

// cursor is the cursor's JSON.
type cursor struct {
	CreatedAt time.Time `json:"t"`
	ID        uuid.UUID `json:"id"`
}

// Key is what rows after the cursor compare below: (created_at, id) < (at, id).
func (c Cursor) Key() (at time.Time, id string) {
	if c.ID == "" {
		return time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), uuid.Max.String()
	}
	return c.CreatedAt, c.ID
}

// MarshalJSON writes the cursor for a page token.
func (c Cursor) MarshalJSON() ([]byte, error) {
	id, err := uuid.Parse(c.ID)
	if err != nil {
		return nil, fmt.Errorf("cursor: %w", err)
	}
	return json.Marshal(cursor{CreatedAt: c.CreatedAt, ID: id})
}

// UnmarshalJSON reads what MarshalJSON wrote. Tokens come from outside: it refuses what is no time and UUID.
func (c *Cursor) UnmarshalJSON(b []byte) error {
	var v cursor
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	if v.ID == uuid.Nil || v.CreatedAt.Year() < 1 || v.CreatedAt.Year() > 9999 {
		return fmt.Errorf("cursor: no place in a list: %s", b)
	}
	*c = Cursor{CreatedAt: v.CreatedAt, ID: v.ID.String()}
	return nil
}
