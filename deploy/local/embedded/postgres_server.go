package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	launchAttemptMax = 5
	readyTimeout     = 2 * time.Minute // recovery after a crash replays the log first
	quitTimeout      = 10 * time.Second
	pollInterval     = 50 * time.Millisecond
	logSizeMax       = 16 << 20 // bytes; the log before that is kept as postgres.log.1
)

// server is our own Postgres process.
type server struct {
	cmd    *exec.Cmd
	port   int
	exited chan struct{} // closed when the process is gone and reaped
}

// launch starts the server and waits until it answers. Another process may
// take the port between our choosing it and Postgres binding it, and the
// backends of a killed server may hold its memory for a moment: then try again.
func launch(ctx context.Context, b binaries, acct account, dir, pw string, env []string, logf func(string, ...any)) (*server, error) {
	data, portFile := filepath.Join(dir, "postgres"), filepath.Join(dir, "postgres.port")
	for attempt := 1; ; attempt++ {
		port, err := choosePort(portFile)
		if err != nil {
			return nil, err
		}
		log, err := openLog(filepath.Join(dir, "postgres.log"))
		if err != nil {
			return nil, fmt.Errorf("open the log: %w", err)
		}
		from, _ := log.Seek(0, io.SeekEnd)
		s, err := spawn(b, acct, data, port, env, log)
		if err == nil {
			err = s.ready(ctx, pw, data)
		}
		said := readFrom(log, from)
		_ = log.Close()
		if err == nil {
			rememberNumber(portFile, port)
			logf("Postgres %d answers on 127.0.0.1:%d", b.major, port)
			return s, nil
		}
		if s != nil {
			quit, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
			_ = s.stop(quit)
			cancel()
		}
		passing := strings.Contains(said, "Address already in use") || strings.Contains(said, "could not create any TCP/IP sockets") ||
			strings.Contains(said, "is still in use")
		if !passing || attempt == launchAttemptMax || ctx.Err() != nil {
			return nil, fmt.Errorf("%w; the end of %s:\n%s", err, filepath.Join(dir, "postgres.log"), said)
		}
		logf("Postgres could not start yet, trying again (%d of %d)", attempt+1, launchAttemptMax)
		if err := pause(ctx, time.Duration(attempt)*200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func spawn(b binaries, acct account, data string, port int, env []string, log *os.File) (*server, error) {
	args := []string{"-D", data}
	for _, setting := range []string{
		"listen_addresses=127.0.0.1",
		fmt.Sprintf("port=%d", port),
		"unix_socket_directories=",
		"max_connections=200",
		"shared_buffers=256MB",
		"max_wal_size=2GB",
		"fsync=on",
		"timezone=UTC",
		"log_timezone=UTC",
		"log_destination=stderr",
		"logging_collector=off",
		"log_line_prefix=%m [%p] %d ",
		"log_min_duration_statement=1s",
		"log_lock_waits=on",
		"log_checkpoints=off",
	} {
		args = append(args, "-c", setting)
	}
	cmd := exec.Command(filepath.Join(b.dir, "postgres"), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(cleanEnv(), env...)
	cmd.Dir = data
	acct.run(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, port: port, exited: make(chan struct{})}
	go func() {
		defer close(s.exited)
		_ = cmd.Wait() // how it ended is in the log; that it ended is what counts
	}()
	return s, nil
}

// ready waits until the server answers, and answers from our data directory.
func (s *server) ready(ctx context.Context, pw, data string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last := errors.New("not asked yet")
	for {
		select {
		case <-s.exited:
			return fmt.Errorf("the server exited (%s)", s.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w (last: %w)", ctx.Err(), last)
		case <-tick.C:
		}
		if last = s.ping(ctx, pw, data); last == nil {
			return nil
		}
		var pg *pgconn.PgError
		if errors.As(last, &pg) && pg.Code == "28P01" {
			// Either the password was changed, or another server has the port
			// and ours is about to exit.
			select {
			case <-s.exited:
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
				return fmt.Errorf("the server refuses the password kept in postgres.password: %w", last)
			}
		}
	}
}

func (s *server) ping(ctx context.Context, pw, data string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, ownDSN(s.port, pw).String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var serves string
	if err := conn.QueryRow(ctx, "show data_directory").Scan(&serves); err != nil {
		return err
	}
	if serves != data {
		return fmt.Errorf("port %d answers from %s, not from %s", s.port, serves, data)
	}
	return nil
}

func (s *server) stop(ctx context.Context) error {
	_ = s.cmd.Process.Signal(syscall.SIGINT) // fast shutdown; fails only if it is gone
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT) // immediate shutdown
	select {
	case <-s.exited:
	case <-time.After(quitTimeout):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	return ctx.Err()
}

func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > logSizeMax {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
}

// readFrom reads what was logged since an offset, its last 4 KB.
func readFrom(f *os.File, from int64) string {
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		from = max(from, end-4096)
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, from, 4096))
	return strings.TrimSpace(string(b))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
