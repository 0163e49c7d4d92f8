package edge

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"example.com/billing/pkg/es"
	"example.com/billing/pkg/es/memory"
	espg "example.com/billing/pkg/es/postgres"
	"example.com/billing/pkg/pgtest"
	"example.com/billing/pkg/run"
)

func newApp(t *testing.T) *run.App {
	t.Helper()
	app := run.NewApp(t.Context(), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := app.Close(); err != nil {
			t.Error(err)
		}
	})
	return app
}

func tables(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return pgtest.Migrated(t, espg.Migrations, espg.MigrationsTable)
}

func happened(t *testing.T, s es.Store, st es.Stream, after int64, n int) (events []es.Event) {
	t.Helper()
	for v := after + 1; v <= after+int64(n); v++ {
		events = append(events, es.Event{ID: uuid.NewString(), Type: "Happened", Stream: st, Version: v, At: time.Now(), CorrelationID: "c", Data: []byte("{}")})
	}
	if err := s.Append(t.Context(), es.Append{Stream: st, Expected: after, Events: events}); err != nil {
		t.Fatal(err)
	}
	return events
}

// A service runs on the store that its settings name, and refuses one that does not have what its database has.
func TestEventStoresByTheirNames(t *testing.T) {
	pool, st := tables(t), es.Stream{Type: "Test", ID: "a"}
	kept, name := memory.New(), "kept-"+uuid.NewString() // a name can be given once in a process
	RegisterEventStore(name, func(context.Context, string, *slog.Logger) (es.Store, error) { return kept, nil })
	open := func(name string) (*Events, error) {
		t.Helper()
		return EventStore{EventStoreSettings: EventStoreSettings{EventStore: name}, Aggregate: "Test", Addr: "127.0.0.1:0", Pool: pool}.Open(newApp(t))
	}
	if _, err := open("mongo"); err == nil || !strings.HasPrefix(err.Error(), `event store "mongo": it must be one of kafka, kept-`) || !strings.HasSuffix(err.Error(), ", memory, postgres") || !strings.Contains(err.Error(), name) {
		t.Errorf("an unknown store: %v", err)
	}
	if e, err := open(StorePostgres); err != nil || e.Replica != nil || e.Fresh(t.Context()) != nil {
		t.Errorf("postgres: %v %v", e, err)
	}
	e, err := open(name)
	if err != nil {
		t.Fatal(err)
	}
	e.Notify(happened(t, e, st, 0, 3))
	if err := e.Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if end, err := e.Tables.End(t.Context()); err != nil || end != 3 {
		t.Errorf("the copy ends at %d (%v), want 3", end, err)
	}
	var follows *espg.FollowsError
	if _, err := open(StorePostgres); !errors.As(err, &follows) || follows.Name != name {
		t.Errorf("postgres on a copy: %v", err)
	}
	var other *espg.OtherHistoryError
	if _, err := open(StoreMemory); !errors.As(err, &other) || other.Position != 3 {
		t.Errorf("memory on a database that has events: %v", err)
	}
	if _, err := open(name); err != nil {
		t.Errorf("the same store again: %v", err)
	}
	for _, taken := range []string{"", StorePostgres, StoreKafka, StoreMemory, name} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was registered", taken)
				}
			}()
			RegisterEventStore(taken, nil)
		}()
	}
}

// A projection sees events once the database has them; what nobody has committed is no reason to wait for ever.
func TestBehind(t *testing.T) {
	pool, st, store := tables(t), es.Stream{Type: "Test", ID: "a"}, memory.New()
	tables := espg.New(pool, espg.Options{})
	e := &Events{Store: store, Tables: tables, Replica: espg.NewReplica(espg.ReplicaConfig{To: tables, From: store, Name: "x", Log: slog.New(slog.DiscardHandler)})}
	if err := e.Replica.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Replica.Run(ctx) }()
	handled := 0
	handle := e.Behind(func(_ context.Context, events []es.Event) error {
		handled += len(events)
		if heads, err := tables.Heads(t.Context(), []es.Stream{st}); err != nil || heads[0].Version < events[len(events)-1].Version {
			t.Errorf("handled before the database has it: %v %v", heads, err)
		}
		return nil
	})
	events := happened(t, store, st, 0, 5)
	if err := handle(t.Context(), events); err != nil || handled != 5 {
		t.Errorf("%d handled: %v", handled, err)
	}
	forged := events[4]
	forged.Version = 6
	if err := handle(t.Context(), []es.Event{forged}); !errors.Is(err, errNotCommitted) || handled != 5 {
		t.Errorf("what nobody has committed: %v, %d handled", err, handled)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// One instance's turn comes; the other sends its callers on, until the first has resigned.
func TestStandby(t *testing.T) {
	pool := tables(t)
	leader := grpc.NewServer()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = leader.Serve(l) }()
	defer leader.Stop()
	first := newApp(t)
	if err := (&Standby{Pool: pool, Addr: "127.0.0.1:1", Advertise: l.Addr().String()}).Await(first); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	second := newApp(t)
	meanwhile := make(chan struct{})
	turn := make(chan error, 1)
	go func() {
		turn <- (&Standby{Pool: pool, Addr: addr, Advertise: addr, Meanwhile: func(ctx context.Context) error { <-ctx.Done(); close(meanwhile); return nil }}).Await(second)
	}()
	conn := dialLocal(t, addr)
	// Its own health is its own; anything else is the leader's, which says that it does not know the method.
	pgtest.Eventually(t, "calls are sent on", func() bool { return status.Code(unknown(t, conn)) == codes.Unimplemented })
	if res, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: Accepting}); err != nil || res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("its health: %v %v", res, err)
	}
	select {
	case err := <-turn:
		t.Fatalf("both lead: %v", err)
	default:
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-turn; err != nil {
		t.Fatal(err)
	}
	<-meanwhile
	if l, err := net.Listen("tcp", addr); err != nil {
		t.Errorf("its address is not free for the service: %v", err)
	} else {
		_ = l.Close()
	}
}

// An instance that was killed and started again finds itself as the leader until its lease ends: it does not send calls on to itself.
func TestStandbyOfItsOwnFormerSelf(t *testing.T) {
	pool, addr := tables(t), freeAddr(t)
	if _, err := espg.Lead(t.Context(), pool, espg.Leader{Holder: "killed", Address: addr}, leadTTL); err != nil {
		t.Fatal(err)
	}
	app := newApp(t)
	turn := make(chan error, 1)
	go func() { turn <- (&Standby{Pool: pool, Addr: addr, Advertise: addr}).Await(app) }()
	conn := dialLocal(t, addr)
	pgtest.Eventually(t, "it says that nobody leads", func() bool { return strings.Contains(status.Convert(unknown(t, conn)).Message(), "no process leads") })
	if err := espg.Resign(t.Context(), pool, espg.Leader{Holder: "killed"}); err != nil {
		t.Fatal(err)
	}
	if err := <-turn; err != nil {
		t.Error(err)
	}
}

// Whoever has lost its turn ends, for another one leads.
func TestAnInstanceThatLostItsTurnEnds(t *testing.T) {
	pool := tables(t)
	app := newApp(t)
	if err := (&Standby{Pool: pool, Addr: "127.0.0.1:1", Advertise: "127.0.0.1:1"}).Await(app); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE es_leader SET holder = 'another', address = 'there', leased_until = clock_timestamp() + interval '5 seconds'`); err != nil {
		t.Fatal(err)
	}
	select {
	case <-app.Context().Done():
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
	if err := context.Cause(app.Context()); err == nil || !strings.Contains(err.Error(), "another process leads now, at there") {
		t.Errorf("it ended because of %v", err)
	}
}

func unknown(t *testing.T, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	return conn.Invoke(ctx, "/billing.test.Nothing/Call", &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{})
}

func dialLocal(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
