package es_test

import (
	"context"
	"fmt"
	"time"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
)

// A subscriber reads what is there, and goes on with what comes.
func ExampleSubscribe() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	store, order := memory.New(), es.Stream{Type: "Order", ID: "7"}
	happen := func(version int64, eventType string) {
		e := es.Event{ID: es.EventID(order, eventType, 0), Type: eventType, Stream: order, Version: version, At: time.Now(), Data: []byte(`{}`)}
		_ = store.Append(ctx, es.Append{Stream: order, Expected: version - 1, Events: []es.Event{e}})
	}
	happen(1, "OrderPlaced")
	for events, err := range es.Subscribe(ctx, store, "Order", 0, es.SubscribeOptions{}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, e := range events {
			fmt.Println(e.Position, e.Type)
			switch e.Type {
			case "OrderPlaced":
				happen(2, "OrderShipped")
			case "OrderShipped":
				cancel() // no error: the loop ends
			}
		}
	}
	// Output:
	// 1 OrderPlaced
	// 2 OrderShipped
}
