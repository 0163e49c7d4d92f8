package saga

import (
	"context"
	"errors"
	"sync"
	"time"
)

// lease is the epoch that an engine holds, and until when, by this machine's clock.
type lease struct {
	ttl time.Duration

	mu      sync.Mutex
	epoch   int64 // 0 = none
	until   time.Time
	renewed chan struct{} // closed at the next renewal
	lost    chan struct{} // closed when the epoch ends
}

func newLease(ttl time.Duration) *lease {
	return &lease{ttl: ttl, renewed: make(chan struct{}), lost: make(chan struct{})}
}

// set notes a lease that was asked for at a time.
func (l *lease) set(epoch int64, asked time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if epoch != l.epoch && l.epoch != 0 {
		close(l.lost)
		l.lost = make(chan struct{})
	}
	l.epoch, l.until = epoch, asked.Add(l.ttl)
	close(l.renewed)
	l.renewed = make(chan struct{})
}

// drop notes that an epoch has ended.
func (l *lease) drop(epoch int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch == epoch {
		l.epoch = 0
		close(l.lost)
		l.lost = make(chan struct{})
	}
}

// end forgets the lease and returns its epoch.
func (l *lease) end() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	epoch := l.epoch
	l.epoch = 0
	close(l.lost)
	l.lost = make(chan struct{})
	return epoch
}

// held is the epoch whose lease has not ended by this machine's clock, or 0.
func (l *lease) held() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.until) {
		return l.epoch
	}
	return 0
}

// errLost ends a run whose saga may be another engine's by now.
var errLost = errors.New("the engine's lease has ended")

// check waits until the lease of an epoch is sure, or is lost for good.
func (l *lease) check(ctx context.Context, epoch int64) error {
	for {
		l.mu.Lock()
		mine, sure, renewed, lost := l.epoch == epoch, time.Now().Before(l.until), l.renewed, l.lost
		l.mu.Unlock()
		switch {
		case !mine:
			return errLost
		case sure:
			return nil
		}
		select {
		case <-renewed:
		case <-lost:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hold makes sure that the engine has a lease, and returns its epoch.
func (e *Engine) hold(ctx context.Context) (int64, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	e.keeping.Do(func() { e.done.Go(e.keepLease); e.done.Go(e.clearBacklog) })
	if epoch := e.lease.held(); epoch != 0 {
		return epoch, nil
	}
	return e.renew(ctx)
}

// renew renews the lease, or begins one where there is none. Sagas of an epoch that was lost are left to those who take them over.
func (e *Engine) renew(ctx context.Context) (int64, error) {
	e.renewing.Lock()
	defer e.renewing.Unlock()
	asked := time.Now()
	epoch := e.lease.present()
	next, err := e.cfg.Store.Lease(ctx, e.owner, epoch, e.cfg.LeaseTTL)
	if errors.Is(err, ErrFenced) {
		e.cfg.Log.Warn("saga engine lost its lease; another one may have its sagas", "epoch", epoch)
		e.lease.drop(epoch)
		asked = time.Now()
		next, err = e.cfg.Store.Lease(ctx, e.owner, 0, e.cfg.LeaseTTL)
	}
	if err != nil {
		return 0, err
	}
	if e.ctx.Err() != nil {
		_ = e.cfg.Store.Release(ctx, next) // Stop has released the one before
		return 0, e.ctx.Err()
	}
	e.lease.set(next, asked)
	return next, nil
}

// present is the epoch that the engine has, sure or not; 0 = none.
func (l *lease) present() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

// keepLease renews the lease well before it ends, from its first use until the engine stops.
func (e *Engine) keepLease() {
	wait := e.cfg.LeaseTTL / 3
	for e.sleep(wait) {
		ctx, cancel := context.WithTimeout(e.ctx, e.cfg.LeaseTTL)
		_, err := e.renew(ctx)
		cancel()
		wait = e.cfg.LeaseTTL / 3
		if err != nil && e.ctx.Err() == nil {
			e.cfg.Log.Warn("saga engine cannot renew its lease", "error", err)
			wait = min(wait, 250*time.Millisecond)
		}
	}
}
