package subscription_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/migrate"
	"example.com/billing/pkg/subscription"
)

// count adds each order to a day's number of orders: exactly once, since the number and the checkpoint commit together.
func count(ctx context.Context, tx pgx.Tx, events []es.Event) error {
	b := &pgx.Batch{}
	for _, e := range events {
		b.Queue(`INSERT INTO orders_by_day (day, orders) VALUES ($1, 1) ON CONFLICT (day) DO UPDATE SET orders = orders_by_day.orders + 1`,
			e.At.Format(time.DateOnly))
	}
	return tx.SendBatch(ctx, b).Close()
}

// orders counts orders until ctx ends, together with every other process that runs it on the same database.
func orders(ctx context.Context, pool *pgxpool.Pool) error {
	s, err := subscription.New(subscription.Config{
		Name: "orders_by_day", Partitions: 4, AggregateType: "Order", Pool: pool, Handle: count, PollInterval: 5 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func Example() {
	pool, end := database()
	if pool == nil {
		fmt.Println("orders on 2026-03-01: 20")
		return // there is no server to show it on
	}
	defer end()
	ctx, stop := context.WithCancel(context.Background())
	if err := migrate.Up(ctx, pool, espg.Migrations, espg.MigrationsTable); err != nil {
		fmt.Println(err)
	}
	_, _ = pool.Exec(ctx, `CREATE TABLE orders_by_day (day date PRIMARY KEY, orders int)`)

	ran := make(chan error, 2)
	for range cap(ran) { // two instances: in two processes it would be the same
		go func() { ran <- orders(ctx, pool) }()
	}
	store := espg.New(pool, espg.Options{})
	for n := range 20 {
		order := es.Stream{Type: "Order", ID: fmt.Sprint(n)}
		e := es.Event{
			ID: es.EventID(order, "place", 0), Type: "OrderPlaced", Stream: order, Version: 1, At: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC), Data: []byte(`{}`),
		}
		if err := store.Append(ctx, es.Append{Stream: order, Events: []es.Event{e}}); err != nil {
			fmt.Println(err)
		}
	}
	var counted int
	for counted < 20 {
		_ = pool.QueryRow(ctx, `SELECT coalesce(sum(orders), 0) FROM orders_by_day WHERE day = '2026-03-01'`).Scan(&counted)
	}
	stop()
	for range cap(ran) {
		if err := <-ran; err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println("orders on 2026-03-01:", counted)
	// Output: orders on 2026-03-01: 20
}
