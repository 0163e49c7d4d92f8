package run_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"example.com/billing/pkg/run"
)

func newApp(ctx context.Context) *run.App { return run.NewApp(ctx, slog.New(slog.DiscardHandler)) }

// journal notes what happens, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) read() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// part is a background part that notes its end.
func (j *journal) part(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		j.add(name)
		return ctx.Err()
	}
}

// Parts end one after another, in the reverse of the order they began in, each before the next is told to.
func TestPartsStopInReverseOrder(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a := newApp(ctx)
	var j journal
	a.OnStop("pool", func(context.Context) error { j.add("pool"); return nil })
	a.Go("relay", j.part("relay"))
	a.OnStop("queue", func(context.Context) error { j.add("queue"); return nil })
	a.Go("server", j.part("server"))
	if len(j.read()) > 0 {
		t.Errorf("stopped already: %v", j.read())
	}
	cancel()
	if err := a.Wait(); err != nil {
		t.Errorf("an orderly stop: %v", err)
	}
	if want := []string{"server", "queue", "relay", "pool"}; !slices.Equal(j.read(), want) {
		t.Errorf("stopped %v, want %v", j.read(), want)
	}
	if err := a.Close(); err != nil || len(j.read()) != 4 {
		t.Errorf("closed again: %v, %v", err, j.read())
	}
}

// A part's context does not end with the app's: a part goes on until it is its turn.
func TestAPartGoesOnUntilItsTurn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a := newApp(ctx)
	var asked, early atomic.Bool
	a.Go("bottom", func(ctx context.Context) error {
		<-ctx.Done()
		early.Store(!asked.Load())
		return nil
	})
	a.OnStop("top", func(context.Context) error { asked.Store(true); return nil })
	cancel()
	if err := a.Wait(); err != nil || early.Load() {
		t.Errorf("%v, ended before its turn: %v", err, early.Load())
	}
}

func TestAnErrorInAPartStopsTheApp(t *testing.T) {
	errBroken, errStop := errors.New("broken"), errors.New("cannot stop")
	a := newApp(t.Context())
	var j journal
	a.Go("relay", j.part("relay"))
	a.OnStop("pool", func(context.Context) error { j.add("pool"); return errStop })
	fail := make(chan struct{})
	a.Go("consumer", func(context.Context) error { <-fail; return errBroken })
	a.Go("done early", func(context.Context) error { return nil }) // no reason to stop
	select {
	case <-a.Context().Done():
		t.Error("stopped without a reason")
	default:
	}
	close(fail)
	err := a.Wait()
	if !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "consumer: broken") || !errors.Is(err, errStop) || !strings.Contains(err.Error(), "stop pool") {
		t.Errorf("got %v", err)
	}
	if want := []string{"pool", "relay"}; !slices.Equal(j.read(), want) {
		t.Errorf("stopped %v, want %v", j.read(), want)
	}
}

// A part that does not end holds up the stop for a bounded time, and the rest stops all the same.
func TestAPartThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a := newApp(ctx)
		var below atomic.Bool
		a.OnStop("below", func(context.Context) error { below.Store(true); return nil })
		release := make(chan struct{})
		a.Go("stubborn", func(context.Context) error { <-release; return nil })
		cancel()
		began := time.Now()
		err := a.Wait()
		if err == nil || !strings.Contains(err.Error(), "stop stubborn") || !below.Load() || time.Since(began) > 15*time.Second {
			t.Errorf("%v after %v, the rest stopped: %v", err, time.Since(began), below.Load())
		}
		close(release)
	})
}

func TestRetryGoesOnUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t.Context())
		defer a.Close()
		var at []time.Duration
		began := time.Now()
		if err := a.Retry(t.Context(), "connect", func(context.Context) error {
			if at = append(at, time.Since(began)); len(at) < 20 {
				return errors.New("not yet")
			}
			return nil
		}); err != nil || len(at) != 20 {
			t.Fatalf("%v after %d attempts", err, len(at))
		}
		for i := 1; i < len(at); i++ {
			if pause := at[i] - at[i-1]; pause <= 0 || pause > 7500*time.Millisecond || i > 12 && pause < 2*time.Second {
				t.Errorf("pause %d is %v", i, pause)
			}
		}
	})
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		err := a.Retry(ctx, "connect", func(context.Context) error { return errors.New("never") })
		if err == nil || !strings.Contains(err.Error(), "connect: ") || time.Since(began) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The health of the server follows its checks: all must be fine, and each change shows within about a second.
func TestHealthFollowsTheChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, h := newApp(t.Context()), health.NewServer()
		var postgres, kafka atomic.Bool
		check := func(ok *atomic.Bool) run.Check {
			return func(context.Context) error {
				if !ok.Load() {
					return errors.New("away")
				}
				return nil
			}
		}
		status := func() healthv1.HealthCheckResponse_ServingStatus {
			res, err := h.Check(t.Context(), &healthv1.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return res.GetStatus()
		}
		if status() != healthv1.HealthCheckResponse_SERVING {
			t.Fatal("the library's default has changed: Watch must still set it")
		}
		a.Watch(h, "", map[string]run.Check{"postgres": check(&postgres), "kafka": check(&kafka)})
		if status() != healthv1.HealthCheckResponse_NOT_SERVING {
			t.Error("serving before the first check")
		}
		for _, step := range []struct {
			postgres, kafka bool
			within          time.Duration
			want            healthv1.HealthCheckResponse_ServingStatus
		}{
			{false, false, time.Second, healthv1.HealthCheckResponse_NOT_SERVING},
			{true, false, time.Second, healthv1.HealthCheckResponse_NOT_SERVING},
			{true, true, 150 * time.Millisecond, healthv1.HealthCheckResponse_SERVING},
			{false, true, 1100 * time.Millisecond, healthv1.HealthCheckResponse_NOT_SERVING},
			{true, true, 150 * time.Millisecond, healthv1.HealthCheckResponse_SERVING},
		} {
			postgres.Store(step.postgres)
			kafka.Store(step.kafka)
			time.Sleep(step.within) // on the bubble's clock
			synctest.Wait()
			if got := status(); got != step.want {
				t.Errorf("postgres %v, kafka %v: %v, want %v", step.postgres, step.kafka, got, step.want)
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A check that hangs counts as failed.
func TestACheckThatHangsFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, h := newApp(t.Context()), health.NewServer()
		var hang atomic.Bool
		a.Watch(h, "", map[string]run.Check{"postgres": func(ctx context.Context) error {
			if hang.Load() {
				<-ctx.Done()
			}
			return ctx.Err()
		}})
		for _, step := range []struct {
			hang bool
			want healthv1.HealthCheckResponse_ServingStatus
		}{{false, healthv1.HealthCheckResponse_SERVING}, {true, healthv1.HealthCheckResponse_NOT_SERVING}} {
			hang.Store(step.hang)
			time.Sleep(5 * time.Second) // on the bubble's clock
			synctest.Wait()
			if res, err := h.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || res.GetStatus() != step.want {
				t.Errorf("hanging %v: %v, %v", step.hang, res.GetStatus(), err)
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A loop that stands still has the service not ready, and not alive if that lasts. One that rests between its turns is fine.
func TestALoopThatStandsStillIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t.Context())
		hang := make(chan struct{})
		a.Loop("sweep", func(ctx context.Context) error {
			return run.Every(ctx, 10*time.Minute, a.Log, "sweep", func(context.Context) error { <-hang; return nil })
		})
		for _, step := range []struct {
			wait         time.Duration
			ready, alive bool
		}{
			{30 * time.Second, true, true}, {9 * time.Minute, true, true}, // it waits for its first turn
			{2 * time.Minute, false, true},
			{5 * time.Minute, false, false},
		} {
			time.Sleep(step.wait) // on the bubble's clock
			ready, alive := a.Progress(t.Context()), a.Alive(t.Context())
			if (ready == nil) != step.ready || (alive == nil) != step.alive {
				t.Errorf("%s later: %v, %v", step.wait, ready, alive)
			}
		}
		close(hang)
		synctest.Wait()
		if err := a.Progress(t.Context()); err != nil {
			t.Errorf("it goes on: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A request under way when the app stops is answered; later ones are not.
func TestHTTPRequestsUnderWayAreAnswered(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a := newApp(ctx)
	reached, release := make(chan struct{}), make(chan struct{})
	addr, err := a.ServeHTTP("api", "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(reached)
		<-release
		_, _ = io.WriteString(w, "answered")
	}))
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		res, err := http.Get("http://" + addr.String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		got <- string(b)
	}()
	<-reached
	a.OnStop("top", func(context.Context) error { close(release); return nil })
	cancel()
	if err := a.Wait(); err != nil {
		t.Error(err)
	}
	if body := <-got; body != "answered" {
		t.Errorf("got %q", body)
	}
	if res, err := http.Get("http://" + addr.String()); err == nil {
		_ = res.Body.Close()
		t.Error("still serving")
	}
}

func TestAnAddressInUseIsAnError(t *testing.T) {
	a := newApp(t.Context())
	defer a.Close()
	addr, err := a.ServeHTTP("api", "127.0.0.1:0", http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ServeHTTP("metrics", addr.String(), http.NotFoundHandler()); err == nil || !strings.Contains(err.Error(), "serve metrics") {
		t.Errorf("got %v", err)
	}
	if err := a.ServeMetrics(run.Common{}); err != nil {
		t.Errorf("metrics that are off: %v", err)
	}
}
