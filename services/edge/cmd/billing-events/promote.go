package main

import (
	"context"
	"errors"
	"fmt"

	"example.com/billing/pkg/es/ops"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/kafka"
)

type promoteCmd struct {
	Store string `arg:"" help:"The database."`
	Log   string `help:"The log that it follows, kafka://BROKER/TOPIC: it is claimed, and must equal the database."`
	Force bool   `help:"Promote although a process leads, the log has more, or there is no log to compare with; what is lost is printed."`
}

// Run makes a copy the truth. It claims the log first: a leader that still runs is fenced, and commits nothing more.
func (c *promoteCmd) Run(ctx context.Context) error {
	s, err := find(ctx, c.Store)
	if err != nil {
		return err
	}
	defer s.close()
	if s.pool == nil {
		return fmt.Errorf("store %q: it must be postgres://…", c.Store)
	}
	if c.Log == "" && !c.Force {
		return errors.New("name the log that the database follows by --log=kafka://BROKER/TOPIC, or use --force if it is lost")
	}
	to := espg.New(s.pool, espg.Options{})
	if err := c.lose(to.RefuseServed(ctx)); err != nil {
		return err
	}
	ours, err := ops.DigestOf(ctx, to, 0, say)
	if err != nil {
		return err
	}
	if c.Log == "" {
		err = c.lose(fmt.Errorf("no log was compared: what it has above position %d is lost", ours.Events))
	} else {
		err = c.compare(ctx, ours)
	}
	if err != nil {
		return err
	}
	return to.Promote(ctx, ours.Events, c.Force)
}

// lose returns what speaks against it. With --force it prints it instead.
func (c *promoteCmd) lose(why error) error {
	if why == nil || !c.Force {
		return why
	}
	_, err := fmt.Fprintln(out, "forced:", why)
	return err
}

// compare claims the log and reads it to its end. Nothing is committed to it after the claim by whoever had it before.
func (c *promoteCmd) compare(ctx context.Context, ours ops.Digest) error {
	log, err := find(ctx, c.Log)
	if err != nil {
		return err
	}
	defer log.close()
	if log.pool != nil {
		return fmt.Errorf("log %q: it must be kafka://…", c.Log)
	}
	claim, err := kafka.ClaimPartition(ctx, log.kafka, log.topic, 0)
	if err != nil {
		return err
	}
	defer claim.Close()
	theirs, err := ops.DigestOf(ctx, log.log(), 0, say)
	if err != nil {
		return err
	}
	if err := claim.Held(ctx); err != nil {
		return fmt.Errorf("another process claimed the log meanwhile: stop it first: %w", err)
	}
	switch {
	case theirs.Events > ours.Events:
		return c.lose(fmt.Errorf("the database lacks positions %d to %d of the log (%d events)",
			ours.Events+1, theirs.Events, theirs.Events-ours.Events))
	case theirs != ours:
		return c.lose(fmt.Errorf("the log is not what the database has: the log has %s; the database %s", theirs, ours))
	}
	return nil
}
