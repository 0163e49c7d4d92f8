package auditor

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// place is where in Kafka a key's events are.
type place struct {
	topic     string
	partition int32
}

// topics reads the three topics from their beginning to their end: what is there is committed, byte for byte, in the place of its
// aggregate and in the order of its versions but for repetitions; and everything committed is there.
func (x *audit) topics(ctx context.Context) error {
	names := []string{x.TopicPrefix + "account.events", x.TopicPrefix + "transaction.events", x.TopicPrefix + "saga.events"}
	// The last record may be the marker of a transaction, where an event store commits by transactions.
	client, err := kgo.NewClient(kgo.SeedBrokers(x.Brokers...), kgo.ConsumeTopics(names...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, names...)
	if err != nil {
		return err
	}
	left := map[place]int64{} // where reading ends
	var failed error
	ends.Each(func(o kadm.ListedOffset) {
		if o.Err != nil {
			failed = fmt.Errorf("%s: %w", o.Topic, o.Err)
		}
		if o.Offset > 0 {
			left[place{o.Topic, o.Partition}] = o.Offset
		}
	})
	if failed != nil {
		return failed
	}
	r := reader{audit: x, places: map[stream]place{}, versions: map[stream]int64{}}
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		fetches.EachRecord(func(record *kgo.Record) {
			p := place{record.Topic, record.Partition}
			if end, reading := left[p]; reading && record.Offset < end {
				if !record.Attrs.IsControl() {
					r.record(record)
				}
				if record.Offset == end-1 {
					delete(left, p)
				}
			}
		})
	}
	for id, p := range x.published {
		if !p.seen {
			x.wrong("published", fmt.Sprintf("%s version %d", p.stream, p.version), "is committed and not on its topic (event %s)", id)
		}
	}
	return nil
}

// reader is the state of reading the topics.
type reader struct {
	*audit
	places   map[stream]place
	versions map[stream]int64 // the newest version that has appeared
}

func (r *reader) record(record *kgo.Record) {
	r.checked("records in Kafka", 1)
	what := fmt.Sprintf("%s/%d offset %d", record.Topic, record.Partition, record.Offset)
	var e event
	if err := json.Unmarshal(record.Value, &e); err != nil {
		r.wrong("published", what, "is no event: %v", err)
		return
	}
	what += ", " + e.what()
	id, err := uuid.Parse(e.ID)
	p := r.published[id]
	if r.lost(e, record) && (p == nil || p.digest != digest(record.Value)) { // a repeat of its command may have its id
		r.checked("events in Kafka that a database lost in a fail-over", 1)
		return
	}
	if err != nil || p == nil {
		r.wrong("published", what, "is not committed (event %s)", e.ID)
		return
	}
	if p.digest != digest(record.Value) {
		r.wrong("published", what, "differs from what is committed: %s", record.Value)
	}
	p.seen = true
	s := e.stream()
	if want := r.TopicPrefix + strings.ToLower(s.kind) + ".events"; record.Topic != want || string(record.Key) != s.id {
		r.wrong("published", what, "has key %s, belongs to topic %s", record.Key, want)
	}
	for name, want := range map[string]string{"eventType": e.Type, "aggregateVersion": strconv.FormatInt(e.Version, 10), "correlationId": e.CorrelationID} {
		if got := header(record, name); got != want {
			r.wrong("published", what, "header %s is %q, want %q", name, got, want)
		}
	}
	here := place{record.Topic, record.Partition}
	if there, known := r.places[s]; known && there != here {
		r.wrong("order", what, "other events of it are in partition %d", there.partition)
	}
	r.places[s] = here
	switch was := r.versions[s]; {
	case e.Version <= was:
		r.checked("repetitions in Kafka", 1)
	case e.Version == was+1:
		r.versions[s] = e.Version
	default:
		r.wrong("order", what, "appears right after version %d", was)
		r.versions[s] = e.Version
	}
}

// lost reports whether a record says that its event stood in a database's log beyond the place where a later history began.
func (r *reader) lost(e event, record *kgo.Record) bool {
	position, err := strconv.ParseInt(header(record, "position"), 10, 64)
	incarnation, err2 := strconv.ParseInt(header(record, "incarnation"), 10, 64)
	if err != nil || err2 != nil {
		return false
	}
	for _, i := range r.incarnations[e.stream().kind] {
		if i.number > incarnation && i.from < position {
			return true
		}
	}
	return false
}

func header(record *kgo.Record, name string) string {
	for _, h := range record.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}
