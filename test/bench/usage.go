package main

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// clockTick is the unit of times in /proc: USER_HZ, which is 100 on all of Linux.
const clockTick = 10 * time.Millisecond

// usage is what was used up so far.
type usage struct {
	at    time.Time
	cpu   map[string]time.Duration // by process
	rows  int64                    // inserted, updated or deleted
	wal   int64                    // bytes
	trips int64                    // SQL round trips of the services
}

// measure reads what was used up so far.
func (c *cluster) measure(ctx context.Context) (usage, error) {
	u := usage{at: time.Now(), cpu: map[string]time.Duration{}}
	for _, n := range c.nodes {
		u.cpu[strings.TrimRight(n.Name, "-0123456789")] += cpuOf(n.PID())
		trips, err := c.trips(ctx, n)
		if err != nil {
			return u, err
		}
		u.trips += trips
	}
	switch {
	case c.apache != nil:
		u.cpu["kafka"] = cpuOf(c.apache.PID())
	case c.embedded != nil:
		u.cpu["kafka"] = cpuOf(c.embedded.PID())
	}
	u.cpu["postgres"] = cpuOf(c.postgres.PID()) + cpuOfChildren(c.postgres.PID())
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return u, err
	}
	u.cpu["load"] = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return u, c.written(ctx, &u)
}

// written reads from Postgres what was written.
func (c *cluster) written(ctx context.Context, u *usage) error {
	conn, err := pgx.Connect(ctx, c.postgres.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
		(SELECT sum(tup_inserted + tup_updated + tup_deleted)::bigint FROM pg_stat_database WHERE datname = ANY($1))`,
		databases).Scan(&u.wal, &u.rows)
}

// trips reads a service's counter of SQL round trips.
func (c *cluster) trips(ctx context.Context, n *node) (int64, error) {
	v, err := n.metric(ctx, "postgres_round_trips_total")
	return int64(v), err
}

// metric reads one of a service's metrics without labels; 0 where it has none of the name.
func (n *node) metric(ctx context.Context, name string) (float64, error) {
	body, err := get(ctx, "http://"+n.metrics+"/metrics")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), name+" "); found {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, lines.Err()
}

// cpuOf is the time that a process and its children that have ended have used.
func cpuOf(pid int) time.Duration {
	f := stat(pid)
	if f == nil {
		return 0
	}
	return f.own + f.ended
}

// cpuOfChildren is the time that a process's children have used.
func cpuOfChildren(pid int) time.Duration {
	all, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	var sum time.Duration
	for _, dir := range all {
		child, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if f := stat(child); f != nil && f.parent == pid {
			sum += f.own
		}
	}
	return sum
}

type procStat struct {
	parent     int
	own, ended time.Duration
}

// stat reads /proc/PID/stat; nil = there is no such process.
func stat(pid int) *procStat {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(b), ") ") // behind the name
	f := strings.Fields(rest)
	if len(f) < 15 {
		return nil
	}
	number := func(i int) int { n, _ := strconv.Atoi(f[i]); return n }
	return &procStat{
		parent: number(1), own: time.Duration(number(11)+number(12)) * clockTick, ended: time.Duration(number(13)+number(14)) * clockTick,
	}
}

// memory is the resident memory of our services and of the load, in bytes.
func (c *cluster) memory() map[string]int64 {
	m := map[string]int64{"load": resident(os.Getpid())}
	for _, n := range c.nodes {
		m[n.Name] += resident(n.PID())
	}
	return m
}

func resident(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// since is what was used up between two looks.
func (u usage) since(before usage) usage {
	d := usage{cpu: maps.Clone(u.cpu), rows: u.rows - before.rows, wal: u.wal - before.wal, trips: u.trips - before.trips}
	for name := range d.cpu {
		d.cpu[name] -= before.cpu[name]
	}
	return d
}
