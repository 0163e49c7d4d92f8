// Package rpc is what every gRPC server and client of a system shares: one closed set of error reasons and its way over the
// wire, the caller that travels with each request, the interceptors that see to both, and the helpers for validating
// requests by hand.
//
// A handler returns an *[Error], a refusal of the domain, or any other error; the server turns it into a gRPC status with
// google.rpc.ErrorInfo, BadRequest and RetryInfo. [ErrorOf] turns it back on the client's side.
package rpc
