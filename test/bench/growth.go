package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	readmodelv1 "example.com/billing/proto/gen/go/billing/readmodel/v1"
	sagav1 "example.com/billing/proto/gen/go/billing/saga/v1"
	transactionv1 "example.com/billing/proto/gen/go/billing/transaction/v1"
	"example.com/billing/services/account/ledger"
)

// stage is a size of the system, and how it does at that size.
type stage struct {
	Accounts    int                `json:"accounts"`
	Events      int                `json:"events"`              // of the history
	Stored      int64              `json:"events_stored"`       // at the end, with those of the loads
	Long        int64              `json:"long_account_events"` // of the account with many
	Bytes       map[string]int64   `json:"database_bytes"`
	FillPerS    float64            `json:"fill_events_per_s"`
	RebuildPerS map[string]float64 `json:"rebuild_events_per_s"` // by read model
	Rest        map[string]int64   `json:"memory_at_rest_bytes"` // once the services are ready
	Load        map[string]int64   `json:"memory_under_load_bytes"`
	Loads       []*result          `json:"-"`
	Queries     []query            `json:"queries"`
}

// MarshalJSON has an object for each load, beside the rest.
func (s *stage) MarshalJSON() ([]byte, error) {
	type plain stage
	loads := map[string]*result{}
	for _, l := range s.Loads {
		loads[l.Name] = l
	}
	return json.Marshal(struct {
		*plain
		Loads map[string]*result `json:"loads"`
	}{(*plain)(s), loads})
}

// query is a question to the services, asked by one caller again and again.
type query struct {
	What string  `json:"what"`
	P50  float64 `json:"p50_ms"`
	P99  float64 `json:"p99_ms"`

	ask func(ctx context.Context, r *rand.Rand) error
}

const (
	askMost = 300             // times that a question is asked
	askMax  = 5 * time.Second // or for how long
)

// stagesOf reads ACCOUNTS:EVENTS,ACCOUNTS:EVENTS.
func stagesOf(text string) ([]*stage, error) {
	var stages []*stage
	for part := range strings.SplitSeq(text, ",") {
		a, e, _ := strings.Cut(part, ":")
		accounts, errA := strconv.Atoi(a)
		events, errE := strconv.Atoi(e)
		if err := errors.Join(errA, errE); err != nil {
			return nil, fmt.Errorf("-growth: ACCOUNTS:EVENTS with numbers, not %q: %w", part, err)
		}
		if least := accounts * (1 + eventsOfTransfer); accounts < shortFirst+shorts || events < least {
			return nil, fmt.Errorf("-growth: %q: at least %d accounts, and 6 events for each", part, shortFirst+shorts)
		}
		if n := len(stages); n > 0 && (accounts < stages[n-1].Accounts || events < stages[n-1].Events) {
			return nil, fmt.Errorf("-growth: %q is smaller than the stage before it", part)
		}
		stages = append(stages, &stage{Accounts: accounts, Events: events})
	}
	return stages, nil
}

// growth measures the system at each of the sizes.
func (s settings) growth(ctx context.Context, sizes string) error {
	stages, err := stagesOf(sizes)
	if err != nil {
		return err
	}
	return s.with(ctx, s.broker, 2, func(c *cluster, w *world, r *report) error {
		if err := s.warmUp(ctx, w); err != nil {
			return err
		}
		template, err := c.empty(ctx)
		if err != nil {
			return err
		}
		h, err := newHistory(ctx, c, template)
		defer h.close()
		if err != nil {
			return err
		}
		for _, g := range stages {
			if err := s.stage(ctx, c, h, g); err != nil {
				return err
			}
		}
		books, err := c.books(ctx)
		if err != nil {
			return err
		}
		printGrowth(stages)
		r.facts["books"], r.facts["broker"] = books, r.broker
		b, err := json.MarshalIndent(map[string]any{"facts": r.facts, "stages": stages}, "", "  ")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(s.out, 0o755); err != nil { //nolint:gosec // to be read
			return err
		}
		return os.WriteFile(filepath.Join(s.out, "growth.json"), append(b, '\n'), 0o644) //nolint:gosec // to be read
	})
}

// empty drops what the warm-up left, and has one transfer carried out on the new databases: its saga's id.
func (c *cluster) empty(ctx context.Context) (saga string, err error) {
	if err := c.stopServices(); err != nil {
		return "", err
	}
	conn, err := pgx.Connect(ctx, c.postgres.DSN("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, name := range databases {
		if _, err := conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			return "", err
		}
	}
	if err := c.postgres.EnsureDatabases(ctx, databases...); err != nil {
		return "", err
	}
	if err := c.startAgain(ctx); err != nil {
		return "", err
	}
	w, err := newWorld(ctx, c, newRun(), 2)
	defer func() { err = errors.Join(err, w.closeAll()) }()
	if err != nil {
		return "", err
	}
	first, err := overGRPC(ctx, w, 0, func() pair { return pair{w.accounts[0], w.accounts[1]} })
	if err == nil && first.completed != 1 {
		err = errors.New("the first transfer has not completed")
	}
	return first.id, err
}

// stage lets the system grow to one size, starts the services anew, and measures. The history goes on from stage to stage.
func (s settings) stage(ctx context.Context, c *cluster, h *history, g *stage) (err error) {
	say("growing to %d accounts and %d events", g.Accounts, g.Events)
	if err := c.stopServices(); err != nil {
		return err
	}
	began, before := time.Now(), h.events
	if err := h.grow(ctx, g.Accounts, g.Events); err != nil {
		return err
	}
	g.FillPerS = round(float64(h.events-before) / time.Since(began).Seconds())
	g.Long = h.ledger.Accounts[longOne].Root.Version
	if err := c.startAgain(ctx); err != nil {
		return err
	}
	pause(ctx, time.Second) // what is done at the start is over
	g.Rest = c.memory()
	w, err := connect(c, newRun())
	defer func() { err = errors.Join(err, w.closeAll()) }()
	if err != nil {
		return err
	}
	if err := errors.Join(g.rebuild(ctx, w), h.settle(ctx)); err != nil {
		return err
	}
	if err := s.loads(ctx, c, w, h.ledger, g); err != nil {
		return err
	}
	for _, q := range questions(w, h.ledger) {
		if err := q.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", q.What, err)
		}
		g.Queries = append(g.Queries, q)
	}
	return g.look(ctx, h)
}

// look reads how large the databases are.
func (g *stage) look(ctx context.Context, h *history) error {
	g.Bytes = map[string]int64{}
	for name, pool := range h.pools {
		var bytes, events int64
		if err := pool.QueryRow(ctx, "SELECT pg_database_size(current_database()), es_end()").Scan(&bytes, &events); err != nil {
			return err
		}
		g.Bytes[name], g.Stored = bytes, g.Stored+events
	}
	return nil
}

// rebuild makes both lists anew from the events.
func (g *stage) rebuild(ctx context.Context, w *world) error {
	g.RebuildPerS = map[string]float64{}
	for name, service := range map[string]readmodelv1.ReadModelServiceClient{
		"accounts": readmodelv1.NewReadModelServiceClient(w.toAccounts), "transactions": readmodelv1.NewReadModelServiceClient(w.toTransactions),
	} {
		began := time.Now()
		for {
			res, err := service.RebuildReadModel(ctx, &readmodelv1.RebuildReadModelRequest{Name: name, Wait: durationpb.New(waitMax)})
			if err != nil {
				return fmt.Errorf("rebuild %s: %w", name, err)
			}
			b := res.GetRebuild()
			if b.GetStatus() == "running" {
				continue
			}
			if b.GetStatus() != "switched" {
				return fmt.Errorf("rebuild %s: %s %s", name, b.GetStatus(), b.GetError())
			}
			g.RebuildPerS[name] = round(float64(b.GetEvents()) / time.Since(began).Seconds())
			say("  rebuilt the list of %s from %d events: %.0f/s", name, b.GetEvents(), g.RebuildPerS[name])
			break
		}
	}
	return nil
}

// loads measures transfers: one at a time and many, on accounts with few events and on the one with many.
func (s settings) loads(ctx context.Context, c *cluster, w *world, l *ledger.Ledger, g *stage) error {
	ids := make([]string, len(l.Accounts)-1) // the bank has its own rules
	for i, a := range l.Accounts[1:] {
		ids[i] = a.ID
	}
	w.accounts = ids
	short, some := &world{accounts: w.short()}, &world{accounts: ids[:min(len(ids), usual)]}
	for _, sc := range []scenario{
		{name: "sequential", what: "one caller, any two accounts", callers: 1, draw: w.uniform},
		{name: "sequential10", what: "one caller, accounts of 10 events and some more", callers: 1, draw: short.uniform},
		{name: "sequential_long", what: "one caller, the account with many events on either side", callers: 1, draw: w.hot},
		{name: "uniform", what: "any two accounts", callers: 256, draw: w.uniform},
		{name: "uniform1000", what: "any two of 1,000 accounts", callers: 256, draw: some.uniform},
		{name: "long", what: "the account with many events on either side", callers: 256, draw: w.hot},
	} {
		sc.do = overGRPC
		say("%s: %s", sc.name, sc.what)
		res, err := s.one(ctx, c, w, sc)
		if err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		if res.Failed > 0 || res.Completed < res.Accepted {
			return fmt.Errorf("%s: %d failed, %d of %d accepted completed: %s", sc.name, res.Failed, res.Completed, res.Accepted, res.Failure)
		}
		if g.Loads = append(g.Loads, res); sc.name == "uniform" {
			g.Load = c.memory()
		}
		if err := c.died(); err != nil {
			return err
		}
	}
	return nil
}

// short are the accounts of few events.
func (w *world) short() []string { return w.accounts[shortFirst-1 : shortFirst-1+shorts] } // without the bank

// measure asks again and again.
func (q *query) measure(ctx context.Context) error {
	r, took := rand.New(rand.NewPCG(3, 7)), hdrhistogram.New(1, longest, 3) //nolint:gosec // drawn anew each time alike
	end := time.Now().Add(askMax)
	for n := 0; n < askMost && (n < 3 || time.Now().Before(end)); n++ {
		began := time.Now()
		if err := q.ask(ctx, r); err != nil {
			return err
		}
		if err := took.RecordValue(min(time.Since(began).Microseconds(), longest)); err != nil {
			return err
		}
	}
	q.P50, q.P99 = ms(took, 50), ms(took, 99)
	return nil
}

// request makes a question that asks a service.
func request[Q, R any](call func(context.Context, Q, ...grpc.CallOption) (R, error), with func(*rand.Rand) Q) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, r *rand.Rand) error {
		_, err := call(ctx, with(r))
		return err
	}
}

// same makes a question that is always the same.
func same[Q, R any](call func(context.Context, Q, ...grpc.CallOption) (R, error), q Q) func(context.Context, *rand.Rand) error {
	return request(call, func(*rand.Rand) Q { return q })
}

// questions are what people ask.
func questions(w *world, l *ledger.Ledger) []query {
	all := accountQuestions(w, l)
	all = append(all, transactionQuestions(w)...)
	return append(all, query{What: "the books", ask: same(accountv1.NewBooksServiceClient(w.toAccounts).GetBooks, &accountv1.GetBooksRequest{})})
}

func accountQuestions(w *world, l *ledger.Ledger) []query {
	accounts, short, long := accountv1.NewAccountServiceClient(w.toAccounts), w.short(), w.accounts[longOne-1]
	var all []query
	for _, of := range []struct {
		name string
		id   func(*rand.Rand) string
		most int64
	}{
		{"10 events", func(r *rand.Rand) string { return short[r.IntN(len(short))] }, shortEvents},
		{"many events", func(*rand.Rand) string { return long }, l.Accounts[longOne].Root.Version},
	} {
		all = append(all,
			query{What: "an account, " + of.name, ask: request(accounts.GetAccount, func(r *rand.Rand) *accountv1.GetAccountRequest {
				return &accountv1.GetAccountRequest{AccountId: of.id(r)}
			})},
			query{What: "a past balance, " + of.name, ask: request(accounts.GetAccountBalance, func(r *rand.Rand) *accountv1.GetAccountBalanceRequest {
				version := int32(1 + r.Int64N(of.most)) //nolint:gosec // of a stream that we wrote
				return &accountv1.GetAccountBalanceRequest{AccountId: of.id(r), Version: &version}
			})},
			query{What: "newest history, " + of.name, ask: request(accounts.GetAccountHistory, func(r *rand.Rand) *accountv1.GetAccountHistoryRequest {
				return &accountv1.GetAccountHistoryRequest{AccountId: of.id(r)}
			})},
			query{What: "statement, " + of.name, ask: request(accounts.GetAccountStatement, func(r *rand.Rand) *accountv1.GetAccountStatementRequest {
				return &accountv1.GetAccountStatementRequest{AccountId: of.id(r)}
			})},
		)
	}
	return append(all,
		query{What: "newest accounts", ask: same(accounts.ListAccounts, &accountv1.ListAccountsRequest{})},
		query{What: "an owner's accounts", ask: request(accounts.ListAccounts, func(r *rand.Rand) *accountv1.ListAccountsRequest {
			return &accountv1.ListAccountsRequest{OwnerId: ledger.Owner(r.IntN(len(w.accounts)))}
		})},
		query{What: "suspended accounts: none", ask: same(accounts.ListAccounts, &accountv1.ListAccountsRequest{Status: "suspended"})},
	)
}

func transactionQuestions(w *world) []query {
	transactions, long := transactionv1.NewTransactionServiceClient(w.toTransactions), w.accounts[longOne-1]
	anyOne := func(r *rand.Rand) string { return w.accounts[r.IntN(len(w.accounts))] }
	var newest []string
	id := func(r *rand.Rand) string { return newest[r.IntN(len(newest))] }
	return []query{
		{What: "newest transactions", ask: func(ctx context.Context, _ *rand.Rand) error {
			res, err := transactions.ListTransactions(ctx, &transactionv1.ListTransactionsRequest{})
			newest = nil
			for _, t := range res.GetTransactions() {
				newest = append(newest, t.GetTransactionId())
			}
			return err
		}},
		{What: "a transaction", ask: request(transactions.GetTransaction, func(r *rand.Rand) *transactionv1.GetTransactionRequest {
			return &transactionv1.GetTransactionRequest{TransactionId: id(r)}
		})},
		{What: "an account's transactions", ask: request(transactions.ListTransactions, func(r *rand.Rand) *transactionv1.ListTransactionsRequest {
			return &transactionv1.ListTransactionsRequest{AccountId: anyOne(r)}
		})},
		{What: "transactions, many events", ask: same(transactions.ListTransactions, &transactionv1.ListTransactionsRequest{AccountId: long})},
		{What: "failed transactions: none", ask: same(transactions.ListTransactions, &transactionv1.ListTransactionsRequest{Status: "failed"})},
		{What: "newest sagas", ask: same(w.sagas.ListSagas, &sagav1.ListSagasRequest{})},
		{What: "a saga", ask: request(w.sagas.GetSaga, func(r *rand.Rand) *sagav1.GetSagaRequest { return &sagav1.GetSagaRequest{SagaId: id(r)} })},
		{What: "an account's sagas", ask: request(w.sagas.ListSagas, func(r *rand.Rand) *sagav1.ListSagasRequest { return &sagav1.ListSagasRequest{AccountId: anyOne(r)} })},
		{What: "sagas, many events", ask: same(w.sagas.ListSagas, &sagav1.ListSagasRequest{AccountId: long})},
		{What: "sagas that need attention: none", ask: same(w.sagas.ListSagas, &sagav1.ListSagasRequest{Status: "needs_attention"})},
		{What: "failed sagas: none", ask: same(w.sagas.ListSagas, &sagav1.ListSagasRequest{Status: "failed"})},
	}
}

// printGrowth writes the figures for people: a column for each size.
func printGrowth(stages []*stage) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, value func(*stage) string) {
		for _, g := range stages {
			name += "\t" + value(g)
		}
		fmt.Fprintln(w, name+"\t")
	}
	fmt.Println()
	line("accounts", func(g *stage) string { return strconv.Itoa(g.Accounts) })
	line("events", func(g *stage) string { return strconv.Itoa(g.Events) })
	line("events at the end, with the loads'", func(g *stage) string { return strconv.FormatInt(g.Stored, 10) })
	line("events of the account with many", func(g *stage) string { return strconv.FormatInt(g.Long, 10) })
	line("history written, events/s", func(g *stage) string { return fmt.Sprintf("%.0f", g.FillPerS) })
	for _, name := range databases {
		line(name+", MB", func(g *stage) string { return strconv.FormatInt(g.Bytes[name]>>20, 10) })
	}
	for _, name := range []string{"accounts", "transactions"} {
		line("rebuild of "+name+", events/s", func(g *stage) string { return fmt.Sprintf("%.0f", g.RebuildPerS[name]) })
	}
	for _, name := range []string{"accountd", "transactiond", "sagad", "gatewayd"} {
		line(name+" at rest, then under load, MB", func(g *stage) string { return fmt.Sprintf("%d, %d", g.Rest[name]>>20, g.Load[name]>>20) })
	}
	for i, l := range stages[0].Loads {
		line(l.Name+", completed/s", func(g *stage) string { return fmt.Sprintf("%.0f", g.Loads[i].CompletedPerS) })
		line("p50, p99 ms", func(g *stage) string { return fmt.Sprintf("%.1f, %.1f", g.Loads[i].P50, g.Loads[i].P99) })
		line("CPU µs, of it Postgres, a transfer", func(g *stage) string {
			var all float64
			for _, cpu := range g.Loads[i].CPU {
				all += cpu
			}
			return fmt.Sprintf("%.0f, %.0f", all, g.Loads[i].CPU["postgres"])
		})
		line("WAL B a transfer", func(g *stage) string { return fmt.Sprintf("%.0f", g.Loads[i].WAL) })
	}
	for i, q := range stages[0].Queries {
		line(q.What+": p50, p99 ms", func(g *stage) string { return fmt.Sprintf("%.1f, %.1f", g.Queries[i].P50, g.Queries[i].P99) })
	}
	_ = w.Flush() // standard output
}
