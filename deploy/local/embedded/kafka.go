package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// KafkaOptions says which broker to use and where it keeps its data.
type KafkaOptions struct {
	// Brokers are the addresses of a running cluster. When set, nothing is
	// started and Stop does nothing.
	Brokers []string
	// DataDir is made if missing; the broker's data is in DataDir/kafka and
	// survives restarts. Empty means memory alone.
	DataDir string
	// SyncWrites has every batch and every committed offset reach the disk
	// before it is acknowledged, so that they survive the loss of power too.
	// Without it they survive the loss of the process, a kill -9 included, as
	// with Kafka's own defaults. It costs two fsyncs per batch: producing one
	// record at a time takes 0.45 ms each instead of 0.05 ms on a local SSD.
	SyncWrites bool
	// Logf receives progress in plain sentences; nil is silence.
	Logf func(format string, args ...any)
}

// Kafka is a running broker. Its methods are safe for concurrent use.
type Kafka struct {
	brokers []string
	cluster *kfake.Cluster // nil when the brokers are not ours
	lock    *os.File       // nil without a data directory

	stopOnce sync.Once
	stopped  chan struct{}
}

// StartKafka starts a development broker inside this process: one broker on
// 127.0.0.1, on the port of its last run where that is still free. It speaks
// Kafka's protocol (topics, idempotent and transactional producing, consumer
// groups) without replication, access control or Kafka's own code: what must
// hold on Kafka has to be tested on Kafka, see [StartApacheKafka].
//
// With a DataDir, what is kept: topics with their partitions and settings from
// the moment CreateTopics answers, records from the moment a produce is
// acknowledged, committed offsets, and producer ids. What a kill -9 loses is
// the membership of consumer groups, which then join again. Topics are not
// created by asking for them.
func StartKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	if len(o.Brokers) > 0 {
		return &Kafka{brokers: o.Brokers}, nil
	}
	k, err := startOwnKafka(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start kafka: %w", err)
	}
	return k, nil
}

func startOwnKafka(ctx context.Context, o KafkaOptions) (_ *Kafka, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.DefaultNumPartitions(1),
		kfake.GroupMinSessionTimeout(time.Second), // so that tests of lost consumers need not wait
		kfake.BrokerConfigs(map[string]string{"default.replication.factor": "1"}),
	}
	k := &Kafka{stopped: make(chan struct{})}
	if o.DataDir != "" {
		dir, err := absolute(o.DataDir)
		if err != nil {
			return nil, fmt.Errorf("make the data directory: %w", err)
		}
		if k.lock, err = lockFile(filepath.Join(dir, "kafka.lock")); err != nil {
			return nil, err
		}
		defer func() {
			if k.cluster == nil {
				_ = k.lock.Close()
			}
		}()
		portFile := filepath.Join(dir, "kafka.port")
		opts = append(opts, kfake.DataDir(filepath.Join(dir, "kafka")), kfake.ListenFn(listenOnPortOf(portFile)))
		if o.SyncWrites {
			opts = append(opts, kfake.SyncWrites())
		}
	}
	if k.cluster, err = kfake.NewCluster(opts...); err != nil {
		k.cluster = nil
		return nil, err
	}
	k.brokers = k.cluster.ListenAddrs()
	logfOrSilent(o.Logf)("the development broker for Kafka answers on %s", k.brokers[0])
	return k, nil
}

// listenOnPortOf listens on the port remembered in file, or on any free one,
// and remembers it.
func listenOnPortOf(file string) func(network, address string) (net.Listener, error) {
	return func(network, _ string) (net.Listener, error) {
		port, err := choosePort(file)
		if err != nil {
			return nil, err
		}
		l, err := net.Listen(network, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			l, err = net.Listen(network, "127.0.0.1:0")
		}
		if err != nil {
			return nil, err
		}
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			rememberNumber(file, tcp.Port)
		}
		return l, nil
	}
}

// Brokers answers the addresses to connect to.
func (k *Kafka) Brokers() []string { return append([]string(nil), k.brokers...) }

// Stop closes the broker, having written what it keeps, and waits for that
// until ctx ends. Further calls wait for the same.
func (k *Kafka) Stop(ctx context.Context) error {
	if k.cluster == nil {
		return nil
	}
	k.stopOnce.Do(func() {
		go func() {
			defer close(k.stopped)
			k.cluster.Close()
			if k.lock != nil {
				_ = k.lock.Close()
			}
		}()
	})
	select {
	case <-k.stopped:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("stop kafka"), ctx.Err())
	}
}
