package embedded

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// ApacheKafkaPrefix begins what [BrokerVersion] answers for a real Apache Kafka.
const ApacheKafkaPrefix = "Apache Kafka "

// BrokerVersion asks a broker what it is, and answers for example
//
//	Apache Kafka v4.4 (metadata.version 33, quorum leader 1 epoch 3)
//	not Apache Kafka: no KRaft quorum behind it
//
// Kafka's protocol has no field for the software or its version. What a broker
// advertises in ApiVersions (its requests, and features such as
// metadata.version) tells the version, but the development broker advertises
// features too. What it lacks is a Raft quorum behind it: DescribeQuorum is
// answered by the controller of a KRaft cluster alone, with its leader and
// epoch. That decides, so a ZooKeeper cluster (Kafka before 4.0) counts as not
// Apache Kafka too.
func BrokerVersion(ctx context.Context, brokers []string) (string, error) {
	version, err := brokerVersion(ctx, brokers)
	if err != nil {
		return "", fmt.Errorf("ask the version of %s: %w", strings.Join(brokers, ","), err)
	}
	return version, nil
}

func brokerVersion(ctx context.Context, brokers []string) (string, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return "", err
	}
	defer cl.Close()

	ask := kmsg.NewPtrApiVersionsRequest()
	ask.ClientSoftwareName, ask.ClientSoftwareVersion = "billing", "1"
	api, err := ask.RequestWith(ctx, cl)
	if err != nil {
		return "", err
	}
	if err := kerr.ErrorForCode(api.ErrorCode); err != nil {
		return "", err
	}
	spoken := kversion.FromApiVersionsResponse(api)
	leader, epoch, err := quorum(ctx, cl, spoken)
	if errors.Is(err, errNoQuorum) {
		return "not Apache Kafka: no KRaft quorum behind it", nil
	}
	if err != nil {
		return "", err
	}
	guess, level := spoken.VersionGuess(), int16(0)
	for _, f := range api.FinalizedFeatures {
		if f.Name == "metadata.version" {
			level = f.MaxVersionLevel
		}
	}
	return fmt.Sprintf("%s%s (metadata.version %d, quorum leader %d epoch %d)", ApacheKafkaPrefix, guess, level, leader, epoch), nil
}

var errNoQuorum = errors.New("no KRaft quorum")

func quorum(ctx context.Context, cl *kgo.Client, spoken *kversion.Versions) (leader, epoch int32, err error) {
	ask := kmsg.NewPtrDescribeQuorumRequest()
	if !spoken.HasKey(ask.Key()) {
		return 0, 0, errNoQuorum
	}
	topic := kmsg.NewDescribeQuorumRequestTopic()
	topic.Topic = "__cluster_metadata"
	topic.Partitions = append(topic.Partitions, kmsg.NewDescribeQuorumRequestTopicPartition())
	ask.Topics = append(ask.Topics, topic)
	got, err := ask.RequestWith(ctx, cl)
	if err != nil {
		return 0, 0, fmt.Errorf("describe quorum: %w", err)
	}
	if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
		return 0, 0, fmt.Errorf("describe quorum: %w", err)
	}
	if len(got.Topics) != 1 || len(got.Topics[0].Partitions) != 1 {
		return 0, 0, errNoQuorum
	}
	p := got.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
		return 0, 0, fmt.Errorf("describe quorum: %w", err)
	}
	return p.LeaderID, p.LeaderEpoch, nil
}
