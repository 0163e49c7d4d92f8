package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"example.com/billing/test/chaos/auditor"
)

// journal is what the load keeps of its requests: a line each, and counts.
type journal struct {
	mu    sync.Mutex
	file  *os.File
	lines *bufio.Writer
	err   error

	counts  map[auditor.Answer]int
	latency []time.Duration // of accepted requests, from the first attempt to the answer
	again   int             // attempts beyond the first
}

func newJournal(path string) (*journal, error) {
	f, err := os.Create(path) //nolint:gosec // in the run's own directory
	if err != nil {
		return nil, err
	}
	return &journal{file: f, lines: bufio.NewWriter(f), counts: map[auditor.Answer]int{}}, nil
}

// add writes a request that has been answered, or given up; took is how long that was.
func (j *journal) add(r auditor.Request, took time.Duration) {
	line, err := json.Marshal(r)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		_, err = j.lines.Write(append(line, '\n'))
	}
	j.err = errors.Join(j.err, err)
	j.counts[r.Answer]++
	j.again += r.Attempts - 1
	if r.Answer == auditor.Accepted {
		j.latency = append(j.latency, took)
	}
}

func (j *journal) count(a auditor.Answer) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.counts[a]
}

// close writes the rest and returns the first error of all.
func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := errors.Join(j.err, j.lines.Flush(), j.file.Close()); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// quantiles are latencies in the middle and at 99 of 100.
func (j *journal) quantiles() (p50, p99 time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.latency) == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(j.latency))
	return sorted[len(sorted)/2], sorted[len(sorted)*99/100]
}
