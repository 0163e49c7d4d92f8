-- +goose Up

-- Tables that are queues: a row comes with a transaction and goes with its end. Vacuum looks for a number of dead rows that does
-- not grow with the table, and does not pause.
ALTER TABLE transaction_pending SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE hold_open SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
