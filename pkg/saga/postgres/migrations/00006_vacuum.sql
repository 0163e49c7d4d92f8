-- +goose Up

-- Tables that are queues, or whose rows change again and again: vacuum looks for a number of dead rows that does not grow with
-- the table, and does not pause in the small ones.
ALTER TABLE saga_open SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE saga_engine SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE saga_state SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
