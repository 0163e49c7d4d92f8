package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
)

func isUnavailable(err error) bool {
	var unavailable *es.UnavailableError
	return errors.As(err, &unavailable)
}

// A server that refuses the connection has executed nothing: asking again can help, whatever the code.
func TestRefusedConnectionIsUnavailable(t *testing.T) {
	pool := pgtest.Migrated(t, postgres.Migrations, postgres.MigrationsTable)
	server := pgtest.Pool(t) // on another database: a connection cannot close its own database
	var name string
	if err := pool.QueryRow(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		refused string
		code    string
		begin   func()
		change  func(u *url.URL)
	}{
		{"no such database", "3D000", func() {}, func(u *url.URL) { u.Path = "/gone_" + name }},
		{"no such role", "28000", func() {}, func(u *url.URL) { u.User = url.UserPassword("gone_"+name, "x") }},
		{
			"takes no connections", "55000",
			func() {
				if _, err := server.Exec(t.Context(), `ALTER DATABASE `+name+` ALLOW_CONNECTIONS false`); err != nil {
					t.Fatal(err)
				}
			},
			func(*url.URL) {},
		},
	} {
		t.Run(tt.refused, func(t *testing.T) {
			u, err := url.Parse(pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			tt.begin()
			tt.change(u)
			other, err := pgxpool.New(t.Context(), u.String())
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			s := postgres.New(other, postgres.Options{})
			_, loaded := s.Load(t.Context(), stream("a"), 0, 0)
			for what, err := range map[string]error{"append": s.Append(t.Context(), after(stream("a"), 0, 1)), "load": loaded} {
				var pg *pgconn.PgError
				if !errors.As(err, &pg) || pg.Code[:2] != tt.code[:2] {
					t.Fatalf("%s: refused with %v, want %s", what, err, tt.code)
				}
				if !isUnavailable(err) {
					t.Errorf("%s: not unavailable: %v", what, err)
				}
			}
		})
	}
}

func TestClassifyByCode(t *testing.T) {
	for code, want := range map[string]bool{
		"25006": true, "25P03": true, "53100": true, "53200": true, "53300": true, "57014": true, "57P01": true, "57P03": true,
		"58030": true, "58P01": true, "08006": true, "40001": true, "55P03": true,
		"23505": false, "42P01": false, "28000": false, "3D000": false, "55000": false, "22P02": false,
	} {
		err := fmt.Errorf("statement: %w", &pgconn.PgError{Code: code, Message: "x"})
		if got := isUnavailable(postgres.Classify("do it", err)); got != want {
			t.Errorf("%s: unavailable %v, want %v", code, got, want)
		}
	}
	if postgres.Classify("do it", nil) != nil || !isUnavailable(postgres.Classify("do it", context.DeadlineExceeded)) {
		t.Error("nil stays nil, and a missed deadline is no answer")
	}
}
