package drive

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// FreeAddr is an address on this machine that nobody listens on. It panics if there is none.
func FreeAddr() string {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Call sends a REST request, with a body unless that is nil, and returns the status and the object of the answer. What is no JSON
// object is an error.
func Call(ctx context.Context, client *http.Client, method, url string, body any) (int, map[string]any, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	var o map[string]any
	if err := json.NewDecoder(res.Body).Decode(&o); err != nil {
		return 0, nil, fmt.Errorf("%s %s: %d, no JSON: %w", method, url, res.StatusCode, err)
	}
	return res.StatusCode, o, nil
}
