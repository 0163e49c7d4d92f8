package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/billing/test/chaos/auditor"
	"example.com/billing/test/drive"
	"example.com/billing/test/model"
)

// world is what the load plays with: the accounts of one currency each.
type world struct {
	currencies []*currency
	flapping   []string // USER accounts that are suspended and active again, all the time
}

// currency is one currency's accounts.
type currency struct {
	code   string
	amount func(rng *rand.Rand) string
	banks  []string // EXTERNAL
	users  []string
	hot    []string // of the users: asked more often than the others
	shop   string   // SYSTEM
	poor   string   // USER without money
	full   string   // USER with a maximum that is reached soon; empty = none
	flap   string   // of world.flapping
}

const (
	users        = 24 // of each currency
	hot          = 3
	begin        = "100000" // what each user has at first
	fullAt int64 = 50_00    // cents
)

// settle opens the accounts and gives users money.
func (l *load) settle(ctx context.Context) error {
	cents := func(rng *rand.Rand) string { return fmt.Sprintf("%d.%02d", rng.IntN(9), 1+rng.IntN(99)) }
	l.world.currencies = []*currency{
		{code: "USD", amount: cents},
		{code: "EUR", amount: cents},
		{code: "BTC", amount: func(rng *rand.Rand) string { return fmt.Sprintf("%d.%08d", rng.IntN(2), 1+rng.IntN(99_999_999)) }},
		{code: "JPY", amount: func(rng *rand.Rand) string { return fmt.Sprint(1 + rng.IntN(900)) }},
	}
	var all errgroup.Group
	for i, c := range l.world.currencies {
		all.Go(func() error {
			return l.open(ctx, rand.New(rand.NewPCG(l.seed, uint64(1000+i))), c) //nolint:gosec // drawn again from the seed
		})
	}
	if err := all.Wait(); err != nil {
		return fmt.Errorf("open the accounts: %w", err)
	}
	for _, c := range l.world.currencies {
		l.world.flapping = append(l.world.flapping, c.flap)
	}
	return nil
}

func (l *load) open(ctx context.Context, rng *rand.Rand, c *currency) error {
	n := 0
	account := func(kind string, most *int64) string {
		n++
		r := auditor.Request{Op: "open", Key: fmt.Sprintf("%s-open-%s-%d", l.run, c.code, n), Type: kind, Currency: c.code}
		return l.ask(ctx, rng, r, func(d *drive.Driver) model.Answer {
			return d.Open(r.Key, model.Opening{Type: kind, Currency: c.code, Max: most})
		}).ID
	}
	c.banks = []string{account("EXTERNAL", nil), account("EXTERNAL", nil)}
	c.shop, c.poor, c.flap = account("SYSTEM", nil), account("USER", nil), account("USER", nil)
	if c.code == "USD" || c.code == "EUR" { // package drive prints limits in cents
		most := fullAt
		c.full = account("USER", &most)
	}
	for range users {
		c.users = append(c.users, account("USER", nil))
	}
	c.hot = c.users[:hot]
	for i, u := range append([]string{c.flap}, c.users...) {
		o := model.Order{Kind: "topup", Key: fmt.Sprintf("%s-begin-%s-%d", l.run, c.code, i), Source: c.banks[0], Destination: u, Amount: begin, Currency: c.code}
		if r := l.order(ctx, rng, o, endMax); r.Status != "completed" {
			return fmt.Errorf("%s: first top-up: %+v", c.code, r)
		}
	}
	return nil
}

// flapEvery is how often an account changes between active and suspended.
const flapEvery = 700 * time.Millisecond

// flap suspends accounts and makes them active again until ctx ends: what was accepted before is refused at its postings.
func (l *load) flap(ctx context.Context) {
	rng := rand.New(rand.NewPCG(l.seed, 2000)) //nolint:gosec // drawn again from the seed
	for n := 0; wait(ctx, flapEvery); n++ {
		to := [2]string{"suspended", "active"}[n/len(l.world.flapping)%2]
		id := l.world.flapping[n%len(l.world.flapping)]
		_, _ = l.attempt(ctx, l.doors[l.choose(rng)], func(d *drive.Driver) model.Answer { // one that fails does no harm: the next follows
			return d.SetStatus(id, fmt.Sprintf("%s-flap-%d", l.run, n), to)
		})
	}
}

// worker asks for one transaction after the other.
type worker struct {
	*load
	rng      *rand.Rand
	name     string
	n        int
	payments []auditor.Request // completed, to be refunded
	holds    []auditor.Request // active, to be captured and voided
}

func newWorker(l *load, n int) *worker {
	return &worker{load: l, rng: rand.New(rand.NewPCG(l.seed, uint64(10+n))), name: fmt.Sprintf("%s-%d", l.run, n)} //nolint:gosec // drawn again from the seed
}

func (w *worker) pick(of []string) string { return of[w.rng.IntN(len(of))] }

// user is one of a few half the time, so that there are conflicts, and else any.
func (w *worker) user(c *currency, but string) string {
	for {
		of := c.users
		if w.rng.IntN(2) == 0 {
			of = c.hot
		}
		if u := w.pick(of); u != but {
			return u
		}
	}
}

// step asks for one thing; now and then for the same thing once more.
func (w *worker) step(ctx context.Context) {
	w.n++
	if w.rng.IntN(100) == 0 {
		w.brief(ctx)
		return
	}
	o, waiting := w.draw()
	r := w.order(ctx, w.rng, o, waiting)
	if w.rng.IntN(40) == 0 && r.Answer == auditor.Accepted && o.Kind != "hold" { // whose time would be another one
		r = w.order(ctx, w.rng, o, waiting)
	}
	switch {
	case r.Status != "completed" || r.Answer != auditor.Accepted:
	case o.Kind == "payment":
		w.payments = keep(w.payments, r)
	case o.Kind == "hold":
		w.holds = keep(w.holds, r)
	}
}

// brief opens an account, asks for a transfer to it, and closes it while that is under way.
func (w *worker) brief(ctx context.Context) {
	c := w.world.currencies[w.rng.IntN(len(w.world.currencies))]
	key := fmt.Sprintf("%s-%d", w.name, w.n)
	r := auditor.Request{Op: "open", Key: key, Type: "USER", Currency: c.code}
	r = w.ask(ctx, w.rng, r, func(d *drive.Driver) model.Answer { return d.Open(key, model.Opening{Type: r.Type, Currency: c.code}) })
	if r.Answer != auditor.Accepted {
		return
	}
	w.order(ctx, w.rng, model.Order{Kind: "transfer", Key: key, Source: w.user(c, ""), Destination: r.ID, Amount: c.amount(w.rng), Currency: c.code}, 0)
	_, _ = w.attempt(ctx, w.doors[w.choose(w.rng)], func(d *drive.Driver) model.Answer { return d.SetStatus(r.ID, key+"-close", "closed") }) // a refusal is as good
}

// keep remembers the newest few.
func keep(of []auditor.Request, r auditor.Request) []auditor.Request {
	const most = 20
	if len(of) == most {
		of = of[1:]
	}
	return append(of, r)
}

// draw chooses what to ask for, and how long the answer is to wait for its end.
func (w *worker) draw() (model.Order, time.Duration) {
	c := w.world.currencies[w.rng.IntN(len(w.world.currencies))]
	waiting := time.Duration(0)
	if w.rng.IntN(4) == 0 {
		waiting = endMax
	}
	o := model.Order{Kind: "transfer", Key: fmt.Sprintf("%s-%d", w.name, w.n), Source: w.user(c, ""), Amount: c.amount(w.rng), Currency: c.code}
	o.Destination = w.user(c, o.Source)
	switch n := w.rng.IntN(100); {
	case n < 56: // a transfer as it is
	case n < 60:
		o.Source = c.poor // refused for lack of funds
	case n < 64:
		if c.full != "" {
			o.Destination = c.full // comes back, once that is full
		}
	case n < 67:
		o.Destination = c.flap
	case n < 69:
		o.Source = c.flap
	case n < 77:
		o.Kind, o.Source = "topup", w.pick(c.banks)
	case n < 80:
		o.Kind, o.Destination = "withdrawal", w.pick(c.banks)
	case n < 87:
		if o.Kind, waiting = "payment", endMax; w.rng.IntN(3) == 0 {
			o.Destination = c.shop
		}
	case n < 91:
		o = w.refund(o)
	case n < 95:
		if o.Kind, waiting = "hold", endMax; w.rng.IntN(2) == 0 {
			o.Destination = ""
		}
	case n < 98:
		o = w.onHold(o, "capture")
	default:
		o = w.onHold(o, "void")
	}
	return o, waiting
}

// refund is of a payment that completed, in part or whole; without one it is a transfer.
func (w *worker) refund(o model.Order) model.Order {
	if len(w.payments) == 0 {
		return o
	}
	p := w.payments[w.rng.IntN(len(w.payments))]
	o = model.Order{Kind: "refund", Key: o.Key, On: p.ID}
	if w.rng.IntN(3) > 0 {
		o.Amount = p.Amount
	}
	return o
}

// onHold is a capture or the void of a hold; without one it is a transfer.
func (w *worker) onHold(o model.Order, kind string) model.Order {
	if len(w.holds) == 0 {
		return o
	}
	h := w.holds[w.rng.IntN(len(w.holds))]
	if kind == "void" {
		return model.Order{Kind: kind, Key: o.Key, On: h.ID}
	}
	c := w.currency(h.Currency)
	capture := model.Order{Kind: kind, Key: o.Key, On: h.ID, Destination: h.Destination}
	if h.Destination == "" {
		capture.Destination = w.user(c, h.Source)
	}
	if w.rng.IntN(3) > 0 {
		capture.Amount = c.amount(w.rng)
	}
	return capture
}

func (w *worker) currency(code string) *currency {
	for _, c := range w.world.currencies {
		if c.code == code {
			return c
		}
	}
	return w.world.currencies[0]
}
