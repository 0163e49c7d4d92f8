package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/IBM/sarama"
)

// Topic is a topic as it must be: Partitions wide, keeping every message.
type Topic struct {
	Name        string
	Partitions  int32
	Replication int16 // of a topic to be created; 0 or -1 = the broker's default
}

// TopicMismatchError tells that a topic is not as it must be.
type TopicMismatchError struct {
	Topic, Setting, Expected, Actual string
}

// Error names the topic, the setting, and both values.
func (e *TopicMismatchError) Error() string {
	return fmt.Sprintf("kafka: topic %s: %s: expected %s, actual %s", e.Topic, e.Setting, e.Expected, e.Actual)
}

// kept are the settings under which a topic keeps every message for ever.
// Compaction by key would delete history.
var kept = []struct{ setting, value string }{
	{"cleanup.policy", "delete"},
	{"retention.ms", "-1"},
	{"retention.bytes", "-1"},
}

// EnsureTopics creates the missing topics so that they keep every message, and
// asserts of all of them the partition count (another one breaks the order of
// keys), cleanup.policy, retention.ms and retention.bytes. It tries once, within
// seconds, and changes nothing that exists. Errors: *TopicMismatchError, or the
// cluster cannot be asked. Safe for concurrent use, also by several processes.
func EnsureTopics(ctx context.Context, cfg Config, topics ...Topic) error {
	cfg, err := cfg.prepared()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- ensureTopics(ctx, cfg, topics) }() // ends by sarama's timeouts
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	return wrap("ensure topics", err)
}

func ensureTopics(ctx context.Context, cfg Config, topics []Topic) error {
	conf := cfg.sarama()
	conf.Metadata.Full = true // the admin client finds the controller with it
	admin, err := sarama.NewClusterAdmin(cfg.Brokers, conf)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = admin.Close() }()
	for _, t := range topics {
		if err := createTopic(admin, t); err != nil {
			return fmt.Errorf("create %s: %w", t.Name, err)
		}
		if err := assertTopic(ctx, admin, t); err != nil {
			return err
		}
	}
	return nil
}

func createTopic(admin sarama.ClusterAdmin, t Topic) error {
	if t.Partitions < 1 {
		return fmt.Errorf("%d partitions", t.Partitions)
	}
	detail := &sarama.TopicDetail{
		NumPartitions: t.Partitions, ReplicationFactor: t.Replication, ConfigEntries: map[string]*string{},
	}
	if detail.ReplicationFactor == 0 {
		detail.ReplicationFactor = -1
	}
	for i := range kept {
		detail.ConfigEntries[kept[i].setting] = &kept[i].value
	}
	err := admin.CreateTopic(t.Name, detail, false)
	if errors.Is(err, sarama.ErrTopicAlreadyExists) {
		return nil
	}
	return err
}

// assertTopic compares the topic with what it must be. A new topic is not known
// to every broker at once, so it asks again while the topic is unknown.
func assertTopic(ctx context.Context, admin sarama.ClusterAdmin, t Topic) error {
	partitions, err := partitionCount(ctx, admin, t.Name)
	if err != nil {
		return fmt.Errorf("describe %s: %w", t.Name, err)
	}
	if partitions != int(t.Partitions) {
		return &TopicMismatchError{t.Name, "partitions", strconv.Itoa(int(t.Partitions)), strconv.Itoa(partitions)}
	}
	names := make([]string, len(kept))
	for i := range kept {
		names[i] = kept[i].setting
	}
	results, err := admin.DescribeConfigs([]*sarama.ConfigResource{{Type: sarama.TopicResource, Name: t.Name, ConfigNames: names}}, sarama.DescribeConfigsOptions{})
	if err == nil && len(results) == 1 && results[0].ErrorCode != sarama.ErrNoError {
		err = results[0].ErrorCode
	}
	if err == nil && len(results) != 1 {
		err = fmt.Errorf("%d answers to one question", len(results))
	}
	if err != nil {
		return fmt.Errorf("describe settings of %s: %w", t.Name, err)
	}
	actual := map[string]string{}
	for _, e := range results[0].Configs {
		actual[e.Name] = e.Value
	}
	for _, k := range kept {
		if actual[k.setting] != k.value {
			return &TopicMismatchError{t.Name, k.setting, k.value, actual[k.setting]}
		}
	}
	return nil
}

func partitionCount(ctx context.Context, admin sarama.ClusterAdmin, topic string) (int, error) {
	const attemptMax = 30
	for attempt := 1; ; attempt++ {
		found, err := admin.DescribeTopics([]string{topic})
		if err == nil && len(found) != 1 {
			err = sarama.ErrIncompleteResponse
		}
		if err == nil && !errors.Is(found[0].Err, sarama.ErrNoError) {
			err = found[0].Err
		}
		if err == nil {
			return len(found[0].Partitions), nil
		}
		var code sarama.KError
		if attempt == attemptMax || !errors.As(err, &code) || !retriable(code) || !pause(ctx, retryPause) {
			return 0, err
		}
	}
}
