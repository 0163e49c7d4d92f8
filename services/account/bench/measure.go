package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/dsn"
	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/job"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/account"
	"example.com/billing/services/account/books"
	"example.com/billing/services/account/ledger"
	"example.com/billing/services/account/readmodel"
	"example.com/billing/services/account/reconcile"
)

// spoilRows is how many rows of the list are made wrong, for the rebuild to repair.
const spoilRows = 7

// bench is a database and what works on it.
type bench struct {
	pool       *pgxpool.Pool
	background *pgxpool.Pool // of the jobs, as in the service
	jobs       *job.Jobs
	list       *readmodel.Accounts
	reconciler *reconcile.Reconciler
	traffic    *traffic
	say        func(format string, args ...any)
}

// measure does it all on an empty database, and tells what it measured. It fails where a read was wrong, or anything at the
// end is not as it should be.
func measure(ctx context.Context, dsn string, accounts, events int, say func(format string, args ...any)) error {
	b := &bench{say: say}
	closeAll, err := b.open(ctx, dsn)
	if err != nil {
		return err
	}
	defer closeAll()
	begun := time.Now()
	if err := b.fill(ctx, accounts, events); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	written := b.traffic.ledger.Events
	say("wrote     %d accounts, %d events in %s", accounts, written, rate(written, time.Since(begun)))
	begun = time.Now()
	first, err := b.rebuild(ctx)
	if err != nil {
		return err
	}
	say("rebuilt   the empty list: %d rows in %s", first.Rows, rate(written, time.Since(begun)))
	if err := b.traffic.open(ctx); err != nil {
		return fmt.Errorf("open the busy accounts: %w", err)
	}
	if err := b.rebuildUnderTraffic(ctx); err != nil {
		return err
	}
	return b.reconcile(ctx)
}

// fill opens accounts, then moves money among them up to this many events.
func (b *bench) fill(ctx context.Context, accounts, events int) error {
	l := b.traffic.ledger
	if err := l.Open(ctx, accounts); err != nil {
		return err
	}
	for l.Events+2 <= events {
		if _, err := l.Random(ctx); err != nil {
			return err
		}
	}
	return l.Flush(ctx)
}

// rebuildUnderTraffic spoils rows and rebuilds the list while it is written and read.
func (b *bench) rebuildUnderTraffic(ctx context.Context) error {
	t := b.traffic
	took, err := t.run(ctx, t.settle)
	if err != nil {
		return fmt.Errorf("traffic alone: %w", err)
	}
	b.say("alone     %s", t.told(took))
	for _, k := range t.ledger.Accounts[1 : 1+spoilRows] {
		t.spoilt[k.ID] = true
		if _, err := b.pool.Exec(ctx, `UPDATE account_view SET state = convert_to(replace(convert_from(state, 'UTF8'), '"balance":"', '"balance":"9'), 'UTF8') WHERE id = $1`, k.ID); err != nil {
			return err
		}
	}
	var r projection.Rebuilt
	heap := watchHeap(ctx)
	took, err = t.run(ctx, func(ctx context.Context) (err error) {
		r, err = b.rebuild(ctx)
		return err
	})
	grown := heap()
	if err != nil {
		return fmt.Errorf("rebuild under traffic: %w", err)
	}
	b.say("rebuilt   under traffic: %d rows in %s; %d repaired, %d behind, heap grew by %d MiB at most", r.Rows, rate(int(r.Events), took), r.Repaired, r.Behind, grown>>20)
	b.say("          beside it %s", t.told(took))
	b.say("          SHA-256 %s", r.Checksum)
	if want := int64(len(t.ledger.Accounts) + len(t.busy)); r.Rows != want || r.Repaired != spoilRows {
		return fmt.Errorf("%d rows of %d, %d repaired of %d", r.Rows, want, r.Repaired, spoilRows)
	}
	clear(t.spoilt)
	return t.lookAtAll(ctx)
}

// reconcile checks all accounts, which compares the new list with the events too.
func (b *bench) reconcile(ctx context.Context) error {
	begun := time.Now()
	if err := b.reconciler.Start(ctx); err != nil {
		return err
	}
	for {
		s, report, err := b.reconciler.Latest(ctx, time.Second)
		switch {
		case err != nil:
			return err
		case s.Status == job.Running:
			continue
		case s.Status != job.Done || report.Found > 0:
			return fmt.Errorf("reconcile: %s %s, %d findings, such as %v", s.Status, s.Error, report.Found, report.Findings[:min(3, len(report.Findings))])
		}
		b.say("reconcile %d accounts, %d events in %s: clean", report.Accounts, report.Events, rate(int(report.Events), time.Since(begun)))
		return nil
	}
}

// rebuild rebuilds the list to the end.
func (b *bench) rebuild(ctx context.Context) (r projection.Rebuilt, err error) {
	if _, err := b.jobs.Start(ctx, "rebuild", b.list.Rebuild(espg.New(b.background, espg.Options{}))); err != nil {
		return r, err
	}
	s := job.State{Status: job.Running}
	for s.Status == job.Running {
		if s, err = b.jobs.Wait(ctx, "rebuild", time.Second); err != nil {
			return r, err
		}
	}
	if s.Status != job.Done {
		return r, errors.New(s.Error)
	}
	return r, json.Unmarshal(s.Detail, &r)
}

// open makes the tables and the parts that work on them.
func (b *bench) open(ctx context.Context, address string) (closeAll func(), err error) {
	for _, pool := range []**pgxpool.Pool{&b.pool, &b.background} {
		cfg, err := dsn.Parse(address)
		if err != nil {
			return nil, err
		}
		cfg.MaxConns = 8
		cfg.ConnConfig.RuntimeParams["jit"] = "off" // as in the service
		if *pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
			return nil, err
		}
	}
	if err := migrate.Up(ctx, b.pool, espg.Migrations, espg.MigrationsTable); err != nil {
		return nil, err
	}
	if err := migrate.Up(ctx, b.pool, readmodel.Migrations, "account_migration"); err != nil {
		return nil, err
	}
	if err := migrate.Up(ctx, b.pool, job.Migrations, job.MigrationsTable); err != nil {
		return nil, err
	}
	store := espg.New(b.pool, espg.Options{Inline: books.Inline})
	executor, err := es.NewExecutor(account.Decider(), store, es.ExecutorOptions{})
	if err != nil {
		return nil, err
	}
	b.jobs = job.New(b.background, slog.New(slog.DiscardHandler))
	b.list = readmodel.New(b.pool)
	b.reconciler = reconcile.New(b.background, b.jobs, none{}, nil)
	b.traffic = &traffic{ledger: ledger.New(store), executor: executor, project: b.list.Projection(store.Load), list: b.list, spoilt: map[string]bool{}}
	return func() {
		ctx := context.WithoutCancel(ctx)
		_ = b.jobs.Close(ctx)
		_ = executor.Close(ctx)
		b.background.Close()
		b.pool.Close()
	}, nil
}

// none is a transaction service that knows of no open transaction.
type none struct{}

// Open is reconcile.Transactions'.
func (none) Open(context.Context, []string) ([]string, error) { return nil, nil }

// lookAtAll reads the whole list, page by page.
func (t *traffic) lookAtAll(ctx context.Context) error {
	for n := len(t.ledger.Accounts) - 1; n > 0; n -= pageRows {
		if err := t.lookAtPage(ctx, n); err != nil {
			return fmt.Errorf("after the rebuild: %w", err)
		}
	}
	return nil
}

// watchHeap returns a function that tells by how much the heap has grown at most since.
func watchHeap(ctx context.Context) func() uint64 {
	ctx, cancel := context.WithCancel(ctx)
	grown := make(chan uint64)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			case <-ctx.Done():
				grown <- most - before
				return
			}
		}
	}()
	return func() uint64 { cancel(); return <-grown }
}

func rate(n int, took time.Duration) string {
	return fmt.Sprintf("%s (%.0f events/s)", took.Round(time.Millisecond), float64(n)/took.Seconds())
}
