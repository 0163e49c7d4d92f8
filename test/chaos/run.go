package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"example.com/billing/deploy/local/system"
	"example.com/billing/test/chaos/auditor"
)

const (
	progressEvery = 5 * time.Second
	settleMax     = 2 * time.Minute  // from the end of everything until nothing is under way
	auditMax      = 10 * time.Minute // for the audit of the longest run
)

// result is what came of a run.
type result struct {
	began     time.Time
	lasted    time.Duration // with load
	journal   *journal
	injector  *injector
	recovered *recoveries
	outage    *outage
	settled   time.Duration // from the end of the load until nothing was under way
	wrong     []string      // what this program itself saw
	report    *auditor.Report
}

func (r *result) say(format string, args ...any) {
	fmt.Printf("%6.1fs "+format+"\n", append([]any{time.Since(r.began).Seconds()}, args...)...)
}

// carryOut starts the system, hurts it under load, lets it come to rest, stops the services and audits what they left.
func carryOut(ctx context.Context, s settings, dir string, faults []fault) (_ *result, err error) {
	r := &result{began: time.Now()}
	top, err := root()
	if err != nil {
		return r, err
	}
	r.say("building and starting in %s", dir)
	c, err := newCluster(ctx, dir, top, s)
	defer func() { err = errors.Join(err, c.stop()) }()
	if err != nil {
		return r, err
	}
	if r.journal, err = newJournal(filepath.Join(dir, "journal.jsonl")); err != nil {
		return r, err
	}
	l, err := newLoad(c, r.journal, s.seed, time.Duration(float64(s.workers)/s.rate*float64(time.Second)))
	if err != nil {
		return r, err
	}
	defer l.close()
	if err := l.settle(ctx); err != nil {
		return r, err
	}
	r.say("ready: %d services, Postgres, Kafka, %d proxies; %d requests accepted", len(services), len(c.links), r.journal.count(auditor.Accepted))
	if err := r.hurt(ctx, s, c, l, faults); err != nil {
		return r, err
	}
	return r, r.audit(ctx, c)
}

// hurt injects the faults, and takes Kafka away, under load.
func (r *result) hurt(ctx context.Context, s settings, c *cluster, l *load, faults []fault) error {
	asked, giveUp := context.WithCancel(ctx)
	defer giveUp()
	loading, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	began := time.Now()
	var work sync.WaitGroup
	work.Go(func() { l.work(loading, asked, s.workers) })
	work.Go(func() { r.progress(loading, l) })

	r.recovered = &recoveries{load: l, c: c, ctx: asked}
	r.injector = &injector{c: c, say: r.say, ended: r.recovered.after, counts: map[kind]int{}}
	err := r.injector.run(ctx, faults)
	wait(ctx, time.Until(began.Add(max(s.duration, calm))))
	if err == nil && ctx.Err() == nil && s.away > 0 {
		r.recovered.wg.Wait()
		r.say("Kafka is away for %s", s.away)
		var o outage
		o, err = kafkaAway(ctx, c, r.journal, s.away)
		r.outage = &o
	}
	r.lasted = time.Since(began)
	stopLoad()
	r.say("the load stops; %d requests have no answer yet", l.asking.Load())
	work.Wait()
	r.recovered.wg.Wait()
	return errors.Join(err, ctx.Err(), r.journal.close())
}

// progress prints where things stand, from time to time.
func (r *result) progress(ctx context.Context, l *load) {
	last := r.journal.count(auditor.Accepted)
	for wait(ctx, progressEvery) {
		n := r.journal.count(auditor.Accepted)
		r.say("       accepted %d, %.0f a second; refused %d; %d being asked", n, float64(n-last)/progressEvery.Seconds(), r.journal.count(auditor.Refused), l.asking.Load())
		last = n
	}
}

// audit waits until nothing is under way, stops the services, and has the auditor look at what is left.
func (r *result) audit(ctx context.Context, c *cluster) error {
	a := auditor.Auditor{
		Journal: filepath.Join(c.dir, "journal.jsonl"), Brokers: c.brokers(),
		Account: c.dsn(system.AccountDatabase), Transaction: c.dsn(system.TransactionDatabase), Saga: c.dsn(system.SagaDatabase),
	}
	began := time.Now()
	var open []string
	for {
		var err error
		if open, err = a.Open(ctx); err == nil && len(open) == 0 {
			break
		} else if err != nil {
			open = []string{err.Error()}
		}
		if time.Since(began) > settleMax || !wait(ctx, lookEvery) {
			break
		}
	}
	r.settled = time.Since(began)
	for _, what := range open {
		r.wrong = append(r.wrong, fmt.Sprintf("stuck: %s, %s after the end", what, settleMax))
	}
	r.say("at rest after %.1f s", r.settled.Seconds())
	if err := c.stopServices(); err != nil {
		r.wrong = append(r.wrong, "stop: "+err.Error())
	}
	for _, err := range r.recovered.errs {
		r.wrong = append(r.wrong, "stuck: "+err.Error())
	}
	r.wrong = append(r.wrong, panics(c)...)
	if r.outage != nil {
		r.wrong = append(r.wrong, r.outage.wrong()...)
	}
	ctx, cancel := context.WithTimeout(ctx, auditMax)
	defer cancel()
	r.say("auditing")
	var err error
	r.report, err = a.Audit(ctx)
	return err
}
