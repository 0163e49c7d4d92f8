package gateway

import (
	"fmt"
	"strings"

	"example.com/billing/pkg/rpc"
)

// ErrorTable is the documentation of all reasons, in Markdown: docs/errors.md is this text.
func ErrorTable(catalog *rpc.Catalog) string {
	var b strings.Builder
	b.WriteString(`# Errors

Every error has one reason of this closed set. Over gRPC it is the ` + "`reason`" + ` of google.rpc.ErrorInfo (domain ` + "`" + catalog.Domain() + "`" + `), with
google.rpc.BadRequest where the request is malformed and google.rpc.RetryInfo where it is worth asking again. Over REST it
is the ` + "`reason`" + ` of an RFC 9457 document (` + "`application/problem+json`" + `):

` + "```json" + `
{
  "type": "urn:billing:problem:invalid-argument",
  "title": "The request is malformed.",
  "status": 400,
  "detail": "Wrong in the request: amount (required).",
  "reason": "INVALID_ARGUMENT",
  "correlationId": "2b7c3a52-5f0e-4b0e-9d0e-2f4f7f1c9a11",
  "errors": [{"field": "amount", "rule": "required", "value": ""}]
}
` + "```" + `

The reasons are defined in ` + "`proto/billing/error/v1/reason.proto`" + `; this page is generated from there and checked by a test of
` + "`services/gateway`" + ` (` + "`go test -run ErrorTable -update`" + ` writes it).

| reason | HTTP | gRPC | meaning |
|---|---|---|---|
`)
	for _, reason := range catalog.All() {
		fmt.Fprintf(&b, "| `%s` | %d | %s | %s |\n", reason.Name, reason.HTTP, rpc.CodeName(reason.Code), reason.Title)
	}
	return b.String()
}
