package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What the limit program commits, whatever the system writes: 13 rows a transfer in groups of 256.
const (
	limitDatabase    = "bench_limit"
	limitGroup       = 256
	limitEventBytes  = 500
	limitEvents      = 4 // and as many outbox rows
	limitConnections = 2 // more made no difference on 2 cores
	limitAccounts    = 1000
)

const limitTables = `
	CREATE TABLE event (id uuid PRIMARY KEY, stream uuid NOT NULL, version bigint NOT NULL, payload bytea NOT NULL);
	CREATE TABLE outbox (id uuid PRIMARY KEY, event uuid NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
	CREATE TABLE balance (account int PRIMARY KEY, amount bigint NOT NULL, version bigint NOT NULL) WITH (fillfactor = 80);
	CREATE TABLE transaction (id uuid PRIMARY KEY, source int NOT NULL, destination int NOT NULL, amount bigint NOT NULL);
	CREATE TABLE saga (id uuid PRIMARY KEY, status text NOT NULL, state bytea NOT NULL) WITH (fillfactor = 80);
	INSERT INTO balance SELECT n, 0, 0 FROM generate_series(0, 999) n`

// measureLimit commits the rows of transfers as fast as a plain program can, with no services and no Kafka in between, and returns
// transfers a second. hot: each of them is on account 0.
func measureLimit(ctx context.Context, c *cluster, d time.Duration, hot bool) (float64, error) {
	if err := c.postgres.EnsureDatabases(ctx, limitDatabase); err != nil {
		return 0, err
	}
	pool, err := pgxpool.New(ctx, c.postgres.DSN(limitDatabase))
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, `DROP TABLE IF EXISTS event, outbox, balance, transaction, saga; `+limitTables); err != nil {
		return 0, err
	}
	var (
		g    sync.WaitGroup
		done atomic.Int64
		errs = make(chan error, limitConnections)
	)
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for n := range limitConnections {
		g.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 3)) //nolint:gosec // drawn anew each time alike
			for ctx.Err() == nil {
				err := commitGroup(context.WithoutCancel(ctx), pool, r, hot)
				if err != nil {
					errs <- err
					return
				}
				done.Add(limitGroup)
			}
		})
	}
	g.Wait()
	took := time.Since(began)
	select {
	case err := <-errs:
		return 0, fmt.Errorf("limit: %w", err)
	default:
		return float64(done.Load()) / took.Seconds(), nil
	}
}

// commitGroup commits one group of transfers: two round trips are one too many for what needs no answer, so it is one.
func commitGroup(ctx context.Context, pool *pgxpool.Pool, r *rand.Rand, hot bool) error {
	var (
		events, streams, outbox, sagas []string
		versions                       []int64
		payloads                       [][]byte
		sources, destinations          []int
		change                         = map[int]int64{}
	)
	for range limitGroup {
		from, to := r.IntN(limitAccounts), r.IntN(limitAccounts)
		if hot {
			from = 0
		}
		change[from]--
		change[to]++
		sources, destinations, sagas = append(sources, from), append(destinations, to), append(sagas, uuid.NewString())
		for v := range limitEvents {
			payload := make([]byte, limitEventBytes)
			for i := range payload {
				payload[i] = byte('a' + r.IntN(26)) //nolint:gosec // a letter
			}
			events, streams, outbox = append(events, uuid.NewString()), append(streams, uuid.NewString()), append(outbox, uuid.NewString())
			versions, payloads = append(versions, int64(v+1)), append(payloads, payload)
		}
	}
	var accounts []int
	var amounts []int64
	for a := range limitAccounts { // in order: two groups never wait for one another in a circle
		if by, moved := change[a]; moved {
			accounts, amounts = append(accounts, a), append(amounts, by)
		}
	}
	b := &pgx.Batch{}
	b.Queue(`BEGIN`)
	b.Queue(`INSERT INTO transaction SELECT i, s, d, 1 FROM unnest($1::uuid[], $2::int[], $3::int[]) AS x(i, s, d)`, sagas, sources, destinations)
	b.Queue(`INSERT INTO event SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bytea[])`, events, streams, versions, payloads)
	b.Queue(`INSERT INTO outbox (id, event) SELECT * FROM unnest($1::uuid[], $2::uuid[])`, outbox, events)
	b.Queue(`INSERT INTO saga SELECT i, 'in_progress', d FROM unnest($1::uuid[], $2::bytea[]) AS x(i, d)`, sagas, payloads[:limitGroup])
	b.Queue(`UPDATE saga SET status = 'completed', state = d FROM unnest($1::uuid[], $2::bytea[]) AS x(i, d) WHERE id = i`, sagas, payloads[limitGroup:2*limitGroup])
	b.Queue(`SELECT FROM balance WHERE account = ANY($1) ORDER BY account FOR UPDATE`, accounts)
	b.Queue(`UPDATE balance SET amount = amount + c, version = version + 1 FROM unnest($1::int[], $2::bigint[]) AS x(a, c) WHERE account = a`, accounts, amounts)
	b.Queue(`COMMIT`)
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return conn.SendBatch(ctx, b).Close()
}
