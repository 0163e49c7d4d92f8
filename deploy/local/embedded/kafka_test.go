package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"example.com/billing/deploy/local/embedded"
)

const (
	topic      = "transfers"
	group      = "readers"
	partitions = 3
	script     = "../../kafka/run.sh"
)

func kafkaHelper(ctx context.Context, dir string) (string, error) {
	k, err := embedded.StartKafka(ctx, embedded.KafkaOptions{DataDir: dir})
	if err != nil {
		return "", err
	}
	return k.Brokers()[0], fill(ctx, k.Brokers())
}

func apacheKafkaHelper(ctx context.Context, dir string) (string, error) {
	k, err := embedded.StartApacheKafka(ctx, embedded.ApacheKafkaOptions{Script: script, DataDir: dir})
	if err != nil {
		return "", err
	}
	return strconv.Itoa(k.PID()), fill(ctx, k.Brokers())
}

// fill makes the topic, produces two records and commits having read one.
func fill(ctx context.Context, brokers []string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := createTopic(ctx, brokers); err != nil {
		return err
	}
	for _, v := range []string{"debit", "credit"} {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte(v)}).FirstErr(); err != nil {
			return err
		}
	}
	return readOne(ctx, brokers, "debit")
}

func createTopic(ctx context.Context, brokers []string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer cl.Close()
	create := kmsg.NewPtrCreateTopicsRequest()
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = topic, partitions, 1
	setting := kmsg.NewCreateTopicsRequestTopicConfig()
	setting.Name, setting.Value = "retention.ms", kmsg.StringPtr("-1")
	t.Configs = append(t.Configs, setting)
	create.Topics = append(create.Topics, t)
	created, err := create.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(created.Topics[0].ErrorCode)
}

// readOne reads the group's next record and commits having read it.
func readOne(ctx context.Context, brokers []string, want string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group),
		kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(6*time.Second))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		got := cl.PollRecords(ctx, 1)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read %s: %w", want, err)
		}
		for _, r := range got.Records() {
			if string(r.Value) != want {
				return fmt.Errorf("read %s, want %s", r.Value, want)
			}
			return cl.CommitRecords(ctx, r)
		}
	}
}

// check finds the topic as it was made, and the group's offset where it was.
func check(t *testing.T, brokers []string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	md := kmsg.NewPtrMetadataRequest()
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = kmsg.StringPtr(topic)
	md.Topics = append(md.Topics, mt)
	got, err := md.RequestWith(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Topics[0].Partitions); n != partitions {
		t.Errorf("the topic has %d partitions, want %d", n, partitions)
	}
	ask := kmsg.NewPtrDescribeConfigsRequest()
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName, res.ConfigNames = kmsg.ConfigResourceTypeTopic, topic, []string{"retention.ms"}
	ask.Resources = append(ask.Resources, res)
	configs, err := ask.RequestWith(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	if c := configs.Resources[0].Configs; len(c) != 1 || c[0].Value == nil || *c[0].Value != "-1" {
		t.Errorf("retention.ms is %+v, want -1", c)
	}
	if err := readOne(t.Context(), brokers, "credit"); err != nil {
		t.Error(err)
	}
}

func startKafka(t *testing.T, o embedded.KafkaOptions) *embedded.Kafka {
	t.Helper()
	o.Logf = t.Logf
	begun := time.Now()
	k, err := embedded.StartKafka(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %s", time.Since(begun).Round(time.Millisecond))
	t.Cleanup(func() { stop(t, k) })
	return k
}

func TestKafkaKeepsItsDataAcrossRestarts(t *testing.T) {
	o := embedded.KafkaOptions{DataDir: t.TempDir()}
	k := startKafka(t, o)
	if err := fill(t.Context(), k.Brokers()); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.StartKafka(t.Context(), o); err == nil || !strings.Contains(err.Error(), "in use by another copy") {
		t.Errorf("second start on one directory: %v", err)
	}
	stop(t, k)
	check(t, startKafka(t, o).Brokers())
}

func TestKafkaKeepsItsDataAcrossAKill(t *testing.T) {
	dir := t.TempDir()
	runAndKill(t, "kafka", dir)
	check(t, startKafka(t, embedded.KafkaOptions{DataDir: dir}).Brokers())
}

func TestKafkaCreatesNoTopicForTheAsking(t *testing.T) {
	k := startKafka(t, embedded.KafkaOptions{}) // in memory
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()...), kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(0))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "misspelt"}).FirstErr(); !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("got %v", err)
	}
}

func TestKafkaElsewhere(t *testing.T) {
	k, err := embedded.StartKafka(t.Context(), embedded.KafkaOptions{Brokers: []string{"kafka:9092"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Brokers(); len(got) != 1 || got[0] != "kafka:9092" {
		t.Errorf("got %v", got)
	}
	stop(t, k)
}

func TestDevelopmentBrokerIsToldFromKafka(t *testing.T) {
	version, err := embedded.BrokerVersion(t.Context(), startKafka(t, embedded.KafkaOptions{}).Brokers())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(version)
	if strings.HasPrefix(version, embedded.ApacheKafkaPrefix) {
		t.Errorf("got %q", version)
	}
}

func TestApacheKafka(t *testing.T) {
	if err := embedded.ApacheKafkaAvailable(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI requires a real Kafka: %v", err)
		}
		t.Skipf("skipped: no real Kafka here: %v", err)
	}
	o := embedded.ApacheKafkaOptions{Script: script, DataDir: t.TempDir(), Logf: t.Logf}
	start := func() *embedded.ApacheKafka {
		t.Helper()
		begun := time.Now()
		k, err := embedded.StartApacheKafka(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("started in %s, pid %d", time.Since(begun).Round(time.Millisecond), k.PID())
		t.Cleanup(func() { _ = k.Kill() })
		return k
	}
	left := runAndKill(t, "apache-kafka", o.DataDir)
	k := start() // stops the one left over
	if strconv.Itoa(k.PID()) == left {
		t.Errorf("still process %s", left)
	}
	version, err := embedded.BrokerVersion(t.Context(), k.Brokers())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(version)
	if !strings.HasPrefix(version, embedded.ApacheKafkaPrefix+"v4.") {
		t.Errorf("got %q", version)
	}
	if _, err := embedded.StartApacheKafka(t.Context(), o); err == nil || !strings.Contains(err.Error(), "in use by another copy") {
		t.Errorf("second start on one directory: %v", err)
	}
	stop(t, k)
	if _, err := os.Stat(filepath.Join(o.DataDir, "apache-kafka", "data", ".kafka_cleanshutdown")); err != nil {
		t.Errorf("the broker did not stop cleanly: %v", err)
	}
	k = start()
	if err := k.Kill(); err != nil { // as a crash would
		t.Fatal(err)
	}
	k = start()
	check(t, k.Brokers())
}
