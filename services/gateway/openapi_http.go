package gateway

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

func text() *openapi3.Schema { return openapi3.NewStringSchema() }

// addComponents defines the headers, parameters and the problem document that operations refer to.
func addComponents(c *openapi3.Components) {
	header := func(description string) *openapi3.HeaderRef {
		return &openapi3.HeaderRef{Value: &openapi3.Header{Parameter: openapi3.Parameter{Description: description, Schema: text().NewRef()}}}
	}
	c.Parameters = openapi3.ParametersMap{
		"CorrelationID": {Value: openapi3.NewHeaderParameter("X-Correlation-ID").WithSchema(text().WithMinLength(1).WithMaxLength(128)).
			WithDescription("Goes with the request through every service and event, and comes back; given where absent or malformed.")},
		"Actor": {Value: openapi3.NewHeaderParameter("X-Actor").WithSchema(text().WithMinLength(1).WithMaxLength(128)).
			WithDescription("Who asks; kept in the events. anonymous where absent.")},
		"IdempotencyKey": {Value: openapi3.NewHeaderParameter("Idempotency-Key").WithSchema(text().WithMinLength(1).WithMaxLength(128)).
			WithDescription("In place of idempotencyKey in the body. The same key with the same content has the effect of once.")},
		"Wait": {Value: openapi3.NewQueryParameter("wait").WithSchema(text().WithPattern(`^[0-9.hmsun]+$`)).
			WithDescription("Wait this long at most, 0s to 30s, for the transaction to end; the answer is 202 while it has not.")},
	}
	c.Headers = openapi3.Headers{
		"CorrelationID":       header("The request's correlation id."),
		"Location":            header("Where the new resource is read."),
		"IdempotencyReplayed": header("true where the answer is the one given to this key before."),
		"NextPageToken":       header("pageToken of the next page; absent on the last."),
		"RetryAfter":          header("Seconds after which it is worth asking again; with 429 and 503."),
	}
	field := openapi3.NewObjectSchema().WithProperties(map[string]*openapi3.Schema{"field": text(), "rule": text(), "value": text()})
	field.Required = []string{"field", "rule", "value"}
	status := openapi3.NewInt32Schema()
	problem := openapi3.NewObjectSchema().WithProperties(map[string]*openapi3.Schema{
		"type": text(), "title": text(), "status": status, "detail": text(), "reason": text(), "correlationId": text(),
		"errors": openapi3.NewArraySchema().WithItems(field),
	})
	problem.Description = "RFC 9457. reason is one of the closed set of docs/errors.md; errors says what is wrong where in a malformed request."
	problem.Required = []string{"correlationId", "detail", "reason", "status", "title", "type"}
	c.Schemas["Problem"] = problem.NewRef()
	c.Responses = openapi3.ResponseBodies{"Problem": {Value: &openapi3.Response{
		Description: new("The request was not done, or it is not known whether it was."),
		Headers: openapi3.Headers{
			"X-Correlation-ID": {Ref: "#/components/headers/CorrelationID", Value: c.Headers["CorrelationID"].Value},
			"Retry-After":      {Ref: "#/components/headers/RetryAfter", Value: c.Headers["RetryAfter"].Value},
		},
		Content: openapi3.Content{"application/problem+json": {
			Schema: &openapi3.SchemaRef{Ref: "#/components/schemas/Problem", Value: problem},
		}},
	}}}
}

// describe adds to one operation the parameters, headers, statuses and problems that HTTP brings.
func describe(c *openapi3.Components, path, method string, op *openapi3.Operation) {
	transaction := method == http.MethodPost && strings.HasPrefix(path, "/api/v1/transactions/")
	parameters, problems := []string{"CorrelationID", "Actor"}, []int{400, 429, 500, 503, 504}
	if strings.Contains(path, "{") {
		problems = append(problems, 404)
	}
	if op.RequestBody != nil {
		delete(op.RequestBody.Value.Extensions, "x-originalParamName") // the conversion's own
		parameters = append(parameters, "IdempotencyKey")
		problems = append(problems, 404, 409, 413, 415, 422)
	}
	if transaction {
		parameters = append(parameters, "Wait")
	}
	for _, name := range parameters {
		op.Parameters = append(op.Parameters, &openapi3.ParameterRef{Ref: "#/components/parameters/" + name, Value: c.Parameters[name].Value})
	}
	done := op.Responses.Status(http.StatusOK).Value
	done.Headers = headers(c, "X-Correlation-ID", "CorrelationID")
	switch {
	case transaction:
		done.Description = new("The transaction has ended.")
		pending := *done
		pending.Description = new("The transaction was accepted and has not ended yet.")
		done.Headers = headers(c, "X-Correlation-ID", "CorrelationID", "Location", "Location", "Idempotency-Replayed", "IdempotencyReplayed")
		pending.Headers = done.Headers
		op.Responses.Set("202", &openapi3.ResponseRef{Value: &pending})
	case method == http.MethodPost:
		created := *done
		created.Description = new("The account was opened.")
		created.Headers = headers(c, "X-Correlation-ID", "CorrelationID", "Location", "Location")
		op.Responses.Set("201", &openapi3.ResponseRef{Value: &created})
		done.Description = new("The account that this idempotency key opened before.")
		done.Headers = headers(c, "X-Correlation-ID", "CorrelationID", "Location", "Location", "Idempotency-Replayed", "IdempotencyReplayed")
	case op.RequestBody != nil:
		done.Headers = headers(c, "X-Correlation-ID", "CorrelationID", "Idempotency-Replayed", "IdempotencyReplayed")
	case path == "/api/v1/sagas":
		done.Headers = headers(c, "X-Correlation-ID", "CorrelationID", "X-Next-Page-Token", "NextPageToken")
	}
	problem := &openapi3.ResponseRef{Ref: "#/components/responses/Problem", Value: c.Responses["Problem"].Value}
	for _, status := range problems {
		op.Responses.Set(strconv.Itoa(status), problem)
	}
	op.Responses.Set("default", problem)
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
	for _, part := range []any{document.Paths, document.Components.Responses} {
		if err := visit(part); err != nil {
			return err
		}
	}
	for name := range document.Components.Schemas {
		if !keep[name] {
			delete(document.Components.Schemas, name)
		}
	}
	return nil
}
