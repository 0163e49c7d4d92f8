package saga_test

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

// order is a saga of one's own: reserve stock, charge the customer, ship, and thank them unless they bought as a guest. Until the
// charge all can be undone; after it the parcel goes out, however long that takes.
func order() saga.Definition {
	return saga.Definition{
		Name: "order", Version: 1, Trigger: "OrderPlaced", OnFailed: "reject_order", OnCompensated: "reject_order", Deadline: 24 * time.Hour,
		Steps: []saga.Step{
			{Name: "reserve_stock", Kind: saga.Compensatable, Compensation: "release_stock"},
			{Name: "charge", Kind: saga.Pivot},
			{Name: "ship", Kind: saga.Retriable, Parallel: "after"},
			{Name: "thank", Kind: saga.Retriable, Parallel: "after", When: &saga.Condition{Field: "guest", Not: true}},
		},
	}
}

// shop is the services that the saga acts in. sagatest.Service answers each call once, as the contract of saga.Call wants.
type shop struct{ stock, paid, shipped int }

func newShop(stock int) (*shop, map[string]saga.Action, map[string]saga.Registers) {
	s, service := &shop{stock: stock}, sagatest.NewService()
	do := func(effect func()) saga.Action {
		return service.Do(func(saga.Call) (map[string]any, error) { effect(); return nil, nil })
	}
	return s, map[string]saga.Action{
		"reserve_stock": service.Do(func(saga.Call) (map[string]any, error) {
			if s.stock == 0 {
				return nil, es.Refuse("SOLD_OUT", "Nothing is left.")
			}
			s.stock--
			return map[string]any{"left": s.stock}, nil
		}),
		"release_stock": service.Undo(func(saga.Call) (map[string]any, error) { s.stock++; return nil, nil }),
		"charge":        do(func() { s.paid++ }),
		"ship":          do(func() { s.shipped++ }),
		"thank":         do(func() {}),
		"reject_order":  do(func() {}),
	}, map[string]saga.Registers{"reserve_stock": service, "release_stock": service, "charge": service}
}

func Example() {
	registry, _ := saga.NewRegistry(order())
	s, actions, registers := newShop(1)
	ended := make(chan saga.State)
	engine, err := saga.NewEngine(saga.Config{
		Registry: registry, Actions: actions, Registers: registers, Store: saga.NewMemory(), OnEnd: func(s saga.State) { ended <- s },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, id := range []string{"order-1", "order-2"} {
		_, _ = engine.Start(context.Background(), []saga.Trigger{{SagaID: id, EventType: "OrderPlaced", Data: json.RawMessage(`{"guest":true}`), At: time.Now()}})
		end := <-ended
		fmt.Println(end.SagaID, end.Status, end.ErrorReason, s.stock, s.paid, s.shipped)
	}
	_ = engine.Stop(context.Background())
	// Output:
	// order-1 completed  0 1 1
	// order-2 failed SOLD_OUT 0 1 1
}
