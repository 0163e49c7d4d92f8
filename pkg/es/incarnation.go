package es

import "context"

// Incarnated is a Store whose history can be replaced by another one: by a fail-over to a standby that lagged, or by a restore. An
// incarnation is one history. What a process remembers of the log, such as a version or a position, means nothing in another one.
type Incarnated interface {
	// Incarnation is the number of the newest incarnation that the process knows. Appends under an older one are refused with an
	// *UnavailableError.
	Incarnation(ctx context.Context) (int64, error)
}

type incarnationKey struct{}

// WithIncarnation says which incarnation the versions come from that an append expects.
func WithIncarnation(ctx context.Context, number int64) context.Context {
	return context.WithValue(ctx, incarnationKey{}, number)
}

// IncarnationFrom is what WithIncarnation said; 0 = nothing.
func IncarnationFrom(ctx context.Context) int64 {
	n, _ := ctx.Value(incarnationKey{}).(int64)
	return n
}
