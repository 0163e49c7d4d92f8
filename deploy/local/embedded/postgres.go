package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// PostgresOptions says where Postgres comes from and where it keeps its data.
type PostgresOptions struct {
	// DSN names any database of a running server, as a URL
	// (postgres://user:password@host:port/postgres). When set, nothing is
	// started, Stop does nothing, and the other fields are ignored.
	DSN string
	// Bin is a directory that holds postgres and initdb. Empty means the
	// machine's own (on PATH, under /usr/lib/postgresql, Homebrew's; the
	// newest, or the one that made the data directory), and else a fetched
	// one. "none" means fetched in any case.
	Bin string
	// DataDir is made if missing, and survives restarts. In it: postgres (the
	// data directory proper), postgres.log, postgres.password, lock.
	DataDir string
	// CacheDir is where fetched binaries are kept. Empty means
	// billing/postgres-<version> in the user's cache directory, or for root
	// /var/cache/billing/postgres-<version>.
	CacheDir string
	// Env is added to the environment of the server, such as a preloaded
	// library that gives it another clock.
	Env []string
	// Logf receives progress in plain sentences; nil is silence.
	Logf func(format string, args ...any)
}

// Postgres is a running server. Its methods are safe for concurrent use.
type Postgres struct {
	base   *url.URL // any database of the server, with user and password
	server *server  // nil when the server is not ours
	lock   *os.File

	stopOnce sync.Once
	stopErr  error
}

// StartPostgres starts a server and waits until it answers. The server listens
// on 127.0.0.1 alone, on the port of its last run where that is still free,
// and asks for a password, which is kept in DataDir for this user only. Writes
// are durable (fsync is on). As root, Postgres runs as the user postgres or
// nobody, who then owns DataDir/postgres and must be able to enter DataDir. The
// mode of DataDir itself is seen to; a closed parent is an error that names it.
//
// Two servers run side by side on different DataDirs; on one DataDir the
// second start is an error. A server left over from a process that was killed
// is stopped first, cleanly. ctx bounds the start, not the server's life.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	if o.DSN != "" {
		base, err := parseServerDSN(o.DSN)
		if err != nil {
			return nil, fmt.Errorf("start postgres: %w", err)
		}
		return &Postgres{base: base}, nil
	}
	p, err := startOwnPostgres(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	return p, nil
}

func startOwnPostgres(ctx context.Context, o PostgresOptions) (_ *Postgres, err error) {
	logf := logfOrSilent(o.Logf)
	if o.DataDir == "" {
		return nil, errors.New("a data directory is required")
	}
	dir, err := absolute(o.DataDir)
	if err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	acct, err := postgresAccount()
	if err != nil {
		return nil, err
	}
	if err := acct.letIn(dir); err != nil {
		return nil, err
	}
	if err := acct.canReach(dir, "choose another data directory"); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()

	data := filepath.Join(dir, "postgres")
	major, err := dataMajor(data)
	if err != nil {
		return nil, err
	}
	bin, err := chooseBinaries(ctx, o, acct, major, logf)
	if err != nil {
		return nil, err
	}
	pw, err := password(filepath.Join(dir, "postgres.password"), major != 0)
	if err != nil {
		return nil, err
	}
	if major == 0 {
		logf("initialising Postgres %d in %s", bin.major, data)
		if err := initdb(ctx, bin, acct, data, pw); err != nil {
			return nil, fmt.Errorf("initdb: %w", err)
		}
	} else if err := stopLeftover(ctx, data, logf); err != nil {
		return nil, fmt.Errorf("stop the server left over from before: %w", err)
	}
	s, err := launch(ctx, bin, acct, dir, pw, o.Env, logf)
	if err != nil {
		return nil, err
	}
	return &Postgres{base: ownDSN(s.port, pw), server: s, lock: lock}, nil
}

func parseServerDSN(dsn string) (*url.URL, error) {
	u, err := url.Parse(dsn)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		// The text may hold a password, and so would the parser's error.
		return nil, errors.New("the DSN is not a URL of the form postgres://user:password@host:port/database")
	}
	return u, nil
}

func ownDSN(port int, pw string) *url.URL {
	return &url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, pw),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
}

// DSN answers the URL of the named database on the server, password included.
func (p *Postgres) DSN(database string) string {
	u := *p.base
	u.Path, u.RawPath = "/"+database, ""
	return u.String()
}

// PID answers the server's process id; 0 if the server is not ours.
func (p *Postgres) PID() int {
	if p.server == nil {
		return 0
	}
	return p.server.cmd.Process.Pid
}

// Bin answers the directory of the server's binaries; empty if the server is not ours.
func (p *Postgres) Bin() string {
	if p.server == nil {
		return ""
	}
	return filepath.Dir(p.server.cmd.Path)
}

// Done is closed when the server has exited, whoever stopped it; Stop is
// still needed then, to give up the data directory. It is nil, and so never
// ready, if the server is not ours.
func (p *Postgres) Done() <-chan struct{} {
	if p.server == nil {
		return nil
	}
	return p.server.exited
}

// EnsureDatabases creates those of the named databases that are missing.
// Running it twice, or in two places at once, is fine.
func (p *Postgres) EnsureDatabases(ctx context.Context, names ...string) error {
	conn, err := pgx.Connect(ctx, p.base.String())
	if err != nil {
		return fmt.Errorf("ensure databases: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, name := range names {
		var exists bool
		if err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", name).Scan(&exists); err != nil {
			return fmt.Errorf("ensure database %s: %w", name, err)
		}
		if exists {
			continue
		}
		if _, err := conn.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize()); err != nil && !alreadyThere(err) {
			return fmt.Errorf("ensure database %s: %w", name, err)
		}
	}
	return nil
}

func alreadyThere(err error) bool {
	const duplicateDatabase, uniqueViolation = "42P04", "23505" // the latter when two create it at once
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == duplicateDatabase || pg.Code == uniqueViolation)
}

// Stop shuts the server down (fast: sessions are ended, data is flushed) and
// waits for its exit. When ctx ends first, the server is made to quit at once,
// which loses nothing committed, and Stop returns the context's error. Further
// calls return the first one's result. It does nothing to a server not ours.
func (p *Postgres) Stop(ctx context.Context) error {
	if p.server == nil {
		return nil
	}
	p.stopOnce.Do(func() {
		if err := p.server.stop(ctx); err != nil {
			p.stopErr = fmt.Errorf("stop postgres: %w", err)
		}
		_ = p.lock.Close()
	})
	return p.stopErr
}
