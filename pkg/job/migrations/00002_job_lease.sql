-- +goose Up

-- Whose turn a running job's run is. A run is alive while the database's clock is within ttl of renewed_at. The lease is apart
-- from the job, so that renewing it does not wait for a transaction of the run, which locks the job's row.
CREATE TABLE job_lease (
    job        int PRIMARY KEY,
    run        uuid NOT NULL,
    renewed_at timestamptz NOT NULL,
    ttl        interval NOT NULL
);
