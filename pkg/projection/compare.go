package projection

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	espg "example.com/billing/pkg/es/postgres"
)

const (
	comparePageMax = 1000
	compareGrace   = 5 * time.Second // for rows that are on their way
	comparePause   = 250 * time.Millisecond
)

// Difference is a row that is not what its stream says.
type Difference struct {
	ID   string
	Head int64 // the stream's version; 0 = there is none
	Row  int64 // the version that the row shows; 0 = there is none. Equal to Head where the row shows another state
}

// Compare compares a page of rows with the heads of the streams in the same database: those behind the id after, or the
// first ones. It waits for some seconds for rows that are behind, and returns the rows that are wrong and the id of the last
// stream of the page; an empty one means that there are no more. The model must have a row for every stream.
func (f *Folded[S, C]) Compare(ctx context.Context, pool *pgxpool.Pool, after string) (wrong []Difference, last string, err error) {
	if after == "" {
		after = uuid.Nil.String()
	}
	page, last, err := f.page(ctx, pool, after, comparePageMax)
	if err != nil {
		return nil, "", espg.Classify("compare "+f.Table, err)
	}
	behind := map[string]found{}
	for _, x := range page {
		switch {
		case x.row > x.head, x.differs:
			wrong = append(wrong, Difference{x.id, x.head, x.row})
		case x.row < x.head:
			behind[x.id] = x
		}
	}
	for late := time.Now().Add(compareGrace); len(behind) > 0 && time.Now().Before(late); {
		select {
		case <-time.After(comparePause):
		case <-ctx.Done():
			return nil, "", espg.Classify("compare "+f.Table, ctx.Err())
		}
		ids := make([]string, 0, len(behind))
		for id := range behind {
			ids = append(ids, id)
		}
		versions, err := f.versions(ctx, pool, ids)
		if err != nil {
			return nil, "", espg.Classify("compare "+f.Table, err)
		}
		for id, x := range behind {
			if versions[id] >= x.head {
				delete(behind, id)
			}
		}
	}
	for _, x := range page {
		if _, still := behind[x.id]; still {
			wrong = append(wrong, Difference{x.id, x.head, x.row})
		}
	}
	return wrong, last, nil
}

// page reads the streams behind an id, from their heads and from their rows, and returns the last id that was compared,
// empty at the end of all.
func (f *Folded[S, C]) page(ctx context.Context, pool *pgxpool.Pool, after string, pageMax int) (page []found, last string, err error) {
	// One query, so one snapshot: a row is never newer than its head, unless the head has lost something.
	rows, err := pool.Query(ctx, `WITH h AS MATERIALIZED (
			SELECT stream_id AS id, version, CASE WHEN snapshot_version = version THEN snapshot END AS state
			FROM es_head WHERE stream_type = $1 AND stream_id > $2::text ORDER BY stream_id LIMIT $3),
		v AS MATERIALIZED (
			SELECT id::text COLLATE "C" AS id, version, state FROM `+f.Table+` WHERE id > $2::text::uuid ORDER BY `+f.Table+`.id LIMIT $3)
		SELECT coalesce(h.id, v.id), coalesce(h.version, 0), coalesce(v.version, 0),
			CASE WHEN h.version = v.version AND h.state <> v.state THEN h.state END, CASE WHEN h.version = v.version AND h.state <> v.state THEN v.state END
		FROM h FULL JOIN v ON h.id = v.id ORDER BY 1`, f.Decider.Type, after, pageMax)
	if err != nil {
		return nil, "", fmt.Errorf("compare rows: %w", err)
	}
	var (
		x         found
		head, row []byte
	)
	_, err = pgx.ForEachRow(rows, []any{&x.id, &x.head, &x.row, &head, &row}, func() error {
		x.differs = head != nil && !f.same(head, row)
		page = append(page, x)
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("compare rows: %w", err)
	}
	page, last = within(page, pageMax)
	return page, last, nil
}

// same tells whether two encoded states mean the same: different versions of the code may have written them.
func (f *Folded[S, C]) same(a, b []byte) bool {
	normal := func(encoded []byte) []byte {
		state, err := f.Decider.Snapshots.Restore(encoded)
		if err != nil {
			return nil
		}
		if encoded, err = f.Decider.Snapshots.Take(state); err != nil {
			return nil
		}
		return encoded
	}
	x := normal(a)
	return x != nil && bytes.Equal(x, normal(b))
}

// within cuts a page where one of the two sides ends before the other, and returns the last id that was compared.
func within(page []found, pageMax int) (compared []found, last string) {
	heads, rows := 0, 0
	for n, f := range page {
		if f.head > 0 {
			heads++
		}
		if f.row != 0 {
			rows++
		}
		if heads == pageMax || rows == pageMax {
			return page[:n+1], f.id
		}
	}
	return page, ""
}

// versions reads the versions that rows show.
func (f *Folded[S, C]) versions(ctx context.Context, pool *pgxpool.Pool, ids []string) (map[string]int64, error) {
	rows, err := pool.Query(ctx, `SELECT id::text, version FROM `+f.Table+` WHERE id = ANY($1::uuid[])`, ids)
	if err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	versions := make(map[string]int64, len(ids))
	var (
		id      string
		version int64
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &version}, func() error {
		versions[id] = version
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	return versions, nil
}
