package gateway

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"example.com/billing/pkg/rpc"

	"github.com/getkin/kin-openapi/openapi3"
)

func text() *openapi3.Schema { return openapi3.NewStringSchema() }

// addComponents defines the headers, parameters and the problem document that operations refer to.
func addComponents(c *openapi3.Components, catalog *rpc.Catalog) {
	header := func(description string) *openapi3.HeaderRef {
		return &openapi3.HeaderRef{Value: &openapi3.Header{Parameter: openapi3.Parameter{Description: description, Schema: text().NewRef()}}}
	}
	c.Parameters = openapi3.ParametersMap{
		"CorrelationID": {Value: openapi3.NewHeaderParameter("X-Correlation-ID").WithSchema(text()).
			WithDescription("Goes with the request through every service and event, and comes back: 1 to 128 visible ASCII characters; given where absent or malformed.")},
		"Actor": {Value: openapi3.NewHeaderParameter("X-Actor").WithSchema(text()).
			WithDescription("Who asks; kept in the events: 1 to 128 printable ASCII characters. anonymous where absent or malformed.")},
		"IdempotencyKey": {Value: openapi3.NewHeaderParameter(keyHeader).WithSchema(text().WithMinLength(1).WithMaxLength(idempotencyKeyMax).WithPattern(`^[ -~]+$`)).
			WithDescription("In place of idempotencyKey in the body. The same key with the same content has the effect of once.")},
		"Wait": {Value: openapi3.NewQueryParameter("wait").WithSchema(text().WithPattern(waitPattern)).
			WithDescription("Wait this long at most, 0s to 30s, for the end; the answer is 202 where it has not come.")},
		"LastEventID": {Value: openapi3.NewHeaderParameter(lastEventID).WithSchema(text().WithPattern(`^(0|[1-9][0-9]{0,9})$`)).
			WithDescription("The id of the last event received. Wins over after; browsers send it when they come back.")},
	}
	c.Headers = openapi3.Headers{
		"CorrelationID":       header("The request's correlation id."),
		"Location":            header("Where the new resource is read."),
		"IdempotencyReplayed": header("true where this was asked for before, with this key or, without one, of this resource: nothing is done again."),
		"ConsistencyToken":    header("What this answer shows; a list asked with it as consistencyToken shows it too."),
		"NextPageToken":       header("pageToken of the next page; absent on the last."),
		"RetryAfter":          header("Seconds after which it is worth asking again."),
	}
	field := openapi3.NewObjectSchema().WithProperties(map[string]*openapi3.Schema{"field": text(), "rule": text(), "value": text()})
	field.Required = []string{"field", "rule", "value"}
	reason := text()
	for _, r := range catalog.All() {
		reason.Enum = append(reason.Enum, r.Name)
	}
	problem := openapi3.NewObjectSchema().WithProperties(map[string]*openapi3.Schema{
		"type": text().WithPattern(`^urn:billing:problem:[a-z-]+$`), "title": text(), "status": openapi3.NewInt32Schema(), "detail": text(),
		"reason": reason, "correlationId": text(), "errors": openapi3.NewArraySchema().WithItems(field),
	})
	problem.Description = "RFC 9457. reason is one of the closed set of docs/errors.md; errors says what is wrong where in a malformed request."
	problem.Required = []string{"correlationId", "detail", "reason", "status", "title", "type"}
	c.Schemas["Problem"] = problem.NewRef()
}

// describer adds what HTTP brings to the operations.
type describer struct {
	components *openapi3.Components
	catalog    *rpc.Catalog
	examples   map[string]any // by schema
}

// describe adds to one operation its parameters, headers, statuses, problems and examples.
func (d *describer) describe(op *openapi3.Operation) error {
	known, ok := operations[op.OperationID]
	if !ok {
		return fmt.Errorf("operation %s has no facts", op.OperationID)
	}
	for _, p := range op.Parameters {
		narrow(op.OperationID, p.Value.Name, p.Value.Schema)
	}
	for name, takes := range map[string]bool{
		"CorrelationID": true, "Actor": true, "IdempotencyKey": known.keyed, "Wait": known.waits, "LastEventID": known.answer == events,
	} {
		if takes {
			op.Parameters = append(op.Parameters, &openapi3.ParameterRef{Ref: "#/components/parameters/" + name, Value: d.components.Parameters[name].Value})
		}
	}
	slices.SortStableFunc(op.Parameters, func(a, b *openapi3.ParameterRef) int { return cmp.Compare(a.Ref, b.Ref) })
	reasons := also(anywhere, known.reasons...)
	if op.RequestBody != nil {
		body := op.RequestBody.Value
		delete(body.Extensions, "x-originalParamName") // the conversion's own
		body.Required = !slices.Contains(mayBeEmpty, op.OperationID)
		if err := d.exemplify(body.Content); err != nil {
			return err
		}
		reasons = also(reasons, withBody...)
	}
	if err := d.succeed(op, known); err != nil {
		return err
	}
	delete(op.Responses.Map(), "default")
	return d.fail(op, reasons)
}

// succeed describes the answers of a success.
func (d *describer) succeed(op *openapi3.Operation, known facts) error {
	done := op.Responses.Status(http.StatusOK).Value
	names := []string{"X-Correlation-ID", "CorrelationID"}
	if known.answer == transaction || known.answer == hold || known.answer == createdOr {
		names = append(names, "Location", "Location")
	}
	if known.keyed || known.answer == release {
		names = append(names, "Idempotency-Replayed", "IdempotencyReplayed")
	}
	if known.token {
		names = append(names, "X-Consistency-Token", "ConsistencyToken")
	}
	if op.OperationID == "SagaService_ListSagas" {
		names = append(names, "X-Next-Page-Token", "NextPageToken")
	}
	done.Headers = headers(d.components, names...)
	words := map[answerKind][2]string{
		transaction: {"The transaction has ended.", "The transaction was accepted and has not ended yet."},
		hold:        {"The hold was placed, or refused.", "The hold was accepted and has not been placed yet."},
		release:     {"Nothing is held any more.", "What is left of the hold is being given back."},
		background:  {"It has ended.", "It is under way; a GET on the same path shows how far it is."},
		createdOr:   {"The account that this idempotency key opened before.", "The account was opened."},
		plain200:    {"The answer."},
	}[known.answer]
	if known.answer == events {
		d.stream(op, done)
		return nil
	}
	if err := d.exemplify(done.Content); err != nil {
		return err
	}
	done.Description = new(words[0])
	if words[1] == "" {
		return nil
	}
	other := *done
	other.Description = new(words[1])
	status := "202"
	if known.answer == createdOr {
		status = "201"
	}
	op.Responses.Set(status, &openapi3.ResponseRef{Value: &other})
	return nil
}

// stream describes an answer of server-sent events.
func (d *describer) stream(op *openapi3.Operation, done *openapi3.Response) {
	schema, id := "RecordedEvent", "the event's version"
	if op.OperationID == "SagaService_WatchSaga" {
		schema, id = "SagaEntry", "the entry's id"
		op.Responses.Set("204", &openapi3.ResponseRef{Value: &openapi3.Response{
			Description: new("The saga has ended and there is nothing behind that id."), Headers: done.Headers,
		}})
	}
	data, _ := json.Marshal(d.examples[schema]) // it came from JSON
	done.Description = new("Server-sent events, as they happen, which the schema describes one of: id is " + id + ", event its type, data a " + schema +
		" as JSON on one line. A comment comes every 15 seconds. An answer that breaks off goes on with the Last-Event-ID header.")
	example := map[string]any{"id": "2", "event": "step_completed", "data": string(data)}
	if schema == "RecordedEvent" {
		example["id"], example["event"] = "3", "BalanceChanged"
	}
	event := openapi3.NewObjectSchema().WithProperties(map[string]*openapi3.Schema{
		"id": text().WithPattern("^[1-9][0-9]*$"), "event": text(), "data": text(),
	})
	event.Description = "One event; data is a " + schema + "."
	event.Required = []string{"data", "event", "id"}
	media := openapi3.NewMediaType().WithSchema(event).WithExample("one event", example)
	media.Extensions = map[string]any{"x-data-schema": map[string]any{"$ref": "#/components/schemas/" + schema}}
	done.Content = openapi3.Content{"text/event-stream": media}
}

// exemplify gives each kind of content its schema's example.
func (d *describer) exemplify(content openapi3.Content) error {
	for _, media := range content {
		name := media.Schema.Ref
		if media.Schema.Value != nil && media.Schema.Value.Items != nil {
			name = media.Schema.Value.Items.Ref + "[]"
		}
		name = strings.TrimPrefix(name, "#/components/schemas/")
		example, ok := d.examples[name]
		if !ok {
			return fmt.Errorf("no example of %s", name)
		}
		media.Example = example
	}
	return nil
}

// fail describes the problems that the reasons come as, by their HTTP statuses.
func (d *describer) fail(op *openapi3.Operation, reasons []string) error {
	for _, name := range reasons {
		reason, ok := d.catalog.Lookup(name)
		if !ok {
			return fmt.Errorf("the catalog has no %s", name)
		}
		key := strconv.Itoa(reason.HTTP)
		problem := op.Responses.Value(key)
		if problem == nil {
			names := []string{"X-Correlation-ID", "CorrelationID"}
			if retryable(reason.HTTP) {
				names = append(names, "Retry-After", "RetryAfter")
			}
			problem = &openapi3.ResponseRef{Value: &openapi3.Response{
				Description: new(""), Headers: headers(d.components, names...),
				Content: openapi3.Content{"application/problem+json": {
					Schema: &openapi3.SchemaRef{Ref: "#/components/schemas/Problem", Value: d.components.Schemas["Problem"].Value}, Examples: openapi3.Examples{},
				}},
			}}
			op.Responses.Set(key, problem)
		}
		problem.Value.Description = new(strings.TrimPrefix(*problem.Value.Description+" "+name+": "+reason.Title, " "))
		example := Problem{
			Type: problemType(name), Title: reason.Title, Status: reason.HTTP, Detail: reason.Title, Reason: name, CorrelationID: "2b7c3a52-5f0e-4b0e-9d0e-2f4f7f1c9a11",
		}
		if name == rpc.ReasonInvalidArgument {
			example.Detail, example.Errors = "Wrong in the request: amount (required).", []FieldError{{Field: "amount", Rule: "required"}}
		}
		problem.Value.Content["application/problem+json"].Examples[name] = &openapi3.ExampleRef{Value: openapi3.NewExample(example.plain())}
	}
	return nil
}

// headers takes pairs of a header's name and its component's.
func headers(c *openapi3.Components, pairs ...string) openapi3.Headers {
	all := openapi3.Headers{}
	for i := 0; i+1 < len(pairs); i += 2 {
		all[pairs[i]] = &openapi3.HeaderRef{Ref: "#/components/headers/" + pairs[i+1], Value: c.Headers[pairs[i+1]].Value}
	}
	return all
}

var schemaRef = regexp.MustCompile(`"#/components/schemas/([^"]+)"`)

// prune drops the tags and schemas that no operation leads to: the internal services and the wrappers of responses.
func prune(document *openapi3.T) error {
	tags, keep := map[string]bool{}, map[string]bool{}
	for _, item := range document.Paths.Map() {
		for _, op := range item.Operations() {
			for _, tag := range op.Tags {
				tags[tag] = true
			}
		}
	}
	document.Tags = slices.DeleteFunc(document.Tags, func(t *openapi3.Tag) bool { return !tags[t.Name] })
	var visit func(part any) error
	visit = func(part any) error {
		raw, err := json.Marshal(part)
		if err != nil {
			return err
		}
		for _, match := range schemaRef.FindAllStringSubmatch(string(raw), -1) {
			name := match[1]
			if keep[name] || document.Components.Schemas[name] == nil {
				continue
			}
			keep[name] = true
			if err := visit(document.Components.Schemas[name].Value); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit(document.Paths); err != nil {
		return err
	}
	for name := range document.Components.Schemas {
		if !keep[name] {
			delete(document.Components.Schemas, name)
		}
	}
	return nil
}
