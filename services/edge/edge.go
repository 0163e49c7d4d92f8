// Package edge is what the edges of the services share: the catalogue of error reasons, the outbox API, where commands come
// from, and the parts between a service's store and Kafka.
package edge

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/billing/pkg/cqrs"
	"example.com/billing/pkg/money"
	"example.com/billing/pkg/rpc"
	errorv1 "example.com/billing/proto/gen/go/billing/error/v1"
)

// Domain is the domain of the reasons, in google.rpc.ErrorInfo.
const Domain = "billing"

// TopicPrefix begins every topic and consumer group, unless the settings say another one.
const TopicPrefix = "billing"

// OwnActor is the actor of commands that nobody asked for: the system's own.
const OwnActor = "billing"

// Limits of what requests may carry.
const (
	KeyMax       = 128      // characters of an idempotency key
	ReferenceMax = 256      // characters of a reference
	MetadataMax  = 16 << 10 // bytes of metadata as JSON
	PageSizeMax  = 200
	PageSize     = 50
	BatchMax     = 1000 // items in one internal call
)

// Catalog is the closed set of error reasons.
func Catalog() (*rpc.Catalog, error) {
	return rpc.NewCatalog(Domain, errorv1.Reason(0).Descriptor(), errorv1.E_Mapping)
}

// Origin is where a command comes from, by the request's caller.
func Origin(ctx context.Context) cqrs.Origin {
	c := rpc.CallerFrom(ctx)
	return cqrs.Origin{CorrelationID: c.CorrelationID, TenantID: c.TenantID, Actor: c.Actor}
}

// IdempotencyKey is the request's key: from its body or from the metadata. Both given and unequal, too long, or missing
// while required, is noted in v.
func IdempotencyKey(ctx context.Context, v *rpc.Fields, inBody string, required bool) string {
	header := rpc.CallerFrom(ctx).IdempotencyKey
	key := inBody
	switch {
	case key == "":
		key = header
	case header != "" && header != key:
		v.Add("idempotencyKey", "equal_to_header:Idempotency-Key", key)
	}
	if required {
		v.Required("idempotencyKey", key)
	}
	v.MaxLen("idempotencyKey", key, KeyMax)
	return key
}

// DeriveID makes a stream's id from a tenant and an idempotency key, by a keyed hash: the same key finds the same stream,
// and nobody without the secret can tell the id.
func DeriveID(secret []byte, kind, tenant, key string) string {
	h := hmac.New(sha256.New, secret)
	fmt.Fprintf(h, "%s\x00%s\x00%s", kind, tenant, key)
	id := uuid.UUID(h.Sum(nil)[:16])
	id[6] = id[6]&0x0f | 0x80 // version 8: made by us
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// Metadata turns what a caller sent into a plain map, and back.
func Metadata(s *structpb.Struct) map[string]any {
	if s == nil {
		return nil
	}
	return s.AsMap()
}

// Struct turns a plain map into what a caller gets.
func Struct(m map[string]any) *structpb.Struct {
	if m == nil {
		return nil
	}
	s, err := structpb.NewStruct(m)
	if err != nil {
		return nil // not reachable: it came from JSON
	}
	return s
}

// Timestamp is a time in the API; nil = there is none.
func Timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Count fits a count into the API's int32, which JSON shows as a number. None is below 0.
func Count(n int64) int32 { return int32(max(0, min(n, math.MaxInt32))) }

// Version fits a stream's version into the API's int32, which JSON shows as a number. A greater one is an error: a caller
// who is given another version than the stream's would compare and go on at the wrong place.
func Version(n int64) (int32, error) {
	if n < 0 || n > math.MaxInt32 {
		return 0, fmt.Errorf("version %d does not fit the API's 32 bits", n)
	}
	return int32(n), nil
}

// OneOf reads a value of a closed set, or nothing.
func OneOf[T ~string](v *rpc.Fields, field, value string, allowed []T) string {
	if value == "" {
		return ""
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	v.OneOf(field, value, names...)
	return value
}

// CurrencySettings add to the catalogue of currencies. The account and the transaction service need the same.
type CurrencySettings struct {
	Currencies []string `name:"currencies" env:"BILLING_CURRENCIES" help:"Further currencies, CODE:SCALE:KIND (fiat, crypto or points), comma separated. The same for the account and the transaction service; never changed for a currency in use."`
}

// Catalogue is the default catalogue and the further currencies.
func (s CurrencySettings) Catalogue() (money.Catalogue, error) {
	return money.Default().With(s.Currencies...)
}

// Optional is text that is absent where it is empty.
func Optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
