package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// underSnapshot measures a scenario without a snapshot, and then for as long with one held open in each database. What was
// committed under it stays unpruned to the end, so the last quarter, under the most of it, is told apart.
func (s settings) underSnapshot(ctx context.Context, c *cluster, w *world, sc scenario) (res *result, err error) {
	without, err := s.one(ctx, c, w, sc)
	if err != nil {
		return nil, fmt.Errorf("without a snapshot: %w", err)
	}
	say("  now under a snapshot")
	var dsns []string
	for _, name := range databases {
		dsns = append(dsns, c.postgres.DSN(name))
	}
	release, err := holdSnapshots(ctx, dsns)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	early, late := s, s
	early.duration = s.duration * 3 / 4
	late.duration = s.duration - early.duration
	if _, err := early.one(ctx, c, w, sc); err != nil {
		return nil, err
	}
	if res, err = late.one(ctx, c, w, sc); err != nil {
		return nil, err
	}
	res.WithoutPerS, res.RatioToWithout = without.CompletedPerS, round(res.CompletedPerS/max(without.CompletedPerS, 1))
	say("  %.2f of what was completed without", res.RatioToWithout)
	return res, nil
}

// holdSnapshots opens an idle transaction with a snapshot in each database. release ends them, and fails if one of them did not
// last: then nothing was measured under it.
func holdSnapshots(ctx context.Context, dsns []string) (release func() error, err error) {
	var held []*pgx.Conn
	closeAll := func() {
		for _, conn := range held {
			conn.Close(context.WithoutCancel(ctx))
		}
	}
	for _, dsn := range dsns {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			closeAll()
			return nil, err
		}
		held = append(held, conn)
		if _, err := conn.Exec(ctx, `SET idle_in_transaction_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1`); err != nil {
			closeAll()
			return nil, fmt.Errorf("hold a snapshot: %w", err)
		}
	}
	return func() error {
		defer closeAll()
		var errs []error
		for _, conn := range held {
			if _, err := conn.Exec(context.WithoutCancel(ctx), `COMMIT`); err != nil {
				errs = append(errs, fmt.Errorf("the snapshot did not last: %w", err))
			}
		}
		return errors.Join(errs...)
	}, nil
}
