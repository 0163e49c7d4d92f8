package api

import (
	"context"
	"fmt"
	"strconv"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/rpc"
	accountv1 "example.com/billing/proto/gen/go/billing/account/v1"
	"example.com/billing/services/account"
	"example.com/billing/services/edge"
)

// ReadRegisters reads what registers say, all of one moment. It writes no tombstone: what is open stays so.
func (s *Server) ReadRegisters(ctx context.Context, req *accountv1.ReadRegistersRequest) (*accountv1.ReadRegistersResponse, error) {
	keys := req.GetRegisters()
	if n := len(keys); n == 0 || n > edge.BatchMax {
		return nil, rpc.Invalid(rpc.Violation{Field: "registers", Rule: "items:1..1000", Value: strconv.Itoa(n)})
	}
	res := &accountv1.ReadRegistersResponse{Registers: make([]*accountv1.RegisterContent, len(keys))}
	places := make([]place, len(keys))
	var ids []string
	for i, k := range keys {
		var err error
		if places[i], err = findPlace(k); err != nil {
			res.Registers[i] = unknown(err) // many sagas' questions come in one request: the others get their answers
			continue
		}
		ids = append(ids, places[i].ids()...)
	}
	found := map[string]es.Event{}
	if len(ids) > 0 {
		events, err := s.Store.Lookup(ctx, ids)
		if err != nil {
			return nil, fmt.Errorf("read registers: %w", err)
		}
		for _, e := range events {
			found[e.ID] = e
		}
	}
	for i, p := range places {
		if res.Registers[i] != nil {
			continue
		}
		content, err := p.read(found)
		if err != nil {
			content = unknown(err)
		}
		res.Registers[i] = content
	}
	return res, nil
}

// place is where a register stands: the id of its event.
type place struct {
	own      string
	undone   string // of a rollback: the register of the step it undoes
	undoStep string
}

func (p place) ids() []string {
	if p.undone == "" {
		return []string{p.own}
	}
	return []string{p.own, p.undone}
}

// findPlace checks a key's shape.
func findPlace(k *accountv1.RegisterKey) (place, error) {
	var v rpc.Fields
	sagaID, accountID := v.UUID("sagaId", k.GetSagaId()), v.UUID("accountId", k.GetAccountId())
	id := func(key string) string { return es.EventID(stream(accountID), key, 0) }
	step := readStep(&v, "step", k.GetStep())
	if k.GetUndoStep() == "" {
		return place{own: id(registerKey(sagaID, step))}, v.Err()
	}
	undone := readUndoStep(&v, k.GetStep(), k.GetUndoStep())
	return place{own: id(rollbackKey(sagaID, undone)), undone: id(registerKey(sagaID, undone)), undoStep: undone}, v.Err()
}

// read answers from the events of registers.
func (p place) read(found map[string]es.Event) (*accountv1.RegisterContent, error) {
	e, written := found[p.own]
	if !written && p.undone == "" {
		return &accountv1.RegisterContent{State: accountv1.RegisterState_REGISTER_STATE_OPEN}, nil
	}
	if !written {
		return p.readUndone(found)
	}
	r, err := readRegister(e)
	if err != nil {
		return nil, err
	}
	version, err := edge.Version(e.Version)
	if err != nil {
		return nil, err
	}
	res := &accountv1.RegisterContent{Version: version}
	switch r.Outcome {
	case account.Done:
		res.State, res.NewBalance, res.AvailableBalance = accountv1.RegisterState_REGISTER_STATE_DONE, r.NewBalance, r.Available
	case account.Refused:
		res.State, res.ErrorReason, res.ErrorMessage = accountv1.RegisterState_REGISTER_STATE_REFUSED, r.Reason, r.Message
	case account.Cancelled:
		res.State = accountv1.RegisterState_REGISTER_STATE_CANCELLED
	}
	return res, nil
}

// readUndone answers for a rollback that did not happen: it never will where the step it undoes never did.
func (p place) readUndone(found map[string]es.Event) (*accountv1.RegisterContent, error) {
	e, written := found[p.undone]
	if !written {
		return &accountv1.RegisterContent{State: accountv1.RegisterState_REGISTER_STATE_OPEN}, nil
	}
	r, err := readRegister(e)
	switch {
	case err != nil:
		return nil, err
	case r.Outcome != account.Done:
		version, err := edge.Version(e.Version)
		return &accountv1.RegisterContent{State: accountv1.RegisterState_REGISTER_STATE_CANCELLED, Version: version}, err
	case r.Direction == account.Hold:
		return nil, notMoney(p.undoStep)
	}
	return &accountv1.RegisterContent{State: accountv1.RegisterState_REGISTER_STATE_OPEN}, nil
}

// unknown says why nothing is known of a register.
func unknown(err error) *accountv1.RegisterContent {
	why := undecided(err)
	return &accountv1.RegisterContent{ErrorReason: why.GetErrorReason(), ErrorMessage: why.GetErrorMessage()}
}

// registerKey is a step's key in its account's stream: the id of its register is derived from it.
func registerKey(sagaID, step string) string { return sagaID + "/" + step }

// rollbackKey is the key of the rollback of a step. A step is undone once, whatever the rollback is called.
func rollbackKey(sagaID, undoStep string) string { return "rollback/" + sagaID + "/" + undoStep }

func readStep(v *rpc.Fields, field, name string) string {
	if !stepPattern.MatchString(name) {
		v.Add(field, "pattern:"+stepPattern.String(), name)
	}
	return name
}

func readUndoStep(v *rpc.Fields, step, undoStep string) string {
	if undoStep == step {
		v.Add("undoStep", "different_from:step", undoStep)
	}
	return readStep(v, "undoStep", undoStep)
}

// notMoney: a hold is given back by a release, not by a rollback.
func notMoney(undoStep string) error {
	return rpc.Invalid(rpc.Violation{Field: "undoStep", Rule: "moved_money", Value: undoStep})
}

// readRegister reads the register that an event is.
func readRegister(e es.Event) (account.Register, error) {
	f, err := account.Decode(e)
	if err != nil {
		return account.Register{}, err
	}
	r, ok := account.ReadRegister(f)
	if !ok {
		return r, fmt.Errorf("the register holds %s", f.EventType())
	}
	return r, nil
}
