-- +goose Up

-- How long a lease lasts, so that one that a wrong clock wrote is told from a legitimate one. NULL = of a process that does not say.
ALTER TABLE saga_engine ADD COLUMN lasts interval;
