package pgpair

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/embedded"
)

// Server is one Postgres of a pair.
type Server struct {
	Name string
	dir  string

	mu     sync.Mutex
	pg     *embedded.Postgres
	env    []string
	frozen []int // processes that Freeze has stopped
}

// Start starts the server, or starts it again on its data and its port. Env is added to its environment.
func (s *Server) Start(ctx context.Context, env ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pg != nil {
		if err := s.pg.Stop(ctx); err != nil { // gives up the data directory of a server that has ended
			return err
		}
	}
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Bin: os.Getenv("BILLING_POSTGRES_BIN"), DataDir: s.dir, Env: env})
	if err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	s.pg, s.env = pg, env
	return nil
}

// Postgres is the running server.
func (s *Server) Postgres() *embedded.Postgres { return s.pg }

// Dir is the folder that its data directory is in.
func (s *Server) Dir() string { return s.dir }

// DSN is a database's address on this very server.
func (s *Server) DSN(database string) string { return s.pg.DSN(database) }

// Addr is where the server listens.
func (s *Server) Addr() string {
	u, err := url.Parse(s.pg.DSN("postgres"))
	if err != nil {
		panic(err) // it is ours
	}
	return u.Host
}

// Ended reports whether the server has exited, by itself or by Kill.
func (s *Server) Ended() bool {
	select {
	case <-s.pg.Done():
		return true
	default:
		return false
	}
}

// Kill ends the server as a loss of power does: nothing is flushed, and all its processes are gone when Kill returns.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := append([]int{s.pg.PID()}, children(s.pg.PID())...)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %s: %w", s.Name, err)
		}
	}
	s.frozen = nil
	<-s.pg.Done()
	return nil
}

// Freeze stops all processes of the server where they are. Their sockets stay open, as those of a frozen machine do.
func (s *Server) Freeze() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The postmaster first: it starts no others then.
	if err := s.stopOne(s.pg.PID()); err != nil {
		return err
	}
	for _, pid := range children(s.pg.PID()) {
		if err := s.stopOne(pid); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) stopOne(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("freeze %s: %w", s.Name, err)
	}
	s.frozen = append(s.frozen, pid)
	return nil
}

// Thaw lets a frozen server go on.
func (s *Server) Thaw() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, pid := range s.frozen {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("thaw %s: %w", s.Name, err))
		}
	}
	s.frozen = nil
	return errors.Join(errs...)
}

// Frozen reports whether the server was frozen and is still.
func (s *Server) Frozen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.frozen) > 0
}

// Exec runs statements in a database, each by itself.
func (s *Server) Exec(ctx context.Context, database string, statements ...string) error {
	conn, err := pgx.Connect(ctx, s.DSN(database))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %s: %w", s.Name, sql, err)
		}
	}
	return nil
}

// Number reads one number from a database.
func (s *Server) Number(ctx context.Context, database, sql string, args ...any) (n int64, err error) {
	conn, err := pgx.Connect(ctx, s.DSN(database))
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, sql, args...).Scan(&n)
	return n, err
}

// Close ends the server by whatever it takes.
func (s *Server) Close() error {
	if s.pg == nil {
		return nil
	}
	if s.Frozen() { // it would take long to come to an end
		if err := s.Kill(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.pg.Stop(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// children are a process's own, as the kernel has them.
func children(parent int) (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range found {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && parentOf(path) == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}

func parentOf(status string) int {
	f, err := os.Open(status) //nolint:gosec // of the kernel
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "PPid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(value))
			return pid
		}
	}
	return 0
}
