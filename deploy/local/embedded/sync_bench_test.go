package embedded_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"example.com/billing/deploy/local/embedded"
)

// BenchmarkKafkaProduce measures what SyncWrites costs: one acknowledged
// record at a time, which is the worst case, since every batch is one record.
func BenchmarkKafkaProduce(b *testing.B) {
	for name, sync := range map[string]bool{"sync=off": false, "sync=on": true} {
		b.Run(name, func(b *testing.B) {
			k, err := embedded.StartKafka(b.Context(), embedded.KafkaOptions{DataDir: b.TempDir(), SyncWrites: sync})
			if err != nil {
				b.Fatal(err)
			}
			defer k.Stop(b.Context())
			if err := createTopic(b.Context(), k.Brokers()); err != nil {
				b.Fatal(err)
			}
			cl, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()...), kgo.ProducerLinger(0))
			if err != nil {
				b.Fatal(err)
			}
			defer cl.Close()
			for b.Loop() {
				if err := cl.ProduceSync(b.Context(), &kgo.Record{Topic: topic, Value: make([]byte, 512)}).FirstErr(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
