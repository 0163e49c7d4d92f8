package kafka

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/IBM/sarama"
)

func TestEnsureTopics(t *testing.T) {
	cfg := testConfig(t)
	a, b := Topic{Name: unique(t) + "a", Partitions: 6}, Topic{Name: unique(t) + "b", Partitions: 1, Replication: 1}
	var wg sync.WaitGroup
	for range 4 { // services that start together
		wg.Go(func() {
			if err := EnsureTopics(testContext(t), cfg, a, b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := EnsureTopics(testContext(t), cfg, a, b); err != nil {
		t.Fatal(err)
	}

	var mismatch *TopicMismatchError
	a.Partitions = 12
	err := EnsureTopics(testContext(t), cfg, a)
	if !errors.As(err, &mismatch) || *mismatch != (TopicMismatchError{a.Name, "partitions", "12", "6"}) {
		t.Errorf("partitions: %v", err)
	}

	admin := testAdmin(t, cfg)
	for _, c := range []struct{ setting, value string }{
		{"cleanup.policy", "compact"}, {"retention.ms", "604800000"}, {"retention.bytes", "1000000"},
	} {
		name := unique(t)
		config := map[string]*string{}
		for i := range kept {
			config[kept[i].setting] = &kept[i].value
		}
		config[c.setting] = &c.value
		if err := admin.CreateTopic(name, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: config}, false); err != nil {
			t.Fatal(err)
		}
		err := EnsureTopics(testContext(t), cfg, Topic{Name: name, Partitions: 1})
		if !errors.As(err, &mismatch) || mismatch.Setting != c.setting || mismatch.Actual != c.value {
			t.Errorf("%s: %v", c.setting, err)
		}
	}
	name := unique(t) // made by someone else, with the broker's defaults
	if err := admin.CreateTopic(name, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false); err != nil {
		t.Fatal(err)
	}
	if err := EnsureTopics(testContext(t), cfg, Topic{Name: name, Partitions: 1}); !errors.As(err, &mismatch) || mismatch.Setting != "retention.ms" {
		t.Errorf("defaults: %v", err)
	}
}

func TestEnsureTopicsErrors(t *testing.T) {
	cfg := testConfig(t)
	if err := EnsureTopics(testContext(t), cfg, Topic{Name: unique(t)}); err == nil {
		t.Error("0 partitions, no error")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	cfg.Brokers = []string{"127.0.0.1:1"}
	if err := EnsureTopics(ended, cfg, Topic{Name: "x", Partitions: 1}); err == nil {
		t.Error("no cluster, no error")
	}
}
