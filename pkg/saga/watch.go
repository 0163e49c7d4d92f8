package saga

import "context"

// Look reads a saga as it is now. Where this engine works on it, that is what its memory says, and changed closes at the next
// change; otherwise it is the stored state, or ErrNotFound, and changed is nil.
func (e *Engine) Look(ctx context.Context, sagaID string) (s State, changed <-chan struct{}, err error) {
	e.mu.Lock()
	r := e.active[sagaID]
	e.mu.Unlock()
	if r != nil {
		r.mu.Lock()
		s, changed = r.state, r.changed
		r.mu.Unlock()
	}
	if s.SagaID == "" { // not at work here, or just taken up
		s, err = e.cfg.Store.Get(ctx, sagaID)
		return s, nil, err
	}
	return s, changed, nil
}
