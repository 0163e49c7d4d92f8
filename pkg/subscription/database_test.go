package subscription_test

import (
	"context"
	"fmt"
	"net/url"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/pgtest"
)

// database is one of the example's own, which has no test to belong to; nil = there is no server.
func database() (pool *pgxpool.Pool, end func()) {
	ctx, server := context.Background(), os.Getenv(pgtest.Env)
	u, err := url.Parse(server)
	if server == "" || err != nil {
		return nil, nil
	}
	name := fmt.Sprintf("test_example_%d", os.Getpid())
	execute := func(sql string) {
		conn, err := pgx.Connect(ctx, server)
		if err != nil {
			fmt.Println(err)
			return
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, sql); err != nil {
			fmt.Println(err)
		}
	}
	execute("CREATE DATABASE " + name)
	u.Path = "/" + name
	if pool, err = pgxpool.New(ctx, u.String()); err != nil {
		fmt.Println(err)
		return nil, nil
	}
	return pool, func() {
		pool.Close()
		execute("DROP DATABASE " + name + " WITH (FORCE)")
	}
}
