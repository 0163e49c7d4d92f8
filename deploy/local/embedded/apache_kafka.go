package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	javaVersionMin   = 17
	kafkaFetchMax    = 10 * time.Minute // the first run downloads the broker
	kafkaAnswerMax   = 2 * time.Minute
	kafkaPingTimeout = 2 * time.Second
)

// ApacheKafkaOptions says how to run a real Apache Kafka.
type ApacheKafkaOptions struct {
	// Script is the path of deploy/kafka/run.sh.
	Script string
	// DataDir is made if missing and survives restarts. In it: apache-kafka
	// (the broker's), apache-kafka.log, apache-kafka.lock.
	DataDir string
	// Logf receives progress in plain sentences; nil is silence.
	Logf func(format string, args ...any)
}

// ApacheKafka is a running single-node Apache Kafka. Its methods are safe for
// concurrent use.
type ApacheKafka struct {
	addr   string
	cmd    *exec.Cmd
	exited chan struct{}
	lock   *os.File
	unlock sync.Once
}

// ApacheKafkaAvailable answers nil if this machine can run [StartApacheKafka],
// and otherwise says what is missing.
func ApacheKafkaAvailable() error {
	if _, err := exec.LookPath("bash"); err != nil {
		return fmt.Errorf("bash is missing: %w", err)
	}
	java := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		java = filepath.Join(home, "bin", "java")
	}
	out, err := exec.Command(java, "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("java %d or later is missing: %w", javaVersionMin, err)
	}
	m := regexp.MustCompile(`version "(\d+)`).FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("java -version: unexpected answer %q", out)
	}
	if major, err := strconv.Atoi(string(m[1])); err != nil || major < javaVersionMin {
		return fmt.Errorf("java %d or later is missing: %s is version %s", javaVersionMin, java, m[1])
	}
	if _, err := exec.LookPath("mvn"); err != nil {
		return fmt.Errorf("maven is missing: %w", err)
	}
	return nil
}

// StartApacheKafka runs deploy/kafka/run.sh and waits until the broker
// answers: some seconds, and minutes the first time, when it is downloaded. It
// listens on 127.0.0.1, on the port of its last run where that is still free.
// A broker left over from a killed process is stopped first. ctx bounds the
// start, not the broker's life.
func StartApacheKafka(ctx context.Context, o ApacheKafkaOptions) (*ApacheKafka, error) {
	k, err := startApacheKafka(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start apache kafka: %w", err)
	}
	return k, nil
}

func startApacheKafka(ctx context.Context, o ApacheKafkaOptions) (_ *ApacheKafka, err error) {
	logf := logfOrSilent(o.Logf)
	if o.Script == "" || o.DataDir == "" {
		return nil, errors.New("the script and a data directory are required")
	}
	dir, err := absolute(o.DataDir)
	if err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := lockFile(filepath.Join(dir, "apache-kafka.lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	pidFile, broker := filepath.Join(dir, "apache-kafka.pid"), filepath.Join(dir, "apache-kafka")
	if err := stopLeftoverBroker(ctx, pidFile, broker, logf); err != nil {
		return nil, err
	}

	logf("fetching Apache Kafka, unless that is done already")
	fetchCtx, cancel := context.WithTimeout(ctx, kafkaFetchMax)
	defer cancel()
	if out, err := exec.CommandContext(fetchCtx, "bash", o.Script, "--fetch").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("fetch: %w\n%s", err, out)
	}

	portFile := filepath.Join(dir, "apache-kafka.port")
	port, err := choosePort(portFile)
	if err != nil {
		return nil, err
	}
	log, err := openLog(filepath.Join(dir, "apache-kafka.log"))
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	k := &ApacheKafka{
		addr:   net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		cmd:    exec.Command("bash", o.Script, "--data", broker, "--port", strconv.Itoa(port)),
		exited: make(chan struct{}),
		lock:   lock,
	}
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us, not for the broker
	if err := k.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(k.exited)
		_ = k.cmd.Wait() // how it ended is in the log
	}()
	rememberNumber(pidFile, k.PID())
	if err := k.ready(ctx); err != nil {
		_ = k.Kill()
		return nil, fmt.Errorf("%w; the end of %s:\n%s", err, log.Name(), readFrom(log, info.Size()))
	}
	rememberNumber(portFile, port)
	logf("Apache Kafka answers on %s", k.addr)
	return k, nil
}

// stopLeftoverBroker stops the broker that a killed process left running.
func stopLeftoverBroker(ctx context.Context, pidFile, broker string, logf func(string, ...any)) error {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return nil //nolint:nilerr // none was started here
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 || !runsWith(pid, broker) {
		return nil //nolint:nilerr // the file tells of no broker of ours
	}
	logf("stopping the Apache Kafka left over from before (pid %d)", pid)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the broker left over (pid %d): %w", pid, err)
		}
		for start := time.Now(); time.Since(start) < leftoverStopTimeout/2; {
			if !runsWith(pid, broker) {
				return nil
			}
			if err := pause(ctx, pollInterval); err != nil {
				return fmt.Errorf("stop the broker left over (pid %d): %w", pid, err)
			}
		}
	}
	return fmt.Errorf("the broker left over (pid %d) does not stop", pid)
}

// runsWith says whether a process has the broker's directory on its command
// line: as run.sh's argument, or in the path of the broker's configuration.
func runsWith(pid int, broker string) bool {
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && (strings.Contains(string(out), broker+"/server.properties") || strings.Contains(string(out), "--data "+broker+" "))
}

func (k *ApacheKafka) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, kafkaAnswerMax)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.addr))
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		ping, cancel := context.WithTimeout(ctx, kafkaPingTimeout)
		err := cl.Ping(ping)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-k.exited:
			return fmt.Errorf("the broker exited (%s)", k.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("the broker does not answer: %w (last: %w)", ctx.Err(), err)
		case <-time.After(2 * pollInterval):
		}
	}
}

// Brokers answers the address to connect to.
func (k *ApacheKafka) Brokers() []string { return []string{k.addr} }

// PID answers the broker's process id.
func (k *ApacheKafka) PID() int { return k.cmd.Process.Pid }

// Done is closed when the broker has exited, whoever stopped it. Stop is still
// needed then, to give up the data directory.
func (k *ApacheKafka) Done() <-chan struct{} { return k.exited }

// Kill ends the broker as a crash would (SIGKILL) and waits until it is gone.
func (k *ApacheKafka) Kill() error {
	select {
	case <-k.exited:
	default:
		// The group, for run.sh may still be formatting the storage.
		if err := syscall.Kill(-k.PID(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill apache kafka: %w", err)
		}
		<-k.exited
	}
	k.release()
	return nil
}

// Stop shuts the broker down cleanly (SIGTERM) and waits until it is gone.
// When ctx ends first it is killed, and Stop returns the context's error.
func (k *ApacheKafka) Stop(ctx context.Context) error {
	if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop apache kafka: %w", err)
	}
	select {
	case <-k.exited:
		k.release()
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop apache kafka: %w", ctx.Err()), k.Kill())
	}
}

func (k *ApacheKafka) release() { k.unlock.Do(func() { _ = k.lock.Close() }) }
