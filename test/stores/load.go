package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"example.com/billing/deploy/local/embedded"
	"example.com/billing/pkg/es"
	eskafka "example.com/billing/pkg/es/kafka"
	"example.com/billing/pkg/kafka"
)

const (
	eventsEach = 100    // of each aggregate
	chunk      = 10     // of them at a time, so that an aggregate lies all over the log
	loadsMax   = 20_000 // measured
)

// loads fills a log and measures, on a real Kafka: loads of one aggregate, beside a look at the end of one, which asks the brokers the same; and
// starts, with the local state and without.
func loads(ctx context.Context, root, dir string, n int64) (err error) {
	broker, err := embedded.StartApacheKafka(ctx, embedded.ApacheKafkaOptions{Script: filepath.Join(root, "deploy/kafka/run.sh"), DataDir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop(context.WithoutCancel(ctx))) }()
	cfg := kafka.Config{Brokers: broker.Brokers(), ClientID: "bench", Log: slog.New(slog.DiscardHandler)}
	const topic = "load.events"
	if err := kafka.EnsureTopics(ctx, cfg, eskafka.Topic(topic, 0)); err != nil {
		return err
	}
	o := eskafka.Options{Kafka: cfg, Topic: topic, Dir: filepath.Join(dir, "state"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	ids := make([]string, n/eventsEach)
	for i := range ids {
		ids[i] = uuid.NewString()
	}
	began := time.Now()
	s, stop, err := led(ctx, o)
	if err != nil {
		return err
	}
	fmt.Printf("· %d aggregates of %d events\n", len(ids), eventsEach)
	if err := fillLog(ctx, s, ids); err != nil {
		return errors.Join(err, stop())
	}
	fmt.Printf("written in %s\n", time.Since(began).Round(time.Second))
	err = errors.Join(look(ctx, s, ids, "as it was written"), stop())
	if err != nil {
		return err
	}
	bytes, err := size(o.Dir)
	if err != nil {
		return err
	}
	for _, cold := range []bool{false, true} {
		what := fmt.Sprintf("with the local state of %d MB", bytes>>20)
		if cold {
			what = "from the log alone"
			if err := os.RemoveAll(o.Dir); err != nil {
				return err
			}
		}
		began := time.Now()
		s, stop, err := led(ctx, o)
		if err != nil {
			return err
		}
		took := time.Since(began)
		fmt.Printf("start %s: %s", what, took.Round(time.Millisecond))
		if cold {
			fmt.Printf(", %.0f events a second", float64(len(ids)*eventsEach)/took.Seconds())
		}
		fmt.Println()
		if err := errors.Join(look(ctx, s, ids, "after that"), stop()); err != nil {
			return err
		}
	}
	return nil
}

// led opens a store and waits until it leads.
func led(ctx context.Context, o eskafka.Options) (*eskafka.Store, func() error, error) {
	s, err := eskafka.Open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	leading, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Lead(leading) }()
	stop := func() error { cancel(); return errors.Join(<-ended, s.Close(context.WithoutCancel(ctx))) }
	select {
	case <-s.Leading():
		return s, stop, nil
	case <-ctx.Done():
		return nil, nil, errors.Join(ctx.Err(), stop())
	}
}

// fillLog appends to all aggregates in turn.
func fillLog(ctx context.Context, s es.Store, ids []string) error {
	const group = 256
	said := time.Now()
	for version := int64(0); version < eventsEach; version += chunk {
		for at := 0; at < len(ids); at += group {
			var items [][]es.Append
			for _, id := range ids[at:min(at+group, len(ids))] {
				a := es.Append{Stream: es.Stream{Type: "Measured", ID: id}, Expected: version}
				for i := range int64(chunk) {
					a.Events = append(a.Events, es.Event{
						ID: uuid.NewString(), Type: "Happened", Stream: a.Stream, Version: version + i + 1, At: time.Now(), CorrelationID: "c",
						Data: []byte(`{"n":` + strconv.FormatInt(version+i, 10) + `,"padding":"` + padding[:100] + `"}`),
					})
				}
				items = append(items, []es.Append{a})
			}
			if err := errors.Join(s.AppendBatch(ctx, items)...); err != nil {
				return err
			}
			if time.Since(said) > 20*time.Second {
				said = time.Now()
				fmt.Printf("· %.0f%%\n", 100*(float64(version)+float64(chunk)*float64(at)/float64(len(ids)))/eventsEach)
			}
		}
	}
	return nil
}

// look measures, by one caller, one after the other: each aggregate drawn at random, of all there are; then of a few that were read just before.
func look(ctx context.Context, s es.Store, ids []string, when string) error {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // which aggregates is no secret
	few := make([]string, 1000)
	for i := range few {
		few[i] = ids[random.IntN(len(ids))]
	}
	load := func(id string) error {
		events, err := s.Load(ctx, es.Stream{Type: "Measured", ID: id}, 0, 0)
		if err == nil && len(events) != eventsEach {
			err = fmt.Errorf("aggregate %s has %d events", id, len(events))
		}
		return err
	}
	head := func(id string) error {
		_, err := s.Heads(ctx, []es.Stream{{Type: "Measured", ID: id}})
		return err
	}
	var floor time.Duration
	for _, m := range []struct {
		what string
		ids  []string
		f    func(id string) error
	}{
		{"heads, any", ids, head}, {"heads, of 1,000", few, head}, {"loads, any", ids, load}, {"loads, of 1,000", few, load},
	} {
		n := min(len(m.ids)*4, loadsMax)
		took := make([]time.Duration, n)
		for i := range took {
			began := time.Now()
			if err := m.f(m.ids[random.IntN(len(m.ids))]); err != nil {
				return err
			}
			took[i] = time.Since(began)
		}
		slices.Sort(took)
		p50, p99 := took[n/2], took[n*99/100]
		if floor == 0 {
			floor = p50
		}
		fmt.Printf("%-16s %s: p50 %6d µs, p99 %6d µs (%.2f of a head's p50)\n", m.what, when, p50.Microseconds(), p99.Microseconds(), float64(p50)/float64(floor))
	}
	return nil
}

// size is how large a folder is.
func size(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}
