package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"example.com/billing/test/failover/pgpair"
)

// replaceMax bounds the making of a standby and its promotion.
const replaceMax = time.Minute

// replace gives Postgres a synchronous standby, freezes Postgres for good, and puts the standby in its place. Connections to the frozen
// one stay open and never answer.
func (n *postgresNode) replace() error {
	ctx, cancel := context.WithTimeout(context.Background(), replaceMax)
	defer cancel()
	dir, err := os.MkdirTemp(n.dir, "standby-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // Postgres may run as another user, who must pass
		return err
	}
	pair := pgpair.Adopt(n.server(), n.dir, dir, n.front)
	if err := pair.AddStandby(ctx, pgpair.Sync); err != nil {
		return err
	}
	if err := pair.Primary.Freeze(); err != nil {
		return err
	}
	n.retired = pair.Primary
	if err := pair.Promote(ctx); err != nil {
		return err
	}
	pair.Repoint(pair.Standby)
	pair.Replication.Close()
	_, port, _ := strings.Cut(pair.Standby.Addr(), ":")
	n.mu.Lock()
	n.pg, n.dir = pair.Standby.Postgres(), filepath.Join(dir, "standby")
	n.mu.Unlock()
	n.port, err = strconv.Atoi(port)
	return err
}

// retire ends the server that was replaced: somebody has turned the frozen machine off.
func (n *postgresNode) retire() error {
	if n.retired == nil {
		return nil
	}
	err := n.retired.Close()
	n.retired = nil
	return err
}
