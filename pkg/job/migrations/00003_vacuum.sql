-- +goose Up

-- One row a job, written each second while it runs: room on the page for the next version, and vacuum soon.
ALTER TABLE job SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
