package edge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	eskafka "example.com/billing/pkg/es/kafka"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/rpc"
	"example.com/billing/pkg/run"
)

const (
	leadTTL     = 5 * time.Second // after the death of a leader another process takes over
	leadRenewal = leadTTL / 5
)

// Standby is a process that waits for its turn to lead an event store that has one leader, and meanwhile sends its callers on to the one that
// leads.
type Standby struct {
	Pool      *pgxpool.Pool
	Addr      string // where it serves
	Advertise string // where other processes find it
	// Meanwhile runs while it waits; nil = nothing does.
	Meanwhile func(ctx context.Context) error

	me espg.Leader // once it waits
}

// Turn renews this process's turn. It returns an *OtherLeaderError if it is over.
func (s *Standby) Turn(ctx context.Context) error {
	now, err := espg.Lead(ctx, s.Pool, s.me, leadTTL)
	if err == nil && now.Holder != s.me.Holder {
		err = &OtherLeaderError{now.Address}
	}
	return err
}

// OtherLeaderError says that another process leads.
type OtherLeaderError struct{ Address string }

// Error names its address.
func (e *OtherLeaderError) Error() string {
	return fmt.Sprintf("another process leads now, at %s", e.Address)
}

// Unwrap says so to the Kafka store.
func (e *OtherLeaderError) Unwrap() error { return eskafka.ErrTurnLost }

// Await returns when it is this process's turn, or the app has to stop. From then on the turn is renewed; a process that comes too late for that
// stops the app, and is to be started anew: another one leads.
func (s *Standby) Await(app *run.App) error {
	s.me = espg.Leader{Holder: uuid.NewString(), Address: s.Advertise}
	waiting, done := context.WithCancel(app.Context())
	defer done()
	var background sync.WaitGroup
	defer background.Wait()
	defer done()
	failed := make(chan error, 2)
	if s.Meanwhile != nil {
		background.Go(func() {
			if err := s.Meanwhile(waiting); err != nil {
				failed <- err
			}
		})
	}
	var serving *forwarder
	defer func() { serving.stop() }()
	for {
		now, err := espg.Lead(waiting, s.Pool, s.me, leadTTL)
		switch {
		case waiting.Err() != nil:
			return waiting.Err()
		case err != nil:
			app.Log.Warn("who leads is not known", "error", err)
		case now.Holder == s.me.Holder:
			app.Log.Info("this process leads")
			s.keep(app)
			return nil
		case serving == nil:
			if serving, err = s.serve(app, &background, failed); err != nil {
				return err
			}
		}
		if err == nil {
			if now.Address == s.me.Address {
				now.Address = "" // this process's own, of before it was started again: its turn has not ended yet
			}
			serving.lead(now.Address)
		}
		select {
		case <-time.After(leadRenewal):
		case err := <-failed:
			return err
		case <-waiting.Done():
			return waiting.Err()
		}
	}
}

// keep renews the turn until the app stops, and then ends it.
func (s *Standby) keep(app *run.App) {
	app.OnStop("lead", func(ctx context.Context) error { return espg.Resign(ctx, s.Pool, s.me) })
	app.Go("lead", func(ctx context.Context) error {
		for {
			select {
			case <-time.After(leadRenewal):
			case <-ctx.Done():
				return nil
			}
			err := s.Turn(ctx)
			var other *OtherLeaderError
			switch {
			case ctx.Err() != nil:
				return nil //nolint:nilerr // that is how it is to end
			case errors.As(err, &other):
				return err
			case err != nil: // nobody else can take over meanwhile
				app.Log.Warn("the lead is not renewed", "error", err)
			}
		}
	})
}

// forwarder serves what a standby serves.
type forwarder struct {
	server *grpc.Server
	health *health.Server

	mu      sync.Mutex
	address string // of the leader; empty = not known
	conn    *grpc.ClientConn
}

// serve starts forwarding.
func (s *Standby) serve(app *run.App, background *sync.WaitGroup, failed chan<- error) (*forwarder, error) {
	f := &forwarder{health: health.NewServer()}
	f.server = rpc.NewForwarder(f.leader)
	healthv1.RegisterHealthServer(f.server, f.health)
	f.health.SetServingStatus(Accepting, healthv1.HealthCheckResponse_SERVING)
	f.health.SetServingStatus(Alive, healthv1.HealthCheckResponse_SERVING)
	l, err := app.Listen(s.Addr)
	if err != nil {
		return nil, fmt.Errorf("serve gRPC: %w", err)
	}
	app.Log.Info("another process leads; this one sends calls on to it", "addr", l.Addr().String())
	background.Go(func() {
		if err := f.server.Serve(l); err != nil {
			failed <- fmt.Errorf("serve gRPC: %w", err)
		}
	})
	return f, nil
}

// lead says where the leader is.
func (f *forwarder) lead(address string) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if address == f.address {
		return
	}
	if f.conn != nil {
		_ = f.conn.Close()
	}
	if f.conn, f.address = nil, address; address == "" {
		return
	}
	// An address that cannot be read has no connection: its calls say so.
	f.conn, _ = grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), rpc.Probed())
}

func (f *forwarder) leader(context.Context) (*grpc.ClientConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return nil, status.Error(codes.Unavailable, "no process leads the event store at the moment")
	}
	return f.conn, nil
}

// stop ends it at once: what it forwarded to was another leader.
func (f *forwarder) stop() {
	if f == nil {
		return
	}
	f.health.Shutdown()
	f.server.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		_ = f.conn.Close()
	}
}
