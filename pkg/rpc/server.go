package rpc

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
)

// DefaultMessageBytesMax is the largest message a server or client takes unless told otherwise: room for a batch of 1,000.
const DefaultMessageBytesMax = 32 << 20

// ServerConfig is what a server needs.
type ServerConfig struct {
	Log          *slog.Logger          // required
	Catalog      *Catalog              // required
	Metrics      prometheus.Registerer // nil = nothing is measured
	MaxRecvBytes int                   // largest request; 0 = [DefaultMessageBytesMax]
	Options      []grpc.ServerOption   // more, after the package's own
}

// Server is a gRPC server with the interceptors of this package, reflection and grpc.health.v1 on it.
type Server struct {
	*grpc.Server
	// Health answers SERVING for the whole server from the start. Say Health.Shutdown() before GracefulStop, so that callers
	// look elsewhere.
	Health *health.Server
}

// streamWorkers is how many goroutines wait for calls; more calls at the same time get goroutines of their own.
const streamWorkers = 64

// NewServer makes a server; services are registered on it like on a *grpc.Server.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Log == nil || cfg.Catalog == nil {
		return nil, errors.New("new server: Log and Catalog are required")
	}
	around, err := newInterceptor(cfg)
	if err != nil {
		return nil, fmt.Errorf("new server: %w", err)
	}
	recvMax := cfg.MaxRecvBytes
	if recvMax == 0 {
		recvMax = DefaultMessageBytesMax
	}
	options := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(around.unary),
		grpc.ChainStreamInterceptor(around.stream),
		grpc.MaxRecvMsgSize(recvMax),
		// Clients of this package ping every 30 s. A later version of them may ping every 10 s, which is the most that gRPC allows.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// An old connection is closed gently so that its client resolves again and finds new instances.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, Timeout: 20 * time.Second,
			MaxConnectionAge: 10 * time.Minute, MaxConnectionAgeGrace: time.Minute,
		}),
	}
	options = append(options, grpc.NumStreamWorkers(streamWorkers)) // their stacks have grown already
	server := &Server{Server: grpc.NewServer(append(options, cfg.Options...)...), Health: health.NewServer()}
	healthv1.RegisterHealthServer(server, server.Health)
	reflection.Register(server)
	return server, nil
}
