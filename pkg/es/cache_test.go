package es

import (
	"fmt"
	"testing"
)

// The cache is bounded by bytes, not by the number of aggregates, and forgets what was used longest ago.
func TestCacheIsBoundedByBytes(t *testing.T) {
	one := cacheEntryBytes + cacheDecodeFactor*1000
	c, err := newCache[string](10 * one)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		c.put(fmt.Sprint(i), Root[string]{State: fmt.Sprint(i), Version: 1}, 1000, 1)
		if c.bytes > 10*one {
			t.Fatalf("%d bytes after %d aggregates", c.bytes, i+1)
		}
	}
	if _, ok := c.get("89", 1); ok || c.lru.Len() != 10 {
		t.Errorf("%d aggregates are kept, an old one among them: %v", c.lru.Len(), ok)
	}
	if r, ok := c.get("90", 1); !ok || r.State != "90" {
		t.Errorf("90 is %v (%v)", r, ok)
	}
	c.put("new", Root[string]{}, 1000, 1)
	if _, ok := c.get("90", 1); !ok {
		t.Error("the one used last was forgotten")
	}
	before := c.bytes
	c.put("90", Root[string]{State: "again"}, sameSize, 1)
	if c.bytes != before {
		t.Errorf("unchanged state: %d bytes became %d", before, c.bytes)
	}
	c.put("huge", Root[string]{}, 100*one, 1)
	if _, ok := c.get("huge", 1); ok || c.bytes > 10*one {
		t.Errorf("what does not fit is kept: %d bytes", c.bytes)
	}
	for i := range 100 {
		c.remove(fmt.Sprint(i))
	}
	c.remove("new")
	if c.bytes != 0 || c.lru.Len() != 0 {
		t.Errorf("%d bytes for %d aggregates", c.bytes, c.lru.Len())
	}
}
