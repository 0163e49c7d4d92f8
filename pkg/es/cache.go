package es

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// What a cached aggregate is taken to cost: its snapshot, which decodes to several times its size, and the entry itself.
const (
	cacheEntryBytes   = 512
	cacheDecodeFactor = 8
	cacheUnknownBytes = 1024 // a state without a snapshot to measure
	sameSize          = -1
)

// cache keeps the aggregates used last, up to a number of bytes. Safe for concurrent use.
type cache[S any] struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[string, cached[S]]
	bytes int
	most  int
}

type cached[S any] struct {
	root        Root[S]
	bytes       int
	incarnation int64 // of the store; in another one the root means nothing
}

func newCache[S any](bytesMax int) (*cache[S], error) {
	c := &cache[S]{most: bytesMax}
	var err error
	// The bound is in bytes; the number of entries that fit is one of the smallest.
	c.lru, err = simplelru.NewLRU(max(bytesMax/cacheEntryBytes, 1), func(_ string, v cached[S]) { c.bytes -= v.bytes })
	return c, err
}

func (c *cache[S]) get(id string, incarnation int64) (Root[S], bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.lru.Get(id)
	if !ok || v.incarnation != incarnation {
		return Root[S]{}, false
	}
	return v.root, true
}

// put keeps a root; size is its state's encoded, in bytes, or sameSize if that did not change: then only a root that is kept
// already is.
func (c *cache[S]) put(id string, r Root[S], size int, incarnation int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, known := c.lru.Peek(id)
	v := cached[S]{root: r, bytes: cacheEntryBytes + cacheDecodeFactor*size, incarnation: incarnation}
	if size == sameSize {
		if !known || old.incarnation != incarnation {
			return
		}
		v.bytes = old.bytes
	}
	if known {
		c.lru.Remove(id) // the eviction takes its bytes off
	}
	c.bytes += v.bytes
	c.lru.Add(id, v)
	for c.bytes > c.most && c.lru.Len() > 0 {
		c.lru.RemoveOldest()
	}
}

func (c *cache[S]) remove(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(id)
}

// removeBelow drops a root of an earlier version.
func (c *cache[S]) removeBelow(id string, version int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.lru.Peek(id); ok && v.root.Version < version {
		c.lru.Remove(id)
	}
}
