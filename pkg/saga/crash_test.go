package saga_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

// The kit finds services that break the contract.
func TestCrashFindsBrokenServices(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(s *shop, actions map[string]saga.Action)
		want  string
	}{
		{"none", func(*shop, map[string]saga.Action) {}, ""},
		{"a step that is done again when it is asked again", func(s *shop, actions map[string]saga.Action) {
			actions["charge"] = func(context.Context, saga.Call) (saga.Answer, error) { s.paid++; return done(), nil }
		}, "the shop has"},
		{"a compensation that is done again", func(s *shop, actions map[string]saga.Action) {
			actions["release_stock"] = func(context.Context, saga.Call) (saga.Answer, error) { s.stock++; return done(), nil }
		}, "the shop has"},
		{"a step with another answer each time", func(s *shop, actions map[string]saga.Action) {
			n := 0
			ship := actions["ship"]
			actions["ship"] = func(ctx context.Context, c saga.Call) (saga.Answer, error) {
				a, err := ship(ctx, c)
				n++
				a.Result = map[string]any{"parcel": n}
				return a, err
			}
		}, `action ship answered`},
		{"a step that cannot be done", func(_ *shop, actions map[string]saga.Action) {
			actions["ship"] = func(context.Context, saga.Call) (saga.Answer, error) { return stuck(), nil }
		}, "needs attention"},
		{"a compensation that forgets that it came first", func(s *shop, actions map[string]saga.Action) {
			reserve := actions["reserve_stock"]
			actions["reserve_stock"] = func(ctx context.Context, c saga.Call) (saga.Answer, error) {
				a, err := reserve(ctx, c)
				if a.Reason == "CANCELLED" {
					s.stock--
				}
				return a, err
			}
		}, "the shop has"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			runs, err := sagatest.Subject{Definition: order(), Input: []byte(`{}`), New: func() sagatest.Services {
				s, actions, registers := newShop(1)
				tc.spoil(s, actions)
				return sagatest.Services{Actions: actions, Registers: registers, Check: func(end saga.State) error {
					if want := map[bool]shop{true: {0, 1, 1}, false: {1, 0, 0}}[end.Status == saga.Completed]; *s != want {
						return fmt.Errorf("%s, and the shop has %+v", end.Status, *s)
					}
					return nil
				}}
			}}.Try()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%d runs: %v", runs, err)
			}
			if tc.want == "" && runs < 150 {
				t.Errorf("only %d runs", runs)
			}
		})
	}
}
