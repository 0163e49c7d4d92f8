// Package pgpair runs a real Postgres primary with a streaming standby behind one address, and hurts them: it freezes and kills the
// primary, lets the standby lag, promotes it, fills the disk, and gives a server a wrong clock.
package pgpair

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/embedded"
)

// Mode says whether there is a standby, and what a commit waits for.
type Mode int

// The modes.
const (
	Alone Mode = iota // no standby
	Async             // commits do not wait for the standby
	Sync              // commits wait until the standby has applied them
)

// pollEvery is the pause between two looks at the servers.
const pollEvery = 20 * time.Millisecond

// applicationName is the standby's, by which the primary knows it.
const applicationName = "standby"

// Options of a pair.
type Options struct {
	Mode      Mode
	Databases []string
	DiskMB    int      // size of the disk that the primary's data is on; 0 = the machine's own; else see CanMount
	Env       []string // of the primary, such as Clock's
}

// Pair is the primary, its standby (nil in mode Alone) and the one address that clients use.
type Pair struct {
	Primary, Standby *Server
	Clients          *Proxy // clients come through it
	Replication      *Proxy // the standby comes through it
	dir              string
	mounted          string
	name             *url.URL // of the clients' server
}

// Start makes new databases on a primary, then its standby from a base backup. Close ends a pair, also after an error.
func Start(ctx context.Context, o Options) (_ *Pair, err error) {
	dir, err := os.MkdirTemp("", "billing-pair-")
	if err != nil {
		return nil, err
	}
	p := &Pair{dir: dir, Primary: &Server{Name: "primary", dir: filepath.Join(dir, "primary")}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	// Postgres may run as another user, who must be able to pass.
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(p.Primary.dir, 0o711)); err != nil { //nolint:gosec // see above
		return nil, err
	}
	if o.DiskMB > 0 {
		if err := p.mount(o.DiskMB); err != nil {
			return nil, err
		}
	}
	if err := p.Primary.Start(ctx, o.Env...); err != nil {
		return nil, err
	}
	if err := p.Primary.pg.EnsureDatabases(ctx, o.Databases...); err != nil {
		return nil, err
	}
	if p.Clients, err = NewProxy(ctx, p.Primary.Addr()); err != nil {
		return nil, err
	}
	if p.name, err = url.Parse(p.Primary.DSN("postgres")); err != nil {
		return nil, err
	}
	p.name.Host = p.Clients.Addr()
	if o.Mode == Alone {
		return p, nil
	}
	return p, p.addStandby(ctx, o.Mode)
}

// Adopt makes a pair of a server that runs already on its data directory, in mode Alone; AddStandby gives it a standby in dir. Clients
// come through the proxy given, which leads to the server. The pair is not to be closed: its parts belong to the caller.
func Adopt(pg *embedded.Postgres, data, dir string, clients *Proxy) *Pair {
	return &Pair{Primary: &Server{Name: "primary", dir: data, pg: pg}, Clients: clients, dir: dir}
}

// AddStandby gives an adopted server a standby, and waits until it follows.
func (p *Pair) AddStandby(ctx context.Context, mode Mode) error { return p.addStandby(ctx, mode) }

// addStandby gives the primary a standby, and waits until it follows.
func (p *Pair) addStandby(ctx context.Context, mode Mode) (err error) {
	if p.Replication, err = NewProxy(ctx, p.Primary.Addr()); err != nil {
		return err
	}
	p.Standby = &Server{Name: "standby", dir: filepath.Join(p.dir, "standby")}
	if err := os.Mkdir(p.Standby.dir, 0o711); err != nil { //nolint:gosec // Postgres may run as another user, who must pass
		return err
	}
	if err := p.baseBackup(ctx); err != nil {
		return err
	}
	if err := p.Standby.Start(ctx); err != nil {
		return err
	}
	if mode == Sync { // after the backup: the standby, once promoted, must not wait for one itself
		err := p.Primary.Exec(ctx, "postgres",
			"ALTER SYSTEM SET synchronous_standby_names = '"+applicationName+"'", "ALTER SYSTEM SET synchronous_commit = 'remote_apply'",
			"SELECT pg_reload_conf()")
		if err != nil {
			return err
		}
	}
	return p.WaitCaughtUp(ctx)
}

// baseBackup copies the primary's data, with the settings that make the copy a standby.
func (p *Pair) baseBackup(ctx context.Context) error {
	from, err := url.Parse(p.Primary.DSN("postgres"))
	if err != nil {
		return err
	}
	password, _ := from.User.Password()
	host, port, _ := strings.Cut(p.Replication.Addr(), ":")
	conninfo := fmt.Sprintf("host=%s port=%s user=%s password=%s sslmode=disable application_name=%s connect_timeout=2",
		host, port, from.User.Username(), password, applicationName)
	data := filepath.Join(p.Standby.dir, "postgres")
	tool := filepath.Join(p.Primary.pg.Bin(), "pg_basebackup")
	if _, err := os.Stat(tool); err != nil {
		return fmt.Errorf("a standby needs pg_basebackup: %w", err)
	}
	cmd := exec.CommandContext(ctx, tool, "-D", data, "-d", conninfo, "-R", "-X", "stream", "-c", "fast", "--no-sync") //nolint:gosec // ours
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w\n%s", err, out)
	}
	secret, err := os.ReadFile(filepath.Join(p.Primary.dir, "postgres.password"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(p.Standby.dir, "postgres.password"), secret, 0o600); err != nil { //nolint:gosec // the pair's own folder
		return err
	}
	settings, err := os.OpenFile(filepath.Join(data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0) //nolint:gosec // the pair's own folder
	if err != nil {
		return err
	}
	// A standby that was cut off comes back soon, and says so when it does.
	_, err = settings.WriteString("wal_retrieve_retry_interval = '100ms'\nwal_receiver_status_interval = '1s'\n")
	return errors.Join(err, settings.Close(), sameOwner(filepath.Join(p.Primary.dir, "postgres"), data))
}

// sameOwner gives a folder to the user that another one belongs to.
func sameOwner(like, folder string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(st.Uid), int(st.Gid)) //nolint:gosec // the pair's own folder
	})
}

// DSN is a database's address for clients; it stays the same whichever server is behind it.
func (p *Pair) DSN(database string) string {
	u := *p.name
	u.Path = "/" + database
	return u.String()
}

// CutReplication lets the standby lag from now on.
func (p *Pair) CutReplication() { p.Replication.Cut() }

// HealReplication lets the standby catch up.
func (p *Pair) HealReplication() { p.Replication.Lead(p.Primary.Addr()) }

// WaitCaughtUp waits until the standby has applied all that the primary has.
func (p *Pair) WaitCaughtUp(ctx context.Context) error {
	for {
		n, err := p.Primary.Number(ctx, "postgres",
			"SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()")
		if err == nil && n > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("the standby does not catch up"), ctx.Err(), err)
		case <-time.After(pollEvery):
		}
	}
}

// Promote makes the standby a primary, and waits until it takes writes. Clients come to it after Repoint.
func (p *Pair) Promote(ctx context.Context) error {
	p.Replication.Cut() // whatever is left of the primary has no part in it any more
	return p.Standby.Exec(ctx, "postgres", "SELECT pg_promote(true, 30)")
}

// Repoint leads the clients' address to a server. Connections to the one before stay as they are.
func (p *Pair) Repoint(to *Server) { p.Clients.Lead(to.Addr()) }

// HoldSnapshot keeps a snapshot of a database open, idle in its transaction, until release is called.
func HoldSnapshot(ctx context.Context, dsn string) (release func() error, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	var now time.Time
	if _, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err == nil {
		// The first statement takes the snapshot.
		err = conn.QueryRow(ctx, "SELECT now() FROM pg_class LIMIT 1").Scan(&now)
	}
	release = func() error {
		brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // the server may be frozen
		defer cancel()
		return conn.Close(brief)
	}
	if err != nil {
		return nil, errors.Join(err, release())
	}
	return release, nil
}

// Close ends the servers and removes their data.
func (p *Pair) Close() error {
	var errs []error
	for _, s := range []*Server{p.Standby, p.Primary} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	for _, x := range []*Proxy{p.Clients, p.Replication} {
		if x != nil {
			x.Close()
		}
	}
	return errors.Join(append(errs, p.unmount(), os.RemoveAll(p.dir))...)
}
