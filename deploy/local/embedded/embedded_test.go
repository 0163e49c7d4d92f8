package embedded_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/billing/deploy/local/embedded"
)

// Tests of a kill -9 run this test binary again as a helper that starts a
// server, writes to it and waits to be killed.
const (
	helperEnv = "EMBEDDED_TEST_HELPER"
	dirEnv    = "EMBEDDED_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "postgres":
		helper(postgresHelper)
	case "kafka":
		helper(kafkaHelper)
	case "apache-kafka":
		helper(apacheKafkaHelper)
	}
}

func helper(run func(ctx context.Context, dir string) (string, error)) {
	said, err := run(context.Background(), os.Getenv(dirEnv))
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	fmt.Println("ready:", said)
	time.Sleep(time.Minute)
}

// runAndKill runs a helper until it is ready, kills it, and answers what it said.
func runAndKill(t *testing.T, name, dir string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+name, dirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // "signal: killed"
	said, ok := strings.CutPrefix(strings.TrimSpace(line), "ready: ")
	if !ok {
		t.Fatalf("helper %s: %s", name, line)
	}
	return said
}

// dataDir is a temporary directory that Postgres can reach when root runs the
// tests: the parent of t.TempDir is closed to other users.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func startPostgres(t *testing.T, o embedded.PostgresOptions) *embedded.Postgres {
	t.Helper()
	o.Logf = t.Logf
	begun := time.Now()
	p, err := embedded.StartPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %s", time.Since(begun).Round(time.Millisecond))
	t.Cleanup(func() { stop(t, p) })
	return p
}

// stop stops a server; it may be stopped already.
func stop(t *testing.T, s interface{ Stop(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}
