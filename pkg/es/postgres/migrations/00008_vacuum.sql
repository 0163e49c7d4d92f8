-- +goose Up

-- Tables that are queues, or whose rows change with every commit: vacuum looks for a number of dead rows that does not grow
-- with the table, and does not pause. A pause costs more than the few pages that there are to read.
ALTER TABLE outbox_relay SET (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE outbox_batch SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE outbox_parked SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE es_head SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
ALTER TABLE es_leader SET (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE subscription_partition SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- No row of outbox_batch is left before this position: the search for the first that is left begins here, and not with the dead
-- rows before it. A relay that does not know the column leaves it behind; then the search takes longer.
ALTER TABLE outbox_relay ADD COLUMN kept_from bigint NOT NULL DEFAULT 0;

-- What the clean-up looks for.
-- allow: parked events are few, so the index is made at once.
CREATE INDEX outbox_parked_done ON outbox_parked (done_at) WHERE done_at IS NOT NULL;
