package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

const readyTimeout = 2 * time.Second

// readiness answers /readyz: 200 only while every service behind the gateway says SERVING.
type readiness struct {
	services map[string]grpc.ClientConnInterface
	stopping <-chan struct{} // nil = never
}

type readyAnswer struct {
	Status   string            `json:"status"`             // ok, unavailable or draining
	Services map[string]string `json:"services,omitempty"` // grpc.health.v1's words; UNREACHABLE where there was no answer
}

// ServeHTTP asks all services at once.
func (p *readiness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := readyAnswer{Status: "ok"}
	select {
	case <-p.stopping:
		answer.Status = "draining"
	default:
		answer.Services = p.ask(r.Context())
		for _, said := range answer.Services {
			if said != healthv1.HealthCheckResponse_SERVING.String() {
				answer.Status = "unavailable"
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if answer.Status != "ok" {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (p *readiness) ask(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	said := make(map[string]string, len(p.services))
	var mu sync.Mutex
	var all sync.WaitGroup
	for name, conn := range p.services {
		all.Go(func() {
			state := "UNREACHABLE"
			answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
			if err == nil {
				state = answer.GetStatus().String()
			}
			mu.Lock()
			defer mu.Unlock()
			said[name] = state
		})
	}
	all.Wait()
	return said
}
