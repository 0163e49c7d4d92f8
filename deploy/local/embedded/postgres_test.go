package embedded_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/embedded"
)

func postgresHelper(ctx context.Context, dir string) (string, error) {
	p, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{DataDir: dir})
	if err != nil {
		return "", err
	}
	if err := p.EnsureDatabases(ctx, "ledger"); err != nil {
		return "", err
	}
	return strconv.Itoa(p.PID()), execute(ctx, p.DSN("ledger"), "create table entries (amount int); insert into entries values (42)")
}

func execute(ctx context.Context, dsn, sql string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func query[T any](t *testing.T, dsn, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPostgresKeepsItsDataAcrossRestarts(t *testing.T) {
	o := embedded.PostgresOptions{DataDir: dataDir(t)}
	p := startPostgres(t, o)
	first := p.DSN("ledger")
	for range 2 { // the second time there is nothing to do
		if err := p.EnsureDatabases(t.Context(), "ledger", "odd \"name"); err != nil {
			t.Fatal(err)
		}
	}
	if err := execute(t.Context(), first, "create table entries (amount int); insert into entries values (42)"); err != nil {
		t.Fatal(err)
	}
	settings := query[string](t, first, "select string_agg(concat(name, '=', setting), ' ' order by name) from pg_settings where name in ('fsync', 'listen_addresses', 'max_connections', 'server_encoding', 'unix_socket_directories')")
	if want := "fsync=on listen_addresses=127.0.0.1 max_connections=200 server_encoding=UTF8 unix_socket_directories="; settings != want {
		t.Errorf("settings are %s, want %s", settings, want)
	}
	refused, _ := url.Parse(first)
	refused.User = url.UserPassword("billing", "wrong")
	if err := execute(t.Context(), refused.String(), "select 1"); err == nil {
		t.Error("a wrong password was accepted")
	}
	if info, err := os.Stat(filepath.Join(o.DataDir, "postgres.password")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("password file: %v, %v", info, err)
	}
	stop(t, p)
	<-p.Done()

	p = startPostgres(t, o)
	if got := query[int](t, p.DSN("ledger"), "select amount from entries"); got != 42 {
		t.Errorf("got %d, want 42", got)
	}
	if p.DSN("ledger") != first {
		t.Logf("the address changed from run to run: port taken in between")
	}
}

func TestPostgresOfAKilledProcessIsReplaced(t *testing.T) {
	dir := dataDir(t)
	left, err := strconv.Atoi(runAndKill(t, "postgres", dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(left, 0); err != nil {
		t.Fatalf("the helper's Postgres should outlive it: %v", err)
	}
	p := startPostgres(t, embedded.PostgresOptions{DataDir: dir})
	if got := query[int](t, p.DSN("ledger"), "select amount from entries"); got != 42 {
		t.Errorf("got %d, want 42", got)
	}
	if p.PID() == left {
		t.Errorf("still process %d", left)
	}
}

func TestPostgresStartsOverAStalePidFile(t *testing.T) {
	for name, pid := range map[string]int{"of nobody": 1 << 22, "of another program": os.Getpid()} {
		t.Run(name, func(t *testing.T) {
			o := embedded.PostgresOptions{DataDir: dataDir(t)}
			p := startPostgres(t, o)
			if err := p.EnsureDatabases(t.Context(), "ledger"); err != nil {
				t.Fatal(err)
			}
			pidFile := filepath.Join(o.DataDir, "postgres", "postmaster.pid")
			old, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			stop(t, p) // gives up the lock
			_, rest, _ := strings.Cut(string(old), "\n")
			if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n%s", pid, rest), 0o600); err != nil {
				t.Fatal(err)
			}
			p = startPostgres(t, o)
			query[bool](t, p.DSN("ledger"), "select true")
		})
	}
}

func TestPostgresRunsOncePerDataDirectory(t *testing.T) {
	o := embedded.PostgresOptions{DataDir: dataDir(t)}
	startPostgres(t, o)
	_, err := embedded.StartPostgres(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "in use by another copy (pid "+strconv.Itoa(os.Getpid())+")") {
		t.Errorf("second start on one directory: %v", err)
	}
	startPostgres(t, embedded.PostgresOptions{DataDir: dataDir(t)}) // side by side on another
}

func TestPostgresOfAnotherMajorVersionIsRefused(t *testing.T) {
	dir := dataDir(t)
	if err := os.Mkdir(filepath.Join(dir, "postgres"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "postgres", "PG_VERSION"), []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: dir})
	if err == nil || !strings.Contains(err.Error(), "made by Postgres 9") {
		t.Errorf("got %v", err)
	}
}

func TestPostgresAsRootRunsAsSomeoneElse(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: only root hands Postgres over to another user, and this is not root")
	}
	dir := dataDir(t)
	p := startPostgres(t, embedded.PostgresOptions{DataDir: dir})
	info, err := os.Stat(filepath.Join(dir, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid == 0 {
		t.Error("root owns the data directory")
	}
	if info, err = os.Stat(fmt.Sprintf("/proc/%d", p.PID())); err != nil {
		t.Skipf("skipped: cannot see whose process it is: %v", err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid == 0 {
		t.Error("Postgres runs as root")
	}

	closed := filepath.Join(dataDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DataDir: filepath.Join(closed, "data")})
	if err == nil || !strings.Contains(err.Error(), "cannot enter "+closed+" ") || !strings.Contains(err.Error(), "chmod o+x "+closed) {
		t.Errorf("data below a closed directory: %v", err)
	}
}

func TestPostgresIsFetched(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: -short, and this downloads Postgres")
	}
	// Two at once share the empty cache.
	cache := filepath.Join(dataDir(t), "cache")
	var both sync.WaitGroup
	for range 2 {
		dir := dataDir(t)
		both.Go(func() {
			p, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Bin: "none", DataDir: dir, CacheDir: cache, Logf: t.Logf})
			if err != nil {
				t.Error(err)
				return
			}
			defer stop(t, p)
			if err := p.EnsureDatabases(t.Context(), "ledger"); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	left, err := filepath.Glob(filepath.Join(filepath.Dir(cache), ".unpack-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestPostgresElsewhere(t *testing.T) {
	ours := startPostgres(t, embedded.PostgresOptions{DataDir: dataDir(t)})
	p, err := embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DSN: ours.DSN("postgres")})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.EnsureDatabases(t.Context(), "ledger"); err != nil {
		t.Fatal(err)
	}
	if p.DSN("ledger") != ours.DSN("ledger") || p.PID() != 0 {
		t.Errorf("got %s, pid %d", p.DSN("ledger"), p.PID())
	}
	stop(t, p)
	query[bool](t, ours.DSN("ledger"), "select true") // still there
	_, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{DSN: "host=localhost password=hush"})
	if err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("a DSN that is no URL: %v", err)
	}
}
