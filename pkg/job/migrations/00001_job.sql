-- +goose Up

-- Background jobs: one row each, the latest run. While a run lives its process holds the advisory lock (1247, id).
CREATE TABLE job (
    id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text COLLATE "C" NOT NULL UNIQUE,
    run        uuid,
    status     text COLLATE "C" NOT NULL DEFAULT 'never',
    detail     jsonb,
    error      text,
    started_at timestamptz,
    seen_at    timestamptz, -- when the run last told how far it is
    ended_at   timestamptz
);
