package page_test

import (
	"encoding/json"
	"testing"
	"time"

	"example.com/billing/pkg/page"
)

func TestCursor(t *testing.T) {
	c := page.Cursor{CreatedAt: time.Date(2025, 12, 9, 12, 0, 0, 123456000, time.UTC), ID: "00000000-0000-4000-8000-000000000001"}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back page.Cursor
	if err := json.Unmarshal(b, &back); err != nil || back != c {
		t.Errorf("%s read as %+v (%v)", b, back, err)
	}
	for _, bad := range []string{`{}`, `null`, `{"t":"2025-12-09T12:00:00Z"}`, `{"t":"2025-12-09T12:00:00Z","id":"x"}`, `{"t":"x","id":"00000000-0000-4000-8000-000000000001"}`, `[]`} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
	if at, id := (page.Cursor{}).Key(); at.Year() != 9999 || id == "" {
		t.Errorf("the beginning is %v %s", at, id)
	}
}
