package pgpair_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/test/failover/pgpair"
)

func start(t *testing.T, o pgpair.Options) *pgpair.Pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o.Databases = []string{"ledger"}
	p, err := pgpair.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, dsn string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	must(t, err)
	defer conn.Close(context.Background())
	must(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM entries").Scan(&n))
	return n
}

func TestLaggingStandbyLacksWhatThePrimaryLost(t *testing.T) {
	p := start(t, pgpair.Options{Mode: pgpair.Async})
	must(t, p.Primary.Exec(t.Context(), "ledger", "CREATE TABLE entries (n int)", "INSERT INTO entries VALUES (1)"))
	must(t, p.WaitCaughtUp(t.Context()))
	p.CutReplication()
	must(t, p.Primary.Exec(t.Context(), "ledger", "INSERT INTO entries VALUES (2)"))
	if got := count(t, p.DSN("ledger")); got != 2 {
		t.Fatalf("%d rows before, want 2", got)
	}
	must(t, p.Primary.Kill())
	must(t, p.Promote(t.Context()))
	p.Repoint(p.Standby)
	if got := count(t, p.DSN("ledger")); got != 1 {
		t.Errorf("%d rows after the fail-over, want the 1 that the standby had", got)
	}
	must(t, p.Standby.Exec(t.Context(), "ledger", "INSERT INTO entries VALUES (3)"))
}

func TestSynchronousPrimaryWaitsForItsStandbyAndFreezes(t *testing.T) {
	p := start(t, pgpair.Options{Mode: pgpair.Sync})
	must(t, p.Primary.Exec(t.Context(), "ledger", "CREATE TABLE entries (n int)", "INSERT INTO entries VALUES (1)"))
	if got := count(t, p.Standby.DSN("ledger")); got != 1 {
		t.Fatalf("%d rows on the standby, want the one that was acknowledged", got)
	}
	p.CutReplication()
	brief, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := p.Primary.Exec(brief, "ledger", "INSERT INTO entries VALUES (2)"); err == nil {
		t.Fatal("a commit did not wait for the standby")
	}
	must(t, p.Primary.Freeze())
	must(t, p.Promote(t.Context()))
	p.Repoint(p.Standby)
	must(t, p.Standby.Exec(t.Context(), "ledger", "INSERT INTO entries VALUES (3)"))
	if got := count(t, p.DSN("ledger")); got != 2 {
		t.Errorf("%d rows after the fail-over, want 2", got)
	}
}

func TestDiskIsFullUntilItIsFreed(t *testing.T) {
	if err := pgpair.CanMount(); err != nil {
		t.Skip("skipped: ", err)
	}
	p := start(t, pgpair.Options{DiskMB: 200})
	must(t, p.Primary.Exec(t.Context(), "ledger", "CREATE TABLE entries (n int)"))
	must(t, p.FillDisk())
	if err := p.Primary.Exec(t.Context(), "ledger", "INSERT INTO entries SELECT generate_series(1, 100000)"); err == nil {
		t.Fatal("a full disk took 100,000 rows")
	}
	must(t, p.FreeDisk())
	if p.Primary.Ended() {
		must(t, p.Primary.Start(t.Context()))
	}
	must(t, p.Primary.Exec(t.Context(), "ledger", "INSERT INTO entries VALUES (1)"))
}

func TestClockOfTheServerIsWrong(t *testing.T) {
	env, err := pgpair.Clock(time.Hour)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err) // .ci/run installs it
	} else if err != nil {
		t.Skip("skipped: ", err)
	}
	p := start(t, pgpair.Options{Env: env})
	ahead, err := p.Primary.Number(t.Context(), "postgres", "SELECT extract(epoch FROM clock_timestamp())::bigint")
	must(t, err)
	if d := time.Until(time.Unix(ahead, 0)); d < 59*time.Minute {
		t.Errorf("the clock is ahead by %s, want an hour", d)
	}
	must(t, p.Primary.Kill())
	must(t, p.Primary.Start(t.Context()))
	right, err := p.Primary.Number(t.Context(), "postgres", "SELECT extract(epoch FROM clock_timestamp())::bigint")
	must(t, err)
	if d := time.Until(time.Unix(right, 0)); d > time.Minute {
		t.Errorf("the clock is still ahead by %s", d)
	}
}
