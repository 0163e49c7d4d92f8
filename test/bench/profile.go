package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
)

// profile writes a CPU profile of each service, for as long as a scenario lasts, if that was asked for.
func (s settings) profile(ctx context.Context, c *cluster, scenario string) error {
	if !s.profiles {
		return nil
	}
	if err := os.MkdirAll(s.out, 0o755); err != nil { //nolint:gosec // to be read
		return err
	}
	done := make(chan error, len(c.nodes))
	for _, n := range c.nodes {
		go func() {
			done <- fetch(ctx, "http://"+n.metrics+"/debug/pprof/profile?seconds="+strconv.Itoa(max(int(s.duration.Seconds())-1, 1)),
				filepath.Join(s.out, scenario+"-"+n.Name+".pprof"))
		}()
	}
	var errs []error
	for range c.nodes {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

// get asks for a page; any status but 200 is an error.
func get(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("GET %s: %s", url, res.Status), res.Body.Close())
	}
	return res.Body, nil
}

func fetch(ctx context.Context, url, into string) error {
	body, err := get(ctx, url)
	if err != nil {
		return err
	}
	defer body.Close()
	f, err := os.Create(into) //nolint:gosec // the caller says where
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}
