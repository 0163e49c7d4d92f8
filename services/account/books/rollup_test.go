package books_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/shopspring/decimal"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/services/account"
	"example.com/billing/services/account/books"
	"example.com/billing/services/account/readmodel"
)

func newPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := errors.Join(
		migrate.Up(t.Context(), pool, espg.Migrations, espg.MigrationsTable),
		migrate.Up(t.Context(), pool, readmodel.Migrations, "account_migration"),
	); err != nil {
		t.Fatal(err)
	}
	return pool
}

// moves is a group's events: so many units from the world to a customer.
func moves(t testing.TB, currency string, units int64) []es.Event {
	t.Helper()
	amount := func(n int64) account.Amount { return account.Amount(decimal.NewFromInt(n)) }
	var events []es.Event
	for kind, sign := range map[account.Type]int64{account.External: -1, account.User: 1} {
		f := account.BalanceChanged{NewBalance: amount(sign * units), TransitChange: amount(-sign * units), Currency: currency, AccountType: kind}
		data, err := es.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, es.Event{Type: f.EventType(), Data: data})
	}
	return events
}

// commit commits what a group adds to the books.
func commit(ctx context.Context, pool *pgxpool.Pool, events []es.Event) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(espg.LockLog) // the log's lock, as every commit takes it
		if err := books.Inline(b, events); err != nil {
			return err
		}
		return tx.SendBatch(ctx, b).Close()
	})
}

func wantBooks(t *testing.T, pool *pgxpool.Pool, want string) {
	t.Helper()
	totals, _, err := books.Read(t.Context(), pool)
	var got []string
	for _, b := range totals {
		got = append(got, fmt.Sprintf("%s %s %s %s %s", b.Currency, b.User, b.External, b.System, b.InTransit))
	}
	if s := strings.Join(got, ", "); err != nil || s != want {
		t.Errorf("got %q (%v), want %q", s, err, want)
	}
}

func TestTheBooksAreTheSameBeforeAndAfterARollUp(t *testing.T) {
	pool := newPool(t)
	wantBooks(t, pool, "")
	for n, want := range []string{"USD 1 -1 0 0", "EUR 2 -2 0 0, USD 1 -1 0 0", "EUR 2 -2 0 0, USD 4 -4 0 0"} {
		if err := commit(t.Context(), pool, moves(t, []string{"USD", "EUR", "USD"}[n], int64(n+1))); err != nil {
			t.Fatal(err)
		}
		wantBooks(t, pool, want)
		if n == 1 {
			continue // two are rolled up together
		}
		if _, err := books.RollUp(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		wantBooks(t, pool, want)
	}
	if moved, err := books.RollUp(t.Context(), pool); moved != 0 || err != nil {
		t.Errorf("%d moved again, %v", moved, err)
	}
	var left, rolled int
	if err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM book_delta), (SELECT count(*) FROM book_total)`).Scan(&left, &rolled); err != nil || left != 0 || rolled != 2 {
		t.Errorf("%d rows are left, %d totals, %v", left, rolled, err)
	}
}

// While commits, roll-ups and reads go on side by side, every read is balanced, none goes back, and nothing is lost.
func TestRollUpsBesideCommits(t *testing.T) {
	pool := newPool(t)
	const committers, each = 4, 50
	done := make(chan struct{})
	var commits, others sync.WaitGroup
	for range committers {
		commits.Go(func() {
			for range each {
				if err := commit(t.Context(), pool, moves(t, "USD", 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	for range 2 {
		others.Go(func() {
			for !ended() {
				if err := books.RollUpAll(t.Context(), pool); err != nil {
					t.Error(err)
				}
			}
		})
	}
	others.Go(func() {
		last := decimal.Zero
		for !ended() {
			totals, _, err := books.Read(t.Context(), pool)
			for _, b := range totals {
				if !b.Difference().IsZero() || b.User.LessThan(last) {
					t.Errorf("%+v after %s", b, last)
				}
				last = b.User
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	commits.Wait()
	close(done)
	others.Wait()
	wantBooks(t, pool, fmt.Sprintf("USD %d -%[1]d 0 0", committers*each))
}

// A commit updates nothing that another one updates: the totals can be locked meanwhile.
func TestCommitsLeaveTheTotalsAlone(t *testing.T) {
	pool := newPool(t)
	if err := errors.Join(commit(t.Context(), pool, moves(t, "USD", 1)), books.RollUpAll(t.Context(), pool)); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE book_total, book_rolled IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := commit(ctx, pool, moves(t, "USD", 1)); err != nil {
		t.Error(err)
	}
	wantBooks(t, pool, "USD 2 -2 0 0")
}

// One commit among those that an open snapshot keeps the dead versions of. -benchtime 20000x makes as many.
func BenchmarkCommitUnderAnOpenSnapshot(b *testing.B) {
	pool := newPool(b)
	snapshot, err := pool.BeginTx(b.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		b.Fatal(err)
	}
	defer snapshot.Rollback(context.Background())
	if _, err := snapshot.Exec(b.Context(), `SELECT`); err != nil {
		b.Fatal(err)
	}
	cfg := pool.Config()
	cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off" // the disk is not what is measured
	if pool, err = pgxpool.NewWithConfig(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	events := moves(b, "USD", 1)
	b.ResetTimer()
	last := time.Now()
	for i := range b.N {
		batch := &pgx.Batch{}
		if err := books.Inline(batch, events); err != nil {
			b.Fatal(err)
		}
		if err := pool.SendBatch(b.Context(), batch).Close(); err != nil {
			b.Fatal(err)
		}
		if i == b.N-1000 {
			last = time.Now()
		}
	}
	b.ReportMetric(float64(time.Since(last).Microseconds())/1000, "µs/op-of-the-last-1000")
}
