package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"
	"golang.org/x/sync/errgroup"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/page"
	"example.com/billing/pkg/projection"
	"example.com/billing/services/account"
	"example.com/billing/services/account/ledger"
	"example.com/billing/services/account/readmodel"
)

const (
	busyAccounts = 100 // that transfers go on between
	busyOwner    = "busy"
	writers      = 2
	readers      = 2
	pageRows     = 50
	aloneEvents  = 300 // to measure the traffic by before the rebuild
)

// busy is an account that money moves on while lists are read.
type busy struct {
	id string

	mu       sync.Mutex
	balances []decimal.Decimal // by version, from 1; noted before the list can show them
	shown    int64             // the projection has returned with this version: every later list shows it, or a later one
}

func (b *busy) at(version int64) (decimal.Decimal, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if version < 1 || version > int64(len(b.balances)) {
		return decimal.Zero, false
	}
	return b.balances[version-1], true
}

// traffic is transfers and lists that go on until they are stopped.
type traffic struct {
	ledger   *ledger.Ledger
	executor *es.Executor[account.Account, account.Command]
	project  *projection.Projection
	list     *readmodel.Accounts
	busy     []*busy
	byID     map[string]*busy
	spoilt   map[string]bool // rows that are wrong until they are repaired

	mu     sync.Mutex
	events int
	lists  []time.Duration
}

// open opens the busy accounts; they are older than all others, and so at the end of the list.
func (t *traffic) open(ctx context.Context) error {
	t.byID = map[string]*busy{}
	for i := range busyAccounts {
		b := &busy{id: uuid.NewString()}
		t.busy, t.byID[b.id] = append(t.busy, b), b
		if err := t.do(ctx, b, t.ledger.Begun.Add(-time.Duration(i+1)*time.Second), account.Open{
			OwnerID: busyOwner, OwnerType: "company", Type: account.External, Currency: ledger.Currency, Scale: 2, RequestHash: "h",
		}); err != nil {
			return err
		}
	}
	return nil
}

// do gives a command and has the list follow, as the consumer would. Only one command at a time may go to an account.
func (t *traffic) do(ctx context.Context, b *busy, at time.Time, c account.Command) error {
	out, err := t.executor.Execute(ctx, es.Command[account.Command]{
		ID: uuid.NewString(), StreamID: b.id, At: at, CorrelationID: "bench", Metadata: map[string]any{"tenantId": ledger.Tenant}, Body: c,
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.balances = append(b.balances, out.State.Balance)
	b.mu.Unlock()
	if err := t.project.Handle(ctx, out.Events); err != nil {
		return err
	}
	b.mu.Lock()
	b.shown = out.State.Version
	b.mu.Unlock()
	t.mu.Lock()
	t.events += len(out.Events)
	t.mu.Unlock()
	return nil
}

// run lets traffic go on while f does its work, and returns how long that took.
func (t *traffic) run(ctx context.Context, f func(context.Context) error) (time.Duration, error) {
	t.events, t.lists = 0, nil
	g, ctx := errgroup.WithContext(ctx)
	stop := make(chan struct{})
	loop := func(f func(*rand.Rand) error) func() error {
		return func() error {
			random := rand.New(rand.NewPCG(rand.Uint64(), 1)) //nolint:gosec // traffic
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				if err := f(random); err != nil {
					return err
				}
			}
		}
	}
	for i := range writers {
		own := t.busy[i*busyAccounts/writers : (i+1)*busyAccounts/writers]
		g.Go(loop(func(random *rand.Rand) error { return t.transfer(ctx, random, own) }))
	}
	for range readers {
		g.Go(loop(func(random *rand.Rand) error { return t.look(ctx, random) }))
	}
	begun := time.Now()
	err := f(ctx)
	took := time.Since(begun)
	close(stop)
	if others := g.Wait(); others != nil {
		err = others
	}
	return took, err
}

func (t *traffic) transfer(ctx context.Context, random *rand.Rand, own []*busy) error {
	from := random.IntN(len(own))
	to := (from + 1 + random.IntN(len(own)-1)) % len(own)
	saga, by := uuid.NewString(), decimal.New(1+random.Int64N(10_000), -2)
	if err := t.do(ctx, own[from], time.Now(), account.Post{SagaID: saga, Step: "debit_source", Direction: account.Debit, Amount: by, Currency: ledger.Currency}); err != nil {
		return err
	}
	return t.do(ctx, own[to], time.Now(), account.Post{SagaID: saga, Step: "credit_destination", Direction: account.Credit, Amount: by, Currency: ledger.Currency})
}

// look reads one list of the busy accounts and one of the others, and holds both against what is known.
func (t *traffic) look(ctx context.Context, random *rand.Rand) error {
	atLeast := make(map[string]int64, len(t.busy))
	for _, b := range t.busy {
		b.mu.Lock()
		atLeast[b.id] = b.shown
		b.mu.Unlock()
	}
	entries, err := t.read(ctx, readmodel.Filter{TenantID: ledger.Tenant, OwnerID: busyOwner, Limit: busyAccounts + 1})
	if err != nil {
		return err
	}
	if len(entries) != len(t.busy) {
		return fmt.Errorf("a list shows %d of %d busy accounts", len(entries), len(t.busy))
	}
	for _, e := range entries {
		want, ok := t.byID[e.ID].at(e.Account.Version)
		if !ok || e.Account.Version < atLeast[e.ID] || !e.Account.Balance.Equal(want) {
			return fmt.Errorf("a list shows %s at version %d with %s; it had %s, and the list had shown version %d", e.ID, e.Account.Version, e.Account.Balance, want, atLeast[e.ID])
		}
	}
	return t.lookAtPage(ctx, 1+random.IntN(len(t.ledger.Accounts)-1))
}

// lookAtPage reads the page behind the n-th account, newest first, which is the order they were opened in, backwards.
func (t *traffic) lookAtPage(ctx context.Context, n int) error {
	behind := t.ledger.Accounts[n]
	entries, err := t.read(ctx, readmodel.Filter{TenantID: ledger.Tenant, Limit: min(pageRows, n), Before: page.Cursor{CreatedAt: behind.Root.State.CreatedAt, ID: behind.ID}})
	if err != nil {
		return err
	}
	if len(entries) != min(pageRows, n) {
		return fmt.Errorf("the page behind account %d has %d rows", n, len(entries))
	}
	for i, e := range entries {
		want := t.ledger.Accounts[n-1-i]
		if e.ID != want.ID || !t.spoilt[e.ID] && (e.Account.Version != want.Root.Version || !e.Account.Balance.Equal(want.Root.State.Balance)) {
			return fmt.Errorf("a list shows %s at version %d with %s, where %s is at version %d with %s",
				e.ID, e.Account.Version, e.Account.Balance, want.ID, want.Root.Version, want.Root.State.Balance)
		}
	}
	return nil
}

func (t *traffic) read(ctx context.Context, f readmodel.Filter) ([]readmodel.Entry, error) {
	begun := time.Now()
	entries, err := t.list.List(ctx, f)
	took := time.Since(begun)
	t.mu.Lock()
	t.lists = append(t.lists, took)
	t.mu.Unlock()
	return entries, err
}

// settle waits until the traffic alone has written some.
func (t *traffic) settle(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.mu.Lock()
			enough := t.events >= aloneEvents
			t.mu.Unlock()
			if enough {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// told is what the traffic was, in words.
func (t *traffic) told(took time.Duration) string {
	slices.Sort(t.lists)
	within := func(share float64) time.Duration {
		return t.lists[min(len(t.lists)-1, int(float64(len(t.lists))*share))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d events written and shown (%.0f/s); %d lists checked, none wrong; half within %s, 99%% within %s, the slowest %s",
		t.events, float64(t.events)/took.Seconds(), len(t.lists), within(0.5), within(0.99), within(1))
}
