package run_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"example.com/billing/pkg/run"
)

const asMain = "RUN_TEST_MAIN_ARGS"

func TestPostgresDoesNotShowThePassword(t *testing.T) {
	for _, address := range []string{
		"postgres://u:s3cret@h:port/db", "postgres://u:a/s3cret@h:5432/db", "host=h password = s3cret port=x", "postgres://u:s3cret@127.0.0.1:1/db",
		"postgres://127.0.0.1:1/db?password=s3cret",
	} {
		var log bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		app := run.NewApp(ctx, slog.New(slog.NewTextHandler(&log, nil)))
		_, err := app.Postgres(run.Database{DSN: address, Limit: time.Second})
		if err == nil || strings.Contains(err.Error()+log.String(), "s3cret") {
			t.Errorf("%s: %v %s", address, err, log.String())
		}
		cancel()
		_ = app.Close()
	}
}

type settings struct {
	PostgresDSN string `name:"postgres-dsn"`
	Pages       int
}

// The parser of the command line repeats an argument that it does not take.
func TestMainDoesNotShowThePassword(t *testing.T) {
	if args := os.Getenv(asMain); args != "" {
		os.Args = append([]string{"service"}, strings.Split(args, "\n")...)
		run.Main("service", "A service.", &settings{}, func(ctx context.Context, _ settings) error { return ctx.Err() })
		return
	}
	const address = "postgres://u:s3cret@h/db"
	for _, args := range []string{address, "--dsn=" + address, "--pages=" + address, "--postgres-dsn\n" + address + "\n" + address} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainDoesNotShowThePassword$")
		cmd.Env = append(os.Environ(), asMain+"="+args)
		if shown, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(shown), "s3cret") {
			t.Errorf("%s: %s %v", args, shown, err)
		}
	}
}
