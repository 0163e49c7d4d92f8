// Command testenv runs a command, such as the tests, with a real PostgreSQL server and, where Java and Maven are installed,
// a real Apache Kafka, which end with it. It is run in the root of the repository:
//
//	testenv go test ./...
//
// It sets BILLING_TEST_POSTGRES_DSN and BILLING_TEST_KAFKA_BROKERS for the command. Under CI=true Apache Kafka is required.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"example.com/billing/deploy/local/embedded"
)

func main() {
	if len(os.Args) < 2 || os.Args[1] == "--help" {
		fmt.Fprintln(os.Stderr, "usage: testenv COMMAND [ARGUMENT...]: runs the command with Postgres and Kafka to test on")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var failed *exec.ExitError
	if errors.Is(err, errCommand) && errors.As(err, &failed) { // it has said why
		os.Exit(max(failed.ExitCode(), 1))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		os.Exit(1)
	}
}

// errCommand is in the chain of an error of the command that was run, not of what it was to run with.
var errCommand = errors.New("the command failed")

func say(format string, args ...any) { fmt.Printf("· "+format+"\n", args...) }

func run(ctx context.Context, command []string) (err error) {
	dir, err := os.MkdirTemp("", "billing-test-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{
		DSN: os.Getenv("BILLING_POSTGRES_DSN"), Bin: os.Getenv("BILLING_POSTGRES_BIN"), DataDir: dir, Logf: say,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, atEnd(pg.Stop)) }()
	env := append(os.Environ(), "BILLING_TEST_POSTGRES_DSN="+pg.DSN("postgres"))
	switch missing := embedded.ApacheKafkaAvailable(); {
	case missing == nil:
		kafka, err := embedded.StartApacheKafka(ctx, embedded.ApacheKafkaOptions{Script: "deploy/kafka/run.sh", DataDir: filepath.Join(dir, "apache-kafka"), Logf: say})
		if err != nil {
			return err
		}
		defer func() { _ = atEnd(kafka.Stop) }()
		env = append(env, "BILLING_TEST_KAFKA_BROKERS="+strings.Join(kafka.Brokers(), ","))
	case os.Getenv("CI") == "true":
		return fmt.Errorf("CI needs Apache Kafka: %w", missing)
	default:
		say("no Apache Kafka: %v; its tests are skipped, the others use the development broker", missing)
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdout, os.Stderr, env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return errors.Join(errCommand, err)
	}
	return nil
}

func atEnd(stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return stop(ctx)
}
