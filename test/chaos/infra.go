package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/test/failover/pgpair"
	"example.com/billing/test/process"
)

// startMax bounds a start of Postgres or Kafka; the first one of all may have to download them.
const startMax = 5 * time.Minute

// postgresNode is the Postgres that all three databases are on.
type postgresNode struct {
	dir   string
	port  int
	still []int         // what pause has stopped
	front *pgpair.Proxy // where the links lead to, whichever server is behind it

	mu      sync.Mutex
	pg      *embedded.Postgres
	retired *pgpair.Server // was replaced, and is frozen
}

// server is the one that runs now.
func (n *postgresNode) server() *embedded.Postgres {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pg
}

// Start starts Postgres, or starts it again.
func (n *postgresNode) Start() error { return n.start() }

// misclock starts Postgres again with a clock that is ahead.
func (n *postgresNode) misclock(d time.Duration) error {
	env, err := pgpair.Clock(d)
	if err != nil {
		return err
	}
	return errors.Join(n.Kill(), n.start(env...))
}

// start starts Postgres with more in its environment.
func (n *postgresNode) start(env ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startMax)
	defer cancel()
	if n.pg != nil {
		if err := n.pg.Stop(ctx); err != nil { // it is gone; this gives up the data directory
			return err
		}
	}
	if err := writePort(n.dir, "postgres.port", n.port); err != nil {
		return err
	}
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Bin: os.Getenv("BILLING_POSTGRES_BIN"), DataDir: n.dir, Env: env})
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.pg = pg
	n.mu.Unlock()
	if !strings.Contains(pg.DSN("postgres"), ":"+strconv.Itoa(n.port)+"/") {
		return fmt.Errorf("postgres is not on port %d: somebody took it", n.port)
	}
	return nil
}

// writePort tells package embedded which port to take: the one that the proxies lead to.
func writePort(dir, file string, port int) error {
	return os.WriteFile(filepath.Join(dir, file), fmt.Appendln(nil, port), 0o600)
}

// kill ends the postmaster; its backends end by themselves when they see that it is gone.
func (n *postgresNode) Kill() error {
	if err := syscall.Kill(n.pg.PID(), syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill postgres: %w", err)
	}
	<-n.pg.Done()
	return nil
}

// pause stops the postmaster, then all its backends, as a machine that freezes does.
func (n *postgresNode) Pause() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, n.pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	if err := n.stopOne(n.pg.PID()); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
	if err != nil {
		return errors.Join(err, n.Resume())
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	for _, pid := range pids {
		err = errors.Join(err, n.stopOne(pid))
	}
	return err
}

// stopOne stops a process; one that has ended meanwhile need not be stopped.
func (n *postgresNode) stopOne(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("pause postgres: %w", err)
	}
	n.still = append(n.still, pid)
	return nil
}

func (n *postgresNode) Resume() error {
	var errs []error
	for _, pid := range n.still {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("resume postgres: %w", err))
		}
	}
	n.still = nil
	return errors.Join(errs...)
}

func (n *postgresNode) stop() error {
	if n.pg == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), process.StopMax)
	defer cancel()
	return errors.Join(n.Resume(), n.retire(), n.pg.Stop(ctx))
}

// kafkaNode is the one Apache Kafka. Each client has a listener of its own, which it is told to come through a proxy of its own
// to: clients follow the address that a broker advertises, and so do these.
type kafkaNode struct {
	dir, script string
	port        int
	kafka       *embedded.ApacheKafka
}

// listener is where one client reaches the broker, and what that client is told.
type listener struct{ port, advertised int }

// java is run.sh's Java: before it runs the broker, it gives the broker's settings the further listeners.
const java = `#!/usr/bin/env bash
# Java for deploy/kafka/run.sh: the broker gets a listener for each client, behind that client's proxy.
set -euo pipefail
last=${*: -1}
if [[ $last == */server.properties ]]; then
  sed -e 's|^listeners=.*|&%s|' -e 's|^advertised.listeners=.*|&%s|' -e 's|^listener.security.protocol.map=.*|&%s|' "$last" >"$last.new"
  mv "$last.new" "$last"
fi
exec %q "$@"
`

// newKafka prepares a Kafka with these listeners besides its own.
func newKafka(dir, root string, port int, listeners []listener) (*kafkaNode, error) {
	if err := embedded.ApacheKafkaAvailable(); err != nil {
		return nil, err
	}
	found := "java" // as run.sh looks for it
	if home := os.Getenv("JAVA_HOME"); home != "" {
		found = filepath.Join(home, "bin", "java")
	}
	var bound, told, secure strings.Builder
	for i, l := range listeners {
		fmt.Fprintf(&bound, ",CLIENT%d://127.0.0.1:%d", i, l.port)
		fmt.Fprintf(&told, ",CLIENT%d://127.0.0.1:%d", i, l.advertised)
		fmt.Fprintf(&secure, ",CLIENT%d:PLAINTEXT", i)
	}
	home := filepath.Join(dir, "java")
	if err := os.MkdirAll(filepath.Join(home, "bin"), 0o750); err != nil {
		return nil, err
	}
	script := fmt.Sprintf(java, bound.String(), told.String(), secure.String(), found)
	if err := os.WriteFile(filepath.Join(home, "bin", "java"), []byte(script), 0o700); err != nil { //nolint:gosec // it is run
		return nil, err
	}
	if err := os.Setenv("JAVA_HOME", home); err != nil { // run.sh takes it from there
		return nil, err
	}
	return &kafkaNode{dir: dir, script: filepath.Join(root, "deploy/kafka/run.sh"), port: port}, nil
}

func (n *kafkaNode) Start() error {
	ctx, cancel := context.WithTimeout(context.Background(), startMax)
	defer cancel()
	if err := writePort(n.dir, "apache-kafka.port", n.port); err != nil {
		return err
	}
	kafka, err := embedded.StartApacheKafka(ctx, embedded.ApacheKafkaOptions{Script: n.script, DataDir: n.dir})
	if err != nil {
		return err
	}
	n.kafka = kafka
	if !strings.HasSuffix(kafka.Brokers()[0], ":"+strconv.Itoa(n.port)) {
		return fmt.Errorf("kafka is not on port %d: somebody took it", n.port)
	}
	return nil
}

func (n *kafkaNode) Kill() error { return n.kafka.Kill() }

func (n *kafkaNode) Pause() error { return syscall.Kill(n.kafka.PID(), syscall.SIGSTOP) }

func (n *kafkaNode) Resume() error { return syscall.Kill(n.kafka.PID(), syscall.SIGCONT) }

func (n *kafkaNode) stop() error {
	if n.kafka == nil {
		return nil
	}
	_ = n.Resume() // one that is paused hears no SIGTERM
	ctx, cancel := context.WithTimeout(context.Background(), process.StopMax)
	defer cancel()
	return n.kafka.Stop(ctx)
}
