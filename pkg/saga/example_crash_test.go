package saga_test

import (
	"fmt"
	"testing"

	"example.com/billing/pkg/saga"
	"example.com/billing/pkg/saga/sagatest"
)

func TestAnOrderSurvivesCrashes(t *testing.T) {
	sagatest.Crash(t, sagatest.Subject{Definition: order(), Input: []byte(`{"item":"book"}`), New: func() sagatest.Services {
		s, actions, registers := newShop(1)
		return sagatest.Services{Actions: actions, Registers: registers, Check: func(end saga.State) error {
			if want := map[bool]shop{true: {0, 1, 1}, false: {1, 0, 0}}[end.Status == saga.Completed]; *s != want {
				return fmt.Errorf("%s, and the shop has %+v", end.Status, *s)
			}
			return nil
		}}
	}})
}
