package pgtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ignoredParameters are settings of the services' connections that PgBouncer refuses unless it is told to ignore them.
const ignoredParameters = "jit,statement_timeout,idle_in_transaction_session_timeout,tcp_keepalives_idle,tcp_keepalives_interval," +
	"tcp_keepalives_count,plan_cache_mode,enable_seqscan,enable_hashjoin,enable_mergejoin"

// nobody is the user that PgBouncer runs as where the test is root, which it refuses.
const nobody = 65534

// Bouncer starts a PgBouncer before a database of [DSN], in transaction mode with a few server connections that all
// clients share, and returns the database's DSN through it. Without the program the test is skipped, or fails under CI=true.
func Bouncer(t testing.TB, dsn string) string {
	t.Helper()
	program := lookUp(t, "pgbouncer", "/usr/sbin/pgbouncer")
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bouncer") // t.TempDir() is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	password, _ := u.User.Password()
	port := freePort(t)
	config := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 200
ignore_startup_parameters = %s
logfile = %s
`, u.Hostname(), u.Port(), u.User.Username(), password, port, ignoredParameters, filepath.Join(dir, "log"))
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil { //nolint:gosec // PgBouncer's user reads it
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-q", file) //nolint:gosec,noctx // the binary that was found
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // PgBouncer's user reads it
			t.Fatal(err)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	awaitServer(t, u.String(), filepath.Join(dir, "log"))
	return u.String()
}

func awaitServer(t testing.TB, dsn, logfile string) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); ; {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		conn, err := pgx.Connect(ctx, dsn)
		if err == nil {
			_ = conn.Close(ctx)
		}
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(late) {
			b, _ := os.ReadFile(logfile) //nolint:gosec // its own log
			t.Fatalf("PgBouncer does not answer: %v\n%s", err, b)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// BouncedPool opens a pool through a PgBouncer on a database of the test's own, with the mode of queries that a pooler needs.
// direct goes past it.
func BouncedPool(t testing.TB) (bounced, direct *pgxpool.Pool) {
	t.Helper()
	dsn := DSN(t)
	open := func(dsn string) *pgxpool.Pool {
		pool, err := pgxpool.New(context.Background(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	through := Bouncer(t, dsn)
	separator := "?"
	if strings.Contains(through, "?") {
		separator = "&"
	}
	return open(through + separator + "default_query_exec_mode=cache_describe"), open(dsn)
}

// NothingLeaks fails the test if a server connection behind a PgBouncer kept a setting, a lock or a table of one of its clients.
func NothingLeaks(t testing.TB, bounced *pgxpool.Pool) {
	t.Helper()
	for range 20 {
		var sync, locks, temporary string
		err := bounced.QueryRow(t.Context(), `SELECT current_setting('synchronous_commit'),
			(SELECT count(*) FROM pg_locks l WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))::text,
			(SELECT count(*) FROM pg_class WHERE relpersistence = 't')::text`).Scan(&sync, &locks, &temporary)
		if err != nil {
			t.Fatal(err)
		}
		if sync != "on" || locks != "0" || temporary != "0" {
			t.Fatalf("left behind: synchronous_commit = %s, %s advisory locks, %s temporary tables", sync, locks, temporary)
		}
	}
}

func lookUp(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", names[0])
	}
	t.Skipf("needs %s; the Debian package of that name has it", names[0])
	return ""
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
