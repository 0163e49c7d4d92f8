package rpc

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Reasons that this package itself answers with; every catalog has them.
const (
	ReasonInvalidArgument  = "INVALID_ARGUMENT"
	ReasonUnavailable      = "UNAVAILABLE"
	ReasonDeadlineExceeded = "DEADLINE_EXCEEDED"
	ReasonCancelled        = "CANCELLED"
	ReasonOverloaded       = "OVERLOADED"
	ReasonInternal         = "INTERNAL"
)

// Reason is one entry of the closed set of reasons that an error can have.
type Reason struct {
	Name  string     // on the wire, such as "ACCOUNT_NOT_FOUND"
	Code  codes.Code // how it leaves over gRPC
	HTTP  int        // how it leaves over REST
	Title string     // one sentence for people
}

// Catalog is the closed set of reasons of one domain. It does not change once built and is safe for concurrent use.
type Catalog struct {
	domain  string
	ordered []Reason
	byName  map[string]Reason
}

// NewCatalog reads the reasons from an enum. Each value but the zero one carries the option mapping, a message with the
// fields code (a canonical gRPC code's name), http and title; a reason's name is the value's name without the enum's prefix.
// It fails where an option is missing or wrong, and where one of this package's own reasons is not in the enum.
func NewCatalog(domain string, enum protoreflect.EnumDescriptor, mapping protoreflect.ExtensionType) (*Catalog, error) {
	c := &Catalog{domain: domain, byName: map[string]Reason{}}
	prefix := enumPrefix(enum)
	values := enum.Values()
	for i := range values.Len() {
		value := values.Get(i)
		if value.Number() == 0 {
			continue
		}
		reason, err := reasonOf(value, prefix, mapping)
		if err != nil {
			return nil, fmt.Errorf("catalog %s: %s: %w", domain, value.Name(), err)
		}
		c.ordered = append(c.ordered, reason)
		c.byName[reason.Name] = reason
	}
	for _, name := range []string{ReasonInvalidArgument, ReasonUnavailable, ReasonDeadlineExceeded, ReasonCancelled, ReasonOverloaded, ReasonInternal} {
		if _, ok := c.byName[name]; !ok {
			return nil, fmt.Errorf("catalog %s: no reason %s", domain, name)
		}
	}
	return c, nil
}

func reasonOf(value protoreflect.EnumValueDescriptor, prefix string, mapping protoreflect.ExtensionType) (Reason, error) {
	name, ok := strings.CutPrefix(string(value.Name()), prefix)
	if !ok {
		return Reason{}, fmt.Errorf("name lacks the prefix %s", prefix)
	}
	options := value.Options()
	if options == nil || !proto.HasExtension(options, mapping) {
		return Reason{}, fmt.Errorf("option %s is missing", mapping.TypeDescriptor().FullName())
	}
	message, ok := proto.GetExtension(options, mapping).(proto.Message)
	if !ok {
		return Reason{}, errors.New("the option is not a message")
	}
	reflected := message.ProtoReflect()
	fields := reflected.Descriptor().Fields()
	code, http, title := fields.ByName("code"), fields.ByName("http"), fields.ByName("title")
	if code == nil || code.Kind() != protoreflect.StringKind ||
		http == nil || http.Kind() != protoreflect.Int32Kind ||
		title == nil || title.Kind() != protoreflect.StringKind {
		return Reason{}, errors.New("the option needs string code, int32 http and string title")
	}
	reason := Reason{Name: name, HTTP: int(reflected.Get(http).Int()), Title: reflected.Get(title).String()}
	if err := reason.Code.UnmarshalJSON([]byte(strconv.Quote(reflected.Get(code).String()))); err != nil {
		return Reason{}, err
	}
	if reason.Code == codes.OK || reason.HTTP < 400 || reason.HTTP > 599 || reason.Title == "" {
		return Reason{}, fmt.Errorf("code %s, http %d, title %q do not describe an error", reason.Code, reason.HTTP, reason.Title)
	}
	return reason, nil
}

// enumPrefix is REASON_ for an enum called Reason, ERROR_REASON_ for ErrorReason.
func enumPrefix(enum protoreflect.EnumDescriptor) string {
	var b strings.Builder
	for i, r := range string(enum.Name()) {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String()) + "_"
}

// Domain is the domain of google.rpc.ErrorInfo, such as "billing".
func (c *Catalog) Domain() string { return c.domain }

// Lookup finds a reason by name.
func (c *Catalog) Lookup(name string) (Reason, bool) {
	reason, ok := c.byName[name]
	return reason, ok
}

// All lists the reasons in the enum's order.
func (c *Catalog) All() []Reason { return append([]Reason(nil), c.ordered...) }
