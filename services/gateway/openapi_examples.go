package gateway

import (
	_ "embed"
	"encoding/json"
	"fmt"
)

// The examples of requests and answers, by schema; "[]" behind the name is a list of it. The document's test checks each
// against its schema.
//
//go:embed openapi/examples.json
var examples []byte

func readExamples() (map[string]any, error) {
	var all map[string]any
	if err := json.Unmarshal(examples, &all); err != nil {
		return nil, fmt.Errorf("examples: %w", err)
	}
	return all, nil
}
