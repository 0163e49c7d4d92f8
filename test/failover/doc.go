// Package failover tests the whole system, two of each service as processes, against failures of what is around it: a database that
// fails over with and without a loss, one that freezes for good, a wrong clock, a full disk, a snapshot that stays open.
package failover
